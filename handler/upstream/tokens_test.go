package upstream_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// However many are refused with an expired token, one new one is asked for.
func TestConcurrentRefusalsAreOneToken(t *testing.T) {
	reg, r := start(t, upstream.Config{Keychain: user(password)})
	reg.RequireBearer("user", password, 0)
	ask(t, r, "head manifest")
	for range 20 {
		reg.Reset()
		reg.ExpireTokens()
		together(t, r, 30, "get manifest")
		if n := reg.Count("", "/token"); n != 1 {
			t.Fatalf("got %d requests for tokens, want one", n)
		}
	}
}

// Nor does it matter when each of them finds out.
func TestLateRefusalTakesTheNewToken(t *testing.T) {
	reg, r := start(t, upstream.Config{Keychain: user(password)})
	reg.RequireBearer("user", password, 0)
	ask(t, r, "head manifest")
	reg.Reset()
	reg.ExpireTokens()
	late := make(chan struct{})
	reg.Fault(upstreamtest.Match{Path: "/blobs/", Times: 1}, upstreamtest.Gate(late))
	var wg sync.WaitGroup
	wg.Go(func() { ask(t, r, "get blob") })
	if err := reg.Await(t.Context(), "", "/blobs/", 1); err != nil {
		t.Fatal(err)
	}
	ask(t, r, "get manifest")
	close(late)
	wg.Wait()
	if n := reg.Count("", "/token"); n != 1 {
		t.Errorf("got %d requests for tokens, want one", n)
	}
	reg.ExpireTokens()
	askAll(t, r)
	if n := reg.Count("", "/token"); n != 2 {
		t.Errorf("got %d requests for tokens, want one more", n)
	}
}

// Who leaves takes a token from nobody.
func TestLeaverTakesNoToken(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.RequireBearer("", "", 0)
	ask(t, r, "head manifest")
	reg.Reset()
	reg.ExpireTokens()
	late := make(chan struct{})
	reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Gate(late))
	impatient, leave := context.WithCancel(t.Context())
	left, stayed := make(chan error), make(chan error)
	go func() { left <- questions["get manifest"](impatient, r) }()
	if err := reg.Await(t.Context(), "", "/token", 1); err != nil {
		t.Fatal(err)
	}
	go func() { stayed <- questions["get blob"](t.Context(), r) }()
	if err := reg.Await(t.Context(), "", "/blobs/", 1); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-left; err == nil {
		t.Error("an answer for who left")
	}
	close(late)
	if err := <-stayed; err != nil {
		t.Error(err)
	}
	if n := reg.Count("", "/token"); n != 1 {
		t.Errorf("got %d requests for tokens, want one", n)
	}
}

// rewritten changes what a token server answers.
func rewritten(change func(doc map[string]any)) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, req)
			var doc map[string]any
			if rec.Code != http.StatusOK || json.Unmarshal(rec.Body.Bytes(), &doc) != nil {
				w.WriteHeader(rec.Code)
				return
			}
			change(doc)
			json.NewEncoder(w).Encode(doc)
		})
	}
}

func TestTokenAnswers(t *testing.T) {
	tests := map[string]func(doc map[string]any){
		"no expires_in":       func(doc map[string]any) { delete(doc, "expires_in"); delete(doc, "issued_at") },
		"access_token only":   func(doc map[string]any) { doc["access_token"] = doc["token"]; delete(doc, "token") },
		"both":                func(doc map[string]any) { doc["access_token"] = doc["token"] },
		"a refresh token too": func(doc map[string]any) { doc["refresh_token"] = "hunter2" },
		"expired long ago":    func(doc map[string]any) { doc["expires_in"] = -5; doc["issued_at"] = "1970-01-01T00:00:00Z" },
		"odd expires_in":      func(doc map[string]any) { doc["expires_in"] = 1e9 },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
				reg.RequireBearer("user", password, time.Minute)
				reg.Fault(upstreamtest.Match{Path: "/token"}, rewritten(change))
				askAll(t, r)
				time.Sleep(time.Hour)
				together(t, r, 10, "get blob")
				if n := reg.Count("GET", "/token"); n > 2 || reg.Count("POST", "") > 0 {
					t.Errorf("got %d requests for tokens, want two", n)
				}
			})
		})
	}
}

func TestSlowTokenServerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
		reg.RequireBearer("user", password, 0)
		reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Latency(10*time.Second))
		together(t, r, 10, "get manifest")
		if n := reg.Count("", "/token"); n != 1 {
			t.Errorf("got %d requests for tokens, want one", n)
		}
	})
}

