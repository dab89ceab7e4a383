package upstream_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestTokenServerIsBroken(t *testing.T) {
	long, err := json.Marshal(map[string]string{"token": strings.Repeat("t", 100<<10)})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		fault       upstreamtest.Fault
		status      int
		unreachable bool
		tokens      int // requests, at most
	}{
		"404":               {upstreamtest.Status(404, nil), 0, true, 2},
		"400":               {upstreamtest.Status(400, nil), 0, true, 2},
		"401":               {upstreamtest.Status(401, nil), 401, false, 1},
		"403":               {upstreamtest.Status(403, nil), 403, false, 1},
		"429":               {upstreamtest.Status(429, http.Header{"Retry-After": {"60"}}), 429, true, 1},
		"500":               {upstreamtest.Status(500, nil), 500, true, 2},
		"HTML":              {answer("<html>please log in, hunter2</html>"), 0, true, 2},
		"no token":          {answer(`{"refresh_token":"hunter2","password":"hunter2"}`), 0, true, 2},
		"not a string":      {answer(`{"token":["hunter2"]}`), 0, true, 2},
		"nothing":           {answer(""), 0, true, 2},
		"too large":         {answer(string(long)), 0, true, 2},
		"too large, unsaid": {chain(upstreamtest.NoContentLength(), answer(string(long))), 0, true, 2},
		"large refusal":     {chain(upstreamtest.Extend(100<<10), upstreamtest.Status(403, nil)), 403, false, 1},
		"redirect loop":     {upstreamtest.Redirect("/token?hunter2"), 0, true, 20},
		"reset":             {upstreamtest.ResetConnection(), 0, true, 4},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
				reg.RequireBearer("user", password, 0)
				remove := reg.Fault(upstreamtest.Match{Path: "/token"}, test.fault)
				err := questions["get manifest"](t.Context(), r)
				e := wantError(t, err, test.status)
				wantUnreachable(t, err, test.unreachable)
				wantRefused(t, err, !test.unreachable)
				if test.status == 429 && e.Header.Get("Retry-After") != "60" {
					t.Errorf("got header %v, want Retry-After", e.Header)
				}
				if n := reg.Count("", "/token"); n > test.tokens {
					t.Errorf("got %d requests for tokens, want at most %d", n, test.tokens)
				}
				remove()
				time.Sleep(time.Minute)
				askAll(t, r)
			})
		})
	}
}

// chain is faults as one.
func chain(faults ...upstreamtest.Fault) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		for _, f := range slices.Backward(faults) {
			next = f(next)
		}
		return next
	}
}

// A renewal must not be taken for the answer to the question that needed it.
func TestTokenIsNotRenewed(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"404":  upstreamtest.Status(404, nil),
		"405":  upstreamtest.Status(405, nil),
		"HTML": answer("<html>"),
	}
	for _, path := range []string{"/token", "/v2/token"} {
		for name, fault := range faults {
			t.Run(name+" at "+path, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, r := startPipe(t, upstream.Config{})
					bearer(reg, "", reg.URL+path)
					tokens := reg.Fault(upstreamtest.Match{Path: "/v2/token"}, renamed("/token"))
					ask(t, r, "get manifest")
					tokens()
					reg.ExpireTokens()
					reg.Fault(upstreamtest.Match{Path: path}, fault)
					for _, ask := range questions {
						err := ask(t.Context(), r)
						wantError(t, err, 0)
						wantRefused(t, err, false)
						wantUnreachable(t, err, true)
					}
				})
			})
		}
	}
}

// renamed answers as another page would.
func renamed(path string) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req = req.Clone(req.Context())
			req.URL.Path = path
			next.ServeHTTP(w, req)
		})
	}
}

// silent is the address of somebody who must not be spoken to.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Errorf("%s was contacted", conn.LocalAddr())
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// secrets are all forms of credentials that a keychain may give.
var secrets = map[string]authn.AuthConfig{
	"password":            {Username: "user", Password: password},
	"encoded":             {Auth: "dXNlcjpodW50ZXIyLXBhc3N3b3Jk"},
	"encoded, no colon":   {Auth: "aHVudGVyMg=="},
	"encoded, not base64": {Auth: "hunter2!"},
	"identity token":      {Username: "<token>", IdentityToken: "hunter2"},
}

func TestNoPasswordToForeignRealm(t *testing.T) {
	tests := map[string]struct{ url, dial, realm string }{
		"other domain":      {"https://reg.example.com", "reg.example.com:443", "https://auth.example.org/token"},
		"public suffix":     {"https://me.github.io", "me.github.io:443", "https://you.github.io/token"},
		"suffix of letters": {"https://example.com", "example.com:443", "https://evilexample.com/token"},
		"plain sibling":     {"http://reg.example.com", "reg.example.com:80", "http://auth.example.com/token"},
		"named in plain":    {"http://reg.example.com", "reg.example.com:80", "https://auth.example.com/token"},
		"plain, other port": {"http://reg.example.com", "reg.example.com:80", "http://reg.example.com:8080/token"},
		"downgrade":         {"https://reg.example.com", "reg.example.com:443", "http://reg.example.com/token"},
		"this machine":      {"http://reg.example.com", "reg.example.com:80", "http://localhost:8080/token"},
		"other IP":          {"https://192.0.2.1", "192.0.2.1:443", "https://192.0.2.2/token"},
		"userinfo":          {"https://reg.example.com", "reg.example.com:443", "https://reg.example.com@auth.example.org/token"},
		"file":              {"http://reg.example.com", "reg.example.com:80", "file:///etc/passwd"},
		"query":             {"https://reg.example.com", "reg.example.com:443", "https://auth.example.org/?key=hunter2"},
		"not a URL":         {"https://reg.example.com", "reg.example.com:443", "https://auth.example.org/%zz?key=hunter2"},
	}
	for name, test := range tests {
		for kind, auth := range secrets {
			t.Run(name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg := upstreamtest.NewPipe(t)
					bearer(reg, "user", test.realm)
					wantNoToken(t, reg, test.url, network(t, map[string]*upstreamtest.Registry{test.dial: reg}), auth)
				})
			})
		}
	}
}

