package main

import (
	"errors"
	"fmt"

	"larder/auth/token"
	"larder/handler"
	"larder/handler/middleware"
)

// authKind is how clients sign in.
type authKind string

const (
	authBasic authKind = "basic"
	authToken authKind = "token"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *authKind) UnmarshalText(text []byte) error {
	if *k = authKind(text); *k != authBasic && *k != authToken {
		return errors.New("no such kind")
	}
	return nil
}

// checkAuth finds what would leave everybody out, or would mean nothing.
func (c *config) checkAuth() (problems []error) {
	bad := func(text string) { problems = append(problems, errors.New(text)) }
	switch c.Auth {
	case authToken:
		if c.Htpasswd == "" && !c.AnonymousPull {
			bad("LARDER_AUTH: with token, and neither LARDER_HTPASSWD nor LARDER_ANONYMOUS_PULL, nobody could get a token")
		}
	case authBasic:
		if c.TokenKey != "" {
			bad("LARDER_TOKEN_KEY: set without LARDER_AUTH=token")
		}
		if c.AnonymousPull {
			bad("LARDER_ANONYMOUS_PULL: set without LARDER_AUTH=token")
		}
	}
	return problems
}

// access is who may pull what.
func (p *program) access() (handler.Access, error) {
	access := p.cfg.access
	if p.cfg.Access == "" {
		return access, nil
	}
	var err error
	access.Users, err = handler.OpenUsers(p.cfg.Access, p.cfg.upstreams, p.log.Named("auth"))
	if err != nil {
		return access, &configError{[]error{fmt.Errorf("LARDER_ACCESS: %w", err)}}
	}
	return access, nil
}

// tokens is nil if clients show passwords.
func (p *program) tokens(access handler.Access) (*middleware.Tokens, error) {
	if p.cfg.Auth != authToken {
		return nil, nil
	}
	open := token.New
	if p.cfg.TokenKey != "" {
		open = func() (*token.Authority, error) { return token.Open(p.cfg.TokenKey) }
	}
	authority, err := open()
	if err != nil {
		return nil, &configError{[]error{fmt.Errorf("LARDER_TOKEN_KEY: %w", err)}}
	}
	return &middleware.Tokens{
		Authority: authority, Anonymous: p.cfg.AnonymousPull,
		MayPull: func(user, name string) bool { return access.MayPullNamed(p.upstreams, user, name) },
	}, nil
}