// A token that is good for nothing is asked for again once, and no more.
func TestWrongScopeIsNoLoop(t *testing.T) {
	for name, scope := range map[string]string{"none": "", "another repository's": "repository:team/other:pull"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
				reg.RequireBearer("user", password, 0)
				reg.Fault(upstreamtest.Match{Path: "/token"}, func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
						req = req.Clone(req.Context())
						query := req.URL.Query()
						query["scope"] = strings.Fields(scope)
						req.URL.RawQuery = query.Encode()
						next.ServeHTTP(w, req)
					})
				})
				for question, ask := range questions {
					reg.Reset()
					wantError(t, ask(t.Context(), r), http.StatusUnauthorized)
					if tokens, n := reg.Count("", "/token"), reg.Count("", page(question)); tokens > 2 || n > 2 {
						t.Errorf("%s: got %d tokens and %d questions, want two of each at most", question, tokens, n)
					}
				}
			})
		})
	}
}

// A registry that refuses whatever it is shown is believed.
func TestUnauthorizedIsNoLoop(t *testing.T) {
	refuse := func(scheme string) upstreamtest.Fault {
		return upstreamtest.Status(http.StatusUnauthorized, http.Header{"Www-Authenticate": {scheme}})
	}
	tests := map[string]string{
		"bearer":         `Bearer realm="http://upstream.localhost/token",service="upstream.localhost",scope="repository:team/app:pull"`,
		"other scope":    `Bearer realm="http://upstream.localhost/token",service="upstream.localhost",scope="repository:team/app:pull,push"`,
		"basic":          `Basic realm="x"`,
		"unknown scheme": `Negotiate`,
		"several":        `Negotiate, Basic realm="x", Bearer realm="http://upstream.localhost/token"`,
		"none":           ``,
		"nonsense":       `Bearer realm=",,="`,
	}
	for name, scheme := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
				reg.RequireBearer("user", password, 0)
				reg.Fault(upstreamtest.Match{Path: "/" + repoName + "/"}, refuse(scheme))
				for question, ask := range questions {
					reg.Reset()
					err := ask(t.Context(), r)
					wantError(t, err, http.StatusUnauthorized)
					wantRefused(t, err, true)
					if n := len(reg.Requests()); n > 5 {
						t.Errorf("%s: got %d requests", question, n)
					}
				}
			})
		})
	}
}

func TestTokenExpiresInMidPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
		reg.RequireBearer("user", password, time.Minute)
		reg.Fault(upstreamtest.Match{Path: "/blobs/", Times: 1}, upstreamtest.CutAfter(20))
		ask(t, r, "get manifest")
		body, _ := open(t, r, digest.FromBytes(blobData), 0, -1)
		got, err := io.ReadAll(body)
		if err == nil || len(got) != 20 {
			t.Fatalf("got %q, %v", got, err)
		}
		time.Sleep(time.Hour)
		rest, size := open(t, r, digest.FromBytes(blobData), 20, -1)
		tail, err := io.ReadAll(rest)
		if err != nil || string(got)+string(tail) != string(blobData) || size != blobSize {
			t.Errorf("got %q, %q, %v", got, tail, err)
		}
	})
}

// A listed registry may be the token server of another.
func TestPasswordToListedRealm(t *testing.T) {
	tests := map[string]struct {
		list, dial, realm string
		want              bool
	}{
		"listed":          {host + "=https://reg.example.com,auth.example.org", "reg.example.com:443", "https://auth.example.org/token", true},
		"listed by URL":   {host + "=https://reg.example.com,x=https://auth.example.org", "reg.example.com:443", "https://auth.example.org/token", true},
		"not listed":      {host + "=https://reg.example.com", "reg.example.com:443", "https://auth.example.org/token", false},
		"another port":    {host + "=https://reg.example.com,auth.example.org:5000", "reg.example.com:443", "https://auth.example.org/token", false},
		"named in plain":  {host + "=http://reg.example.com,auth.example.org", "reg.example.com:80", "https://auth.example.org/token", false},
		"listed in plain": {host + "=https://reg.example.com,auth.example.org=http://auth.example.org", "reg.example.com:443", "http://auth.example.org/token", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, tokens := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
				fill(reg)
				bearer(reg, "user", test.realm)
				tokens.Fault(upstreamtest.Match{}, func(http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
						req.Host = "upstream.localhost"
						regToken(t, reg, w, req)
					})
				})
				list, err := upstream.ParseList(test.list)
				if err != nil {
					t.Fatal(err)
				}
				c, err := upstream.New(upstream.Config{Registries: list, Keychain: user(password), Transport: network(t, map[string]*upstreamtest.Registry{
					test.dial: reg, "auth.example.org:443": tokens, "auth.example.org:80": tokens,
				})})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				err = questions["get manifest"](t.Context(), repository(t, c))
				if (err == nil) != test.want || (len(tokens.Requests()) > 0) != test.want {
					t.Errorf("got %v after %d requests for a token, want an answer: %v", err, len(tokens.Requests()), test.want)
				}
			})
		})
	}
}

