package upstream_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"larder/handler/upstream"
)

// challenger is a registry, and everybody else, who answer without a network.
type challenger struct {
	t         *testing.T
	challenge string
	asked     int
}

const challengerHost = "registry.example.com"

// RoundTrip implements http.RoundTripper.
func (c *challenger) RoundTrip(req *http.Request) (*http.Response, error) {
	c.asked++
	if strings.HasPrefix(req.Header.Get("Authorization"), "Basic ") || req.Method == http.MethodPost {
		if host := req.URL.Hostname(); req.URL.Scheme != "https" || host != "example.com" && !strings.HasSuffix(host, ".example.com") {
			c.t.Errorf("a password goes to %s", req.URL)
		}
	}
	res := &http.Response{StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Request: req}
	body := `{"token":"t","access_token":"t"}`
	if req.URL.Host == challengerHost && strings.HasPrefix(req.URL.Path, "/v2/") && !strings.HasPrefix(req.Header.Get("Authorization"), "Bearer ") {
		res.StatusCode, body = http.StatusUnauthorized, "{}"
		res.Header.Set("Www-Authenticate", c.challenge)
	}
	res.Body = io.NopCloser(strings.NewReader(body))
	return res, nil
}

type onePassword struct{}

// Resolve implements upstream.Keychain.
func (onePassword) Resolve(context.Context, string) (authn.Authenticator, error) {
	return &authn.Basic{Username: "user", Password: "password"}, nil
}

// FuzzChallenge has a registry demand credentials in any words. Whatever it says,
// the password stays at its site, and nobody is asked for ever.
func FuzzChallenge(f *testing.F) {
	for _, seed := range []string{
		`Basic realm="x"`, `Bearer realm="https://auth.example.com/token",service="s",scope="repository:a/b:pull"`, `Bearer realm="https://evil.test/token"`,
		`Bearer realm="http://auth.example.com/token"`, `Bearer realm="https://example.com.evil.test/"`, `Bearer realm="https://user@evil.test/"`,
		`Bearer realm="https://registry.example.com@evil.test/"`, `Bearer realm="//evil.test/"`, `Bearer realm="/token"`, `Bearer realm=""`, `Bearer`, ``, `,`, `=`,
		`Bearer realm="https://evil.test\\.example.com/"`, `Bearer realm="https://evil.test#.example.com/"`, `Bearer realm="https://[::1]/"`, `Bearer realm="`, `Negotiate`,
		`Bearer realm="https://evil.test:443/v2/"`, `Basic realm="x", Bearer realm="https://evil.test/"`, `Bearer realm="https://registry.example.com:444/token"`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, challenge string) {
		list, err := upstream.ParseList(challengerHost)
		if err != nil {
			t.Fatal(err)
		}
		registry := &challenger{t: t, challenge: challenge}
		c, err := upstream.New(upstream.Config{Registries: list, Keychain: onePassword{}, Transport: registry})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r, err := c.Repository("", "a/b")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.Tags(t.Context(), nil) // allowed to fail
		if registry.asked > 20 {
			t.Errorf("%q: %d requests", challenge, registry.asked)
		}
	})
}
