package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"larder/handler"
	"larder/handler/upstream"
)

// check finds what parses and still can't be.
func (c *config) check() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	var err error
	if c.upstreams, err = upstream.ParseList(c.UpstreamList); err != nil {
		bad("LARDER_UPSTREAMS: %w", err)
	} else {
		problems = append(problems, c.checkGlobs()...)
	}
	if err := c.checkParent(); err != nil {
		bad("LARDER_PARENT: %w", err)
	}
	problems = append(problems, c.Quotas.check(c.upstreams)...)
	problems = append(problems, c.checkMiddleware()...)
	problems = append(problems, c.checkAuth()...)
	if c.CacheDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			bad("LARDER_CACHE_DIR: not set, and there is no default: %w", err)
		}
		c.CacheDir = filepath.Join(dir, "larder")
	}
	for _, check := range []func() []error{c.checkDurations, c.checkAddresses, c.checkLogs, c.checkSecrets, c.checkShared} {
		problems = append(problems, check()...)
	}
	return problems
}

// checkParent needs the upstreams.
func (c *config) checkParent() (err error) {
	if c.ParentURL == "" {
		return nil
	}
	if c.parent, err = upstream.ParseParent(c.ParentURL); err != nil {
		return err
	}
	// What one of them may be told, the other may not, and both go by their hosts.
	for _, r := range c.upstreams {
		if r.Host == c.parent.Host || slices.ContainsFunc(r.URLs, func(u *url.URL) bool { return u.Host == c.parent.Host }) {
			return fmt.Errorf("it is where LARDER_UPSTREAMS has %s", r.Host)
		}
	}
	return nil
}

// checkDurations finds times that can not be.
func (c *config) checkDurations() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, field := range []struct {
		name string
		d    time.Duration
	}{
		{"LARDER_BLOB_TTL", c.BlobTTL},
		{"LARDER_MANIFEST_TTL", c.ManifestTTL},
		{"LARDER_TAG_TTL", c.TagTTL},
		{"LARDER_LIST_TTL", c.ListTTL},
		{"LARDER_SHUTDOWN_GRACE", c.ShutdownGrace},
		{"LARDER_PREFETCH_TIMEOUT", c.PrefetchTimeout},
		{"LARDER_SCRUB_INTERVAL", c.ScrubInterval},
		{"LARDER_SHARED_WAIT", c.SharedWait},
	} {
		if field.d < 0 {
			bad("%s: %v is negative", field.name, field.d)
		}
	}
	if c.Prefetch == prefetchManifest && c.PrefetchTimeout == 0 {
		bad("LARDER_PREFETCH_TIMEOUT: with 0, nothing could be fetched in time")
	}
	return problems
}

// checkAddresses finds what is no place to listen, or to pull from.
func (c *config) checkAddresses() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !validAddr(c.Addr) {
		bad("LARDER_ADDR: not an address like 127.0.0.1:5000")
	}
	if c.AdminAddr != "" && !validAddr(c.AdminAddr) {
		bad("LARDER_ADMIN_ADDR: not an address like 127.0.0.1:5001")
	}
	if err := c.checkReference(); err != nil {
		bad("LARDER_DOCTOR_REFERENCE: %w", err)
	}
	for _, name := range c.AdminHosts {
		if !hostName.MatchString(name) {
			bad("LARDER_ADMIN_HOSTS: not a comma list of names like larder.example, without ports")
			break
		}
	}
	return problems
}

// checkLogs finds what can not be logged so.
func (c *config) checkLogs() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.LogLevel > zapcore.ErrorLevel {
		bad("LARDER_LOG_LEVEL: not %s", form(reflect.TypeFor[zapcore.Level]()))
	}
	if !slices.Contains([]string{"auto", "json", "console"}, c.LogFormat) {
		bad("LARDER_LOG_FORMAT: not one of auto, json, console")
	}
	if !validAuditLog(c.AuditLog) {
		bad("LARDER_AUDIT_LOG: not off, stdout, or the path of a file, with a slash")
	}
	return problems
}