// regToken lets reg answer a request for a token that came to somebody else.
func regToken(t *testing.T, reg *upstreamtest.Registry, w http.ResponseWriter, req *http.Request) {
	out, err := http.NewRequestWithContext(req.Context(), req.Method, reg.URL+req.URL.RequestURI(), nil)
	if err != nil {
		t.Error(err)
		return
	}
	out.Header = req.Header.Clone()
	res, err := reg.Transport().RoundTrip(out)
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	w.WriteHeader(res.StatusCode)
	io.Copy(w, res.Body)
}

// A password goes to where upstream says that tokens are, and not on from there.
func TestPasswordIsNotRedirected(t *testing.T) {
	targets := map[string]string{
		"same host": "/elsewhere", "sibling": "https://other.example.com/elsewhere", "foreign": "https://auth.example.org/elsewhere",
		"downgrade": "http://reg.example.com/elsewhere",
	}
	for name, target := range targets {
		for kind, auth := range secrets {
			if strings.Contains(kind, "encoded, ") {
				continue // no password at all
			}
			t.Run(name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, elsewhere := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
					bearer(reg, "user", "https://reg.example.com/token")
					reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Redirect(target))
					reg.Fault(upstreamtest.Match{Path: "/elsewhere"}, answer(`{"token":"x"}`))
					k := &keychain{}
					k.set(auth)
					r := repository(t, newClient(t, "https://reg.example.com", upstream.Config{Keychain: k, Transport: network(t, map[string]*upstreamtest.Registry{
						"reg.example.com:443": reg, "other.example.com:443": elsewhere, "auth.example.org:443": elsewhere, "reg.example.com:80": elsewhere,
					})}))
					if err := questions["get manifest"](t.Context(), r); err == nil {
						t.Error("an answer")
					}
					for _, req := range append(elsewhere.Requests(), reg.Requests()...) {
						if req.Path == "/elsewhere" && (req.Header.Get("Authorization") != "" || req.Method == http.MethodPost) {
							t.Errorf("%s of %s has the password", req.Path, req.Host)
						}
					}
				})
			})
		}
	}
}

// Whoever answers in plain could name any realm.
func TestPingIsNotRedirectedToPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, plain := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
		reg.Fault(upstreamtest.Match{}, onPing(upstreamtest.Redirect("http://reg.example.com/v2/")))
		r := repository(t, newClient(t, "https://reg.example.com", upstream.Config{Keychain: user(password), Transport: network(t, map[string]*upstreamtest.Registry{
			"reg.example.com:443": reg, "reg.example.com:80": plain,
		})}))
		wantError(t, questions["get manifest"](t.Context(), r), 0)
		if n := len(plain.Requests()); n != 0 {
			t.Errorf("got %d requests in plain", n)
		}
	})
}

// Nobody was asked to compress: bytes would not be those of the digest.
func TestCompressedAnswersAreRefused(t *testing.T) {
	for _, encoding := range []string{"gzip", "zstd", "br"} {
		for question, ask := range questions {
			if strings.HasPrefix(question, "head") {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				reg.Fault(upstreamtest.Match{Path: page(question)}, upstreamtest.SetHeader("Content-Encoding", encoding))
				err := ask(t.Context(), r)
				e := wantError(t, err, 0)
				wantUnreachable(t, err, true)
				if n := reg.Count("", page(question)); n != 1 || !strings.Contains(e.Error(), "compressed") {
					t.Errorf("%s %s: got %v after %d requests", encoding, question, e, n)
				}
				for _, req := range reg.Requests() {
					if accept := req.Header.Get("Accept-Encoding"); accept != "" {
						t.Errorf("asked for %s", accept)
					}
				}
			})
		}
	}
}
