package main

import (
	"fmt"
	"slices"
	"strings"

	"larder/handler/middleware"
)

// middlewares are those that LARDER_MIDDLEWARE may name. One of your own is
// compiled in by registering it here: handler/middleware has an example.
func middlewares() *middleware.Registry { return middleware.Builtin() }

// settings are the variables that are options of middlewares.
func settings(vars map[string]string) map[string]string {
	of := make(map[string]string)
	for name, value := range vars {
		if strings.HasPrefix(name, middleware.VariablePrefix) && !kubernetesVariable.MatchString(name) {
			of[name] = value
		}
	}
	return of
}

// checkMiddleware makes sure that the chain has no hole.
func (c *config) checkMiddleware() (problems []error) {
	for name := range strings.SplitSeq(c.Middleware, ",") {
		if name = strings.TrimSpace(name); name != "" {
			c.middlewares = append(c.middlewares, name)
		}
	}
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("LARDER_MIDDLEWARE: "+format, args...))
	}
	for _, needed := range []struct {
		name, by string
		set      bool
	}{
		{"auth", "LARDER_HTPASSWD", c.Htpasswd != ""},
		{"auth", "LARDER_AUTH=token", c.Auth == authToken},
		{"allow", "LARDER_ALLOW", c.Allow != ""},
		{"allow", "LARDER_DENY", c.Deny != ""},
		{"allow", "LARDER_ACCESS", c.Access != ""},
		{"audit", "LARDER_AUDIT_LOG", c.AuditLog != auditOff},
		{"requestid", "LARDER_AUDIT_LOG", c.AuditLog != auditOff}, // to tell whose begin and end belong together
	} {
		if needed.set && !slices.Contains(c.middlewares, needed.name) {
			bad("without %s, which %s needs", needed.name, needed.by)
		}
	}
	if !slices.Contains(c.middlewares, "readonly") {
		bad("without readonly, which nothing else stands in for")
	}
	// Who asks must be known where it is decided what he may have.
	if allow := slices.Index(c.middlewares, "allow"); allow >= 0 && allow < slices.Index(c.middlewares, "auth") {
		bad("allow is before auth, and would not know who asks")
	}
	return append(problems, middlewares().Check(c.settings, c.middlewares...)...)
}
