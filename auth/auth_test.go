package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// dockerConfig points Docker's configuration to an empty directory of the
// test's own and returns that.
func dockerConfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, variable := range []string{"HOME", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(variable, dir)
	}
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("DOCKER_AUTH_CONFIG", "")
	return dir
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// auths is a config.json with one entry.
func auths(host, username, password string) string {
	pair := base64.StdEncoding.EncodeToString([]byte(username + ":" + password))
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, pair)
}

// resolved returns what k shows to host as "username:password", with an
// identity token as a third element.
func resolved(t *testing.T, k *Keychain, host string) string {
	t.Helper()
	authenticator, err := k.Resolve(t.Context(), host)
	if err != nil {
		t.Fatalf("Resolve(%q): %v", host, err)
	}
	if authenticator == authn.Anonymous {
		return "anonymous"
	}
	shown, err := authn.Authorization(t.Context(), authenticator)
	if err != nil {
		t.Fatalf("Authorization for %q: %v", host, err)
	}
	got := shown.Username + ":" + shown.Password
	if shown.IdentityToken != "" {
		got += ":" + shown.IdentityToken
	}
	return got
}

func TestDockerConfig(t *testing.T) {
	tests := map[string]struct {
		config, host, want string
	}{
		"Docker Hub":                   {auths(authn.DefaultAuthKey, "u", "p"), "docker.io", "u:p"},
		"Docker Hub's second name":     {auths(authn.DefaultAuthKey, "u", "p"), "index.docker.io", "u:p"},
		"Docker Hub's third name":      {auths(authn.DefaultAuthKey, "u", "p"), "registry-1.docker.io", "u:p"},
		"host":                         {auths("ghcr.io", "u", "p"), "ghcr.io", "u:p"},
		"host as URL":                  {auths("https://ghcr.io/v1/", "u", "p"), "ghcr.io", "u:p"},
		"host with port":               {auths("localhost:6000", "u", "p"), "localhost:6000", "u:p"},
		"password with colon":          {auths("ghcr.io", "u", "p:q"), "ghcr.io", "u:p:q"},
		"other port":                   {auths("localhost:6000", "u", "p"), "localhost:6001", "anonymous"},
		"no port":                      {auths("localhost:6000", "u", "p"), "localhost", "anonymous"},
		"sub-domain":                   {auths("example.com", "u", "p"), "registry.example.com", "anonymous"},
		"parent domain":                {auths("registry.example.com", "u", "p"), "example.com", "anonymous"},
		"Docker Hub's, asked for quay": {auths(authn.DefaultAuthKey, "u", "p"), "quay.io", "anonymous"},
		"empty":                        {`{}`, "docker.io", "anonymous"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			write(t, filepath.Join(dockerConfig(t), "config.json"), test.config, 0o600)
			if got := resolved(t, new(Keychain), test.host); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestNoDockerConfigIsAnonymous(t *testing.T) {
	dockerConfig(t)
	if got, want := resolved(t, new(Keychain), "docker.io"), "anonymous"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestChangedDockerConfigIsSeen(t *testing.T) {
	config := filepath.Join(dockerConfig(t), "config.json")
	k := new(Keychain)
	for _, want := range []string{"u:first", "u:second"} {
		write(t, config, auths("ghcr.io", "u", strings.TrimPrefix(want, "u:")), 0o600)
		if got := resolved(t, k, "ghcr.io"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// helper puts a credential helper called "test" on PATH.
func helper(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "docker-credential-test"), "#!/bin/sh\nread -r host\n"+script, 0o700)
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func TestCredentialHelper(t *testing.T) {
	const script = `case "$host" in
private.example:5000) echo '{"Username": "robot", "Secret": "s3cret"}' ;;
https://index.docker.io/v1/) echo '{"Username": "<token>", "Secret": "t0ken"}' ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac`
	tests := map[string]struct {
		config, host, want string
	}{
		"credsStore":            {`{"credsStore": "test"}`, "private.example:5000", "robot:s3cret"},
		"credHelpers":           {`{"credHelpers": {"private.example:5000": "test"}}`, "private.example:5000", "robot:s3cret"},
		"credHelpers of others": {`{"credHelpers": {"ghcr.io": "test"}}`, "private.example:5000", "anonymous"},
		"unknown to the helper": {`{"credsStore": "test"}`, "ghcr.io", "anonymous"},
		"identity token":        {`{"credsStore": "test"}`, "docker.io", "::t0ken"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			helper(t, script)
			write(t, filepath.Join(dockerConfig(t), "config.json"), test.config, 0o600)
			if got := resolved(t, new(Keychain), test.host); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDockerConfigErrorsHoldNoSecret(t *testing.T) {
	tests := map[string]struct {
		config, script, want string
	}{
		"number as password": {`{"auths": {"ghcr.io": {"password": 8675309}}}`, "", "not a string"},
		"bad JSON":           {`{"auths": {"ghcr.io": {"password": 8675309 `, "", "config.json"},
		"bad base64":         {`{"auths": {"ghcr.io": {"auth": "8675309!"}}}`, "", "config.json"},
		"helper fails":       {`{"credsStore": "test"}`, `echo '{"Secret": "8675309"}'; exit 3`, "exit status 3"},
		"helper's number":    {`{"credsStore": "test"}`, `echo '{"Secret": 8675309}'`, "not a string"},
		"no such helper":     {`{"credsStore": "absent"}`, "", "docker-credential-absent"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			helper(t, test.script)
			write(t, filepath.Join(dockerConfig(t), "config.json"), test.config, 0o600)
			_, err := new(Keychain).Resolve(t.Context(), "ghcr.io")
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "8675309") {
				t.Errorf("secret in %q", err)
			}
			for _, want := range []string{"ghcr.io", "Docker's configuration", test.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %q", err, want)
				}
			}
		})
	}
}

func TestHangingHelperDoesNotHoldCaller(t *testing.T) {
	dir := dockerConfig(t)
	t.Setenv("LARDER_TEST_DIR", dir)
	helper(t, `cd "$LARDER_TEST_DIR"
[ -e released ] || { : > started; read -r line < release || :; }
echo '{"Username": "robot", "Secret": "s3cret"}'`)
	write(t, filepath.Join(dir, "config.json"), `{"credsStore": "test"}`, 0o600)
	for _, fifo := range []string{"started", "release"} {
		if err := syscall.Mkfifo(filepath.Join(dir, fifo), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	k := new(Keychain)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := k.Resolve(ctx, "ghcr.io")
		left <- err
	}()
	if _, err := os.ReadFile(filepath.Join(dir, "started")); err != nil { // returns when the helper runs
		t.Fatal(err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}

	write(t, filepath.Join(dir, "released"), "", 0o600)
	write(t, filepath.Join(dir, "release"), "", 0o600)
	if got, want := resolved(t, k, "ghcr.io"), "robot:s3cret"; got != want {
		t.Errorf("after the helper came back: got %q, want %q", got, want)
	}
}

func TestConfiguredCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, "from file \r\n", 0o600)
	tests := map[string]struct {
		keychain *Keychain
		host     string
		want     string
	}{
		"password":                 {&Keychain{Host: "ghcr.io", Username: "u", Password: "p"}, "ghcr.io", "u:p"},
		"password file":            {&Keychain{Host: "ghcr.io", Username: "u", PasswordFile: file}, "ghcr.io", "u:from file "},
		"identity token":           {&Keychain{Host: "ghcr.io", Username: "<token>", Password: "t"}, "ghcr.io", "::t"},
		"Docker Hub by two names":  {&Keychain{Host: "docker.io", Username: "u", Password: "p"}, "index.docker.io", "u:p"},
		"other host":               {&Keychain{Host: "ghcr.io", Username: "u", Password: "p"}, "quay.io", "anonymous"},
		"other port":               {&Keychain{Host: "r.example", Username: "u", Password: "p"}, "r.example:5000", "anonymous"},
		"no host at all":           {&Keychain{Username: "u", Password: "p"}, "", "anonymous"},
		"none: Docker's are shown": {&Keychain{Host: "docker.example"}, "docker.example", "docker:config"},
		"Docker's are overridden":  {&Keychain{Host: "docker.example", Username: "u", Password: "p"}, "docker.example", "u:p"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			write(t, filepath.Join(dockerConfig(t), "config.json"), auths("docker.example", "docker", "config"), 0o600)
			if got := resolved(t, test.keychain, test.host); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestRotatedPasswordFileIsSeen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	k := &Keychain{Host: "ghcr.io", Username: "u", PasswordFile: file}
	for _, want := range []string{"u:first", "u:second"} {
		write(t, file, strings.TrimPrefix(want, "u:")+"\n", 0o600)
		if got := resolved(t, k, "ghcr.io"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestHalfConfiguredCredentialsAreErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	write(t, empty, "\n", 0o600)
	tests := map[string]struct {
		keychain *Keychain
		want     []string
	}{
		"missing file":  {&Keychain{Username: "u", PasswordFile: dir + "/none"}, []string{"LARDER_PASSWORD_FILE", dir + "/none"}},
		"directory":     {&Keychain{Username: "u", PasswordFile: dir}, []string{"LARDER_PASSWORD_FILE", dir}},
		"empty file":    {&Keychain{Username: "u", PasswordFile: empty}, []string{"LARDER_PASSWORD_FILE", empty}},
		"two passwords": {&Keychain{Username: "u", Password: "s3cret", PasswordFile: empty}, []string{"LARDER_PASSWORD", "both"}},
		"no password":   {&Keychain{Username: "u"}, []string{"LARDER_USERNAME", "LARDER_PASSWORD"}},
		"no username":   {&Keychain{Password: "s3cret"}, []string{"LARDER_USERNAME", "LARDER_PASSWORD"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dockerConfig(t)
			test.keychain.Host = "ghcr.io"
			_, err := test.keychain.Resolve(t.Context(), "ghcr.io")
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("secret in %q", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %q", err, want)
				}
			}
			if got, want := resolved(t, test.keychain, "quay.io"), "anonymous"; got != want {
				t.Errorf("other host: got %q, want %q", got, want)
			}
		})
	}
}