// checkSecrets finds halves: a certificate without a key, a password without a user.
func (c *config) checkSecrets() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("LARDER_TLS_CERT, LARDER_TLS_KEY: one is set without the other")
	}
	if c.ClientCA != "" && c.TLSCert == "" {
		bad("LARDER_CLIENT_CA: set without LARDER_TLS_CERT: clients have certificates in TLS only")
	}
	if c.Password != "" && c.PasswordFile != "" {
		bad("LARDER_PASSWORD, LARDER_PASSWORD_FILE: both are set")
	}
	if c.AdminLogin != "" && !strings.Contains(c.AdminLogin, ":") {
		bad("LARDER_ADMIN_LOGIN: not of the form user:password")
	}
	if secret := c.Password != "" || c.PasswordFile != ""; secret && c.Username == "" {
		bad("LARDER_USERNAME: not set, but a password is")
	} else if !secret && c.Username != "" {
		bad("LARDER_USERNAME: set without LARDER_PASSWORD or LARDER_PASSWORD_FILE")
	}
	return problems
}

// checkReference needs the upstreams.
func (c *config) checkReference() error {
	if c.DoctorReference == "" || c.upstreams == nil {
		return nil
	}
	name, _, _, err := upstream.SplitReference(c.DoctorReference)
	if err != nil {
		return err
	}
	client, err := upstream.New(c.upstreamConfig())
	if err == nil {
		_, err = client.Repository("", name)
	}
	return err
}

// checkShared finds what can be no store, or has none.
func (c *config) checkShared() (problems []error) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Shared == "" {
		for _, v := range []struct {
			name string
			set  bool
		}{
			{"LARDER_REDIRECT", c.Redirect},
			{"LARDER_SHARED_ONLY", c.SharedOnly != ""},
			{"LARDER_SHARED_ACCESS_KEY", c.SharedAccessKey != ""},
			{"LARDER_SHARED_SECRET_KEY", c.SharedSecretKey != ""},
		} {
			if v.set {
				bad("%s: set without LARDER_SHARED", v.name)
			}
		}
		return problems
	}
	if (c.SharedAccessKey == "") != (c.SharedSecretKey == "") {
		bad("LARDER_SHARED_ACCESS_KEY, LARDER_SHARED_SECRET_KEY: one is set without the other")
	} else if s, err := c.openStore(); err != nil {
		bad("LARDER_SHARED: %w", err)
	} else if err := s.Close(); err != nil {
		bad("LARDER_SHARED: %w", err)
	}
	if c.Redirect && strings.HasPrefix(c.Shared, "file:") {
		bad("LARDER_REDIRECT: a directory has no URLs that clients could be sent to")
	}
	if c.SharedTimeout <= 0 {
		bad("LARDER_SHARED_TIMEOUT: %v is no time", c.SharedTimeout)
	}
	return problems
}

// checkGlobs needs the upstreams.
func (c *config) checkGlobs() (problems []error) {
	for _, list := range []struct {
		variable, value string
		globs           *handler.Globs
	}{
		{"LARDER_ALLOW", c.Allow, &c.access.Allow}, {"LARDER_DENY", c.Deny, &c.access.Deny}, {"LARDER_SHARED_ONLY", c.SharedOnly, &c.shared},
	} {
		if list.value == "" {
			continue
		}
		var err error
		if *list.globs, err = handler.ParseGlobs(list.value, c.upstreams); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", list.variable, err))
		}
	}
	if c.Pin != "" {
		var err error
		if c.pins, err = handler.ParseImageGlobs(c.Pin, c.upstreams); err != nil {
			problems = append(problems, fmt.Errorf("LARDER_PIN: %w", err))
		}
	}
	return problems
}

// pinned is nil if LARDER_PIN is not set.
func (c *config) pinned() func(repository, reference string) bool {
	if c.pins == nil {
		return nil
	}
	return c.pins.Match
}

// denied is the variable by which a repository is not served, or "".
func (c *config) denied(repository string) (variable string) {
	switch {
	case c.access.Deny.Match(repository):
		return "LARDER_DENY"
	case c.access.Allow != nil && !c.access.Allow.Match(repository):
		return "LARDER_ALLOW"
	default:
		return ""
	}
}