func TestNoPasswordToListeningRealm(t *testing.T) {
	address := silent(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for _, realm := range []string{"http://" + address + "/token", "http://localhost:" + port + "/token"} {
		for _, kind := range []string{"password", "identity token"} {
			t.Run(realm+", "+kind, func(t *testing.T) {
				reg := upstreamtest.New(t)
				bearer(reg, "user", realm)
				wantNoToken(t, reg, reg.URL, nil, secrets[kind])
			})
		}
	}
}

// wantNoToken asks a registry at url and wants that nobody is asked for a token.
func wantNoToken(t *testing.T, reg *upstreamtest.Registry, url string, transport http.RoundTripper, auth authn.AuthConfig) {
	t.Helper()
	k := &keychain{}
	k.set(auth)
	err := questions["get blob"](t.Context(), repository(t, newClient(t, url, upstream.Config{Transport: transport, Keychain: k})))
	e := wantError(t, err, 0)
	wantUnreachable(t, err, true)
	if text := e.Error(); !strings.Contains(text, "realm") && !strings.Contains(text, "credentials are not for that host") && !strings.Contains(text, "base64") {
		t.Errorf("got %v, want an error that tells of the realm", err)
	}
	for _, req := range reg.Requests() {
		if req.Path != "/v2/" || req.Header.Get("Authorization") != "" {
			t.Errorf("got a request for %s", req.Path)
		}
	}
}

func TestPasswordToSameSite(t *testing.T) {
	tests := map[string]struct{ url, realm, dial string }{
		"itself":  {"http://reg.example.com:5000", "http://reg.example.com:5000/token", "reg.example.com:5000"},
		"sibling": {"https://registry-1.example.com", "https://auth.example.com/token", "auth.example.com:443"},
		"parent":  {"https://reg.example.co.uk", "https://example.co.uk/token", "example.co.uk:443"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := upstreamtest.New(t)
			fill(reg)
			bearer(reg, "user", test.realm)
			hosts := map[string]*upstreamtest.Registry{
				test.dial: reg, "reg.example.com:80": reg, "registry-1.example.com:443": reg, "reg.example.co.uk:443": reg,
			}
			r := repository(t, newClient(t, test.url, upstream.Config{Transport: network(t, hosts), Keychain: user(password)}))
			askAll(t, r)
			want := strings.TrimSuffix(strings.SplitN(test.realm, "://", 2)[1], "/token")
			for _, req := range reg.Requests() {
				_, _, basic := (&http.Request{Header: req.Header}).BasicAuth()
				if req.Path == "/token" && (req.Host != want || !basic) || req.Path != "/token" && basic {
					t.Errorf("got %s of %s, password: %v", req.Path, req.Host, basic)
				}
			}
		})
	}
}

func TestAnonymousTokenFromForeignRealm(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	bearer(reg, "", "https://auth.example.org/token")
	hosts := map[string]*upstreamtest.Registry{"reg.example.com:443": reg, "auth.example.org:443": reg}
	askAll(t, repository(t, newClient(t, "https://reg.example.com", upstream.Config{Transport: network(t, hosts)})))
}

// Whatever servers say, neither errors nor logs repeat what may be secret.
func TestErrorsAreDiscreet(t *testing.T) {
	status := func(code int, body string) upstreamtest.Fault {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(code)
				io.WriteString(w, body)
			})
		}
	}
	faults := map[string]upstreamtest.Fault{
		"location":             upstreamtest.Redirect("https://cdn.example/%zz?sig=hunter2"),
		"relative location":    upstreamtest.Redirect("/%zz?sig=hunter2"),
		"signed, not there":    upstreamtest.Redirect("http://gone.example/x?sig=hunter2"),
		"signed, loop":         upstreamtest.Redirect("?sig=hunter2"),
		"signed, other scheme": upstreamtest.Redirect("ftp://cdn.example/x?sig=hunter2"),
		"userinfo":             upstreamtest.Redirect("http://user:hunter2@gone.example/"),
		"code":                 status(404, `{"errors":[{"code":"bearer hunter2","message":"hunter2"}]}`),
		"body":                 status(500, "hunter2"),
		"content range":        chain(upstreamtest.SetHeader("Content-Range", "bytes 7-9/10"), status(206, "012")),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				sink := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&log), zap.DebugLevel)
				reg, gone := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
				fill(reg)
				gone.Stop()
				hosts := map[string]*upstreamtest.Registry{"upstream.localhost:80": reg, "gone.example:80": gone}
				reg.RequireBearer("user", password, 0)
				r := repository(t, newClient(t, reg.URL, upstream.Config{Keychain: user(password), Logger: zap.New(sink), Transport: network(t, hosts)}))
				for _, path := range []string{"/v2/" + repoName, "/token"} {
					reg.ExpireTokens()
					remove := reg.Fault(upstreamtest.Match{Path: path}, fault)
					for question, ask := range questions {
						err := ask(t.Context(), r)
						if err == nil {
							t.Errorf("%s: no error", question)
						}
						wantDiscreet(t, err)
					}
					remove()
				}
				if text := strings.ToLower(log.String()); strings.Contains(text, secret) || strings.Contains(text, "://") {
					t.Errorf("log gives away: %s", text)
				}
			})
		})
	}
}
