// Package auth finds the credentials larder shows to upstreams.
package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/singleflight"
)

// dockerHub is the name Docker Hub has in image references.
const dockerHub = "docker.io"

// Keychain says which credentials an upstream is shown. The zero Keychain
// looks into Docker's configuration only. It must not be copied after its
// first use.
type Keychain struct {
	Host         string // the default upstream as listed, e.g. "docker.io", which Username and Password are for
	Username     string // empty: Docker's configuration is used for Host too
	Password     string
	PasswordFile string // instead of Password; read at each use, so that a rotated secret is seen

	lookups singleflight.Group // of Docker's configuration, by host
}

// Resolve returns the credentials for the upstream listed as host, or
// authn.Anonymous if there are none. It reads every file anew, so that asking
// again after a 401 helps. Its errors hold no secret.
func (k *Keychain) Resolve(ctx context.Context, host string) (authn.Authenticator, error) {
	if k.Host != "" && canonical(host) == canonical(k.Host) {
		configured, err := k.configured()
		if configured != nil || err != nil {
			return configured, err
		}
	}
	return k.lookUp(ctx, host)
}

// configured returns the credentials from larder's own variables, nil if none
// of them is set. Half a pair is an error: to fall back to other credentials
// would hide the mistake.
func (k *Keychain) configured() (authn.Authenticator, error) {
	if k.Username == "" {
		if k.Password != "" || k.PasswordFile != "" {
			return nil, errors.New("LARDER_PASSWORD or LARDER_PASSWORD_FILE is set, but LARDER_USERNAME is not")
		}
		return nil, nil
	}
	password, err := k.password()
	if err != nil {
		return nil, err
	}
	if k.Username == "<token>" { // as credential helpers say it: the password is an identity token
		return authn.FromConfig(authn.AuthConfig{IdentityToken: password}), nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: k.Username, Password: password}), nil
}

func (k *Keychain) password() (string, error) {
	switch {
	case k.Password != "" && k.PasswordFile != "":
		return "", errors.New("LARDER_PASSWORD and LARDER_PASSWORD_FILE are both set")
	case k.Password != "":
		return k.Password, nil
	case k.PasswordFile == "":
		return "", errors.New("LARDER_USERNAME is set, but neither LARDER_PASSWORD nor LARDER_PASSWORD_FILE is")
	}
	content, err := os.ReadFile(k.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("LARDER_PASSWORD_FILE: %w", err)
	}
	password := strings.TrimRight(string(content), "\r\n")
	if password == "" {
		return "", fmt.Errorf("LARDER_PASSWORD_FILE: %s is empty", k.PasswordFile)
	}
	return password, nil
}

// lookUp asks Docker's configuration. A credential helper is a program that
// may hang and that ggcr cannot cancel; so the wait is what ctx ends, and one
// lookup per host at a time keeps a hanging helper from piling up goroutines.
func (k *Keychain) lookUp(ctx context.Context, host string) (authn.Authenticator, error) {
	found := k.lookups.DoChan(canonical(host), func() (any, error) {
		return authn.Resolve(context.WithoutCancel(ctx), authn.DefaultKeychain, resource(host))
	})
	select {
	case result := <-found:
		if result.Err != nil {
			return nil, fmt.Errorf("credentials for %s in Docker's configuration: %w", host, withoutSecret(result.Err))
		}
		return result.Val.(authn.Authenticator), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("credentials for %s in Docker's configuration: %w", host, context.Cause(ctx))
	}
}

// withoutSecret cuts off what may hold one: JSON errors quote numbers, and a
// failed helper is quoted with all that it printed.
func withoutSecret(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("JSON field %q is not a %v", e.Field, e.Type)
	}
	if text, _, found := strings.Cut(err.Error(), ", out: "); found {
		return errors.New(text)
	}
	return err
}

// canonical gives Docker Hub's three names one.
func canonical(host string) string {
	switch host {
	case name.DefaultRegistry, "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// resource is a host as ggcr's keychain wants it. name.NewRegistry, the usual
// way to make one, is not used as it refuses hosts that may well be listed.
type resource string

// String returns the key that is looked for first.
func (r resource) String() string { return r.RegistryStr() }

// RegistryStr returns the key that is looked for next.
func (r resource) RegistryStr() string {
	if canonical(string(r)) == dockerHub {
		return name.DefaultRegistry // which the keychain turns into authn.DefaultAuthKey
	}
	return string(r)
}
