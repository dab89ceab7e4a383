// Package token issues and checks the short-lived tokens of Docker's token
// protocol, as larder's own token server.
package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// Service is what larder's tokens are for; clients are told to ask for it.
	Service = "larder"

	// Lifetime is how long a token is good for. Clients get another in the middle
	// of a pull if need be: by this, or when the old one is refused.
	Lifetime = 5 * time.Minute

	issuer = "larder"

	// leeway is how much the clocks of larders that share a key may differ.
	leeway = 10 * time.Second

	// maxSize bounds a token: one for maxScopes repositories with the longest
	// names takes less.
	maxSize = 16 << 10
)

// ErrTooLarge is the error of Verify for what is no token of larder's by its
// size alone.
var ErrTooLarge = fmt.Errorf("token is larger than %d bytes", maxSize)

// Grant is what a valid token says.
type Grant struct {
	User         string // who signed in for it; "": nobody
	repositories []string
}

// Covers reports whether the token was issued for pulling from the repository,
// by the name that clients ask for it by. That says nothing of whether the user
// may.
func (g *Grant) Covers(repository string) bool {
	return slices.Contains(g.repositories, repository)
}

// Authority issues tokens, and takes its own. Its methods may be called
// concurrently.
type Authority struct {
	key    key
	parser *jwt.Parser
}

// claims are those of https://distribution.github.io/distribution/spec/auth/jwt/.
type claims struct {
	jwt.RegisteredClaims
	Access []access `json:"access"`
}

type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// New makes an authority with a key of its own, whose tokens nobody else takes.
func New() (*Authority, error) {
	k, err := newKey()
	if err != nil {
		return nil, err
	}
	return newAuthority(k), nil
}

// Open makes an authority with the private key in a PEM file: ECDSA with P-256,
// or Ed25519. All with the same key take each other's tokens.
func Open(path string) (*Authority, error) {
	k, err := readKey(path)
	if err != nil {
		return nil, err
	}
	return newAuthority(k), nil
}

func newAuthority(k key) *Authority {
	return &Authority{key: k, parser: jwt.NewParser(
		// What the token itself says of its algorithm is not taken for it.
		jwt.WithValidMethods([]string{k.method.Alg()}),
		jwt.WithIssuer(issuer), jwt.WithAudience(Service), jwt.WithLeeway(leeway),
		jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithStrictDecoding(),
	)}
}

// Issue makes a token for pulling from repositories.
func (a *Authority) Issue(user string, repositories []string) (string, error) {
	now := time.Now()
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuer, Subject: user, Audience: jwt.ClaimStrings{Service}, ID: rand.Text(),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(Lifetime)),
		},
		Access: []access{},
	}
	for _, repository := range repositories {
		c.Access = append(c.Access, access{Type: repositoryType, Name: repository, Actions: []string{pull}})
	}
	t := jwt.NewWithClaims(a.key.method, c)
	t.Header["kid"] = a.key.id
	return t.SignedString(a.key.private)
}

// Verify returns what a token says, if it is one of this authority's and of now.
func (a *Authority) Verify(token string) (*Grant, error) {
	if len(token) > maxSize {
		return nil, ErrTooLarge
	}
	c := new(claims)
	if _, err := a.parser.ParseWithClaims(token, c, a.keyOf); err != nil {
		return nil, err
	}
	g := &Grant{User: c.Subject}
	for _, entry := range c.Access {
		if entry.Type == repositoryType && slices.Contains(entry.Actions, pull) {
			g.repositories = append(g.repositories, entry.Name)
		}
	}
	return g, nil
}

// keyOf is the one key, if the token names it. A key that comes with the token
// is not looked at.
func (a *Authority) keyOf(t *jwt.Token) (any, error) {
	if t.Header["kid"] != a.key.id {
		return nil, errors.New("signed with another key")
	}
	return a.key.private.Public(), nil
}
