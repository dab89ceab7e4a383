package middleware_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"larder/auth/token"
	"larder/handler/middleware"
)

// identified is as the handler identifies requests, but simpler: /v2/NAME/x is of
// the repository docker.io/NAME, and with ?ns=HOST of HOST/NAME.
func identified(ctx context.Context, r *http.Request) context.Context {
	note := middleware.NoteOf(ctx)
	name, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/x")
	if !ok {
		return ctx
	}
	host := r.URL.Query().Get("ns")
	if host == "" {
		host = "docker.io"
	}
	note.Name, note.Repository = name, host+"/"+name
	return ctx
}

// alicesPassword is the only one.
func alicesPassword(_ context.Context, username, password string) (bool, error) {
	if password == "busy" {
		return false, errors.New("busy")
	}
	return username == "alice" && password == "wonderland", nil
}

// tokenOptions let everybody have a/**, alice b/**, and nobody anything else. That
// is so at docker.io; at ghcr.io there is c/ for alice.
func tokenOptions(t *testing.T) middleware.Options {
	t.Helper()
	authority, err := token.New()
	if err != nil {
		t.Fatal(err)
	}
	mayPull := func(user, repository string) bool {
		return strings.HasPrefix(repository, "docker.io/a/") ||
			user == "alice" && (strings.HasPrefix(repository, "docker.io/b/") || strings.HasPrefix(repository, "ghcr.io/c/"))
	}
	return middleware.Options{
		Identify: identified, Verify: alicesPassword, MayPull: mayPull,
		Tokens: &middleware.Tokens{Authority: authority, MayPull: func(user, name string) bool {
			return mayPull(user, "docker.io/"+name) || mayPull(user, "ghcr.io/"+name)
		}},
	}
}

// issued is a token by the back door.
func issued(t *testing.T, opts middleware.Options, user string, names ...string) string {
	t.Helper()
	s, err := opts.Tokens.Authority.Issue(user, names)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// basic is an Authorization header.
func basic(user, pass string) string {
	r := &http.Request{Header: make(http.Header)}
	r.SetBasicAuth(user, pass)
	return "Authorization: " + r.Header.Get("Authorization")
}

func TestTokenIsWanted(t *testing.T) {
	opts := tokenOptions(t)
	other := tokenOptions(t)
	s, logs := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, middleware.NoteOf(r.Context()).User) }, opts, "log", "auth", "allow")
	host := strings.TrimPrefix(s.URL, "http://")
	base := `Bearer realm="http://` + host + `/token",service="larder"`
	bearer := func(user string, names ...string) string {
		return "Authorization: Bearer " + issued(t, opts, user, names...)
	}
	tests := map[string]struct {
		path, header string
		status       int
		answer       string // the user, or the code
		challenge    string
	}{
		"no token, base":             {"/v2/", "", 401, "UNAUTHORIZED", base},
		"no token":                   {"/v2/a/1/x", "", 401, "UNAUTHORIZED", base + `,scope="repository:a/1:pull"`},
		"no token, other registry":   {"/v2/c/1/x?ns=ghcr.io", "", 401, "UNAUTHORIZED", base + `,scope="repository:c/1:pull"`},
		"no token, of no repository": {"/v2/odd\"path", "", 401, "UNAUTHORIZED", base},
		"token, base":                {"/v2/", bearer("alice"), 200, "alice", ""},
		"token of nobody, base":      {"/v2/", bearer(""), 200, "", ""},
		"token":                      {"/v2/a/1/x", bearer("alice", "z", "a/1"), 200, "alice", ""},
		"token of nobody":            {"/v2/a/1/x", bearer("", "a/1"), 200, "", ""},
		"token in other case":        {"/v2/a/1/x", "Authorization: bEARER  " + issued(t, opts, "alice", "a/1"), 200, "alice", ""},
		"right name at one registry": {"/v2/c/1/x?ns=ghcr.io", bearer("alice", "c/1"), 200, "alice", ""},
		"and not at another":         {"/v2/c/1/x", bearer("alice", "c/1"), 403, "DENIED", ""},
		"for another repository":     {"/v2/b/1/x", bearer("alice", "a/1"), 401, "UNAUTHORIZED", base + `,scope="repository:b/1:pull",error="insufficient_scope"`},
		"for nothing":                {"/v2/a/1/x", bearer(""), 401, "UNAUTHORIZED", base + `,scope="repository:a/1:pull",error="insufficient_scope"`},
		"for what the user may not":  {"/v2/b/1/x", bearer("", "b/1"), 403, "DENIED", ""},
		"without what he may not":    {"/v2/z/1/x", bearer("alice"), 403, "DENIED", ""},
		"with what nobody may":       {"/v2/z/1/x", bearer("alice", "z/1"), 403, "DENIED", ""},
		"forged":                     {"/v2/a/1/x", "Authorization: Bearer " + issued(t, other, "alice", "a/1"), 401, "UNAUTHORIZED", base + `,scope="repository:a/1:pull",error="invalid_token"`},
		"no token of any kind":       {"/v2/", "Authorization: Bearer hush", 401, "UNAUTHORIZED", base + `,error="invalid_token"`},
		"empty":                      {"/v2/", "Authorization: Bearer", 401, "UNAUTHORIZED", base + `,error="invalid_token"`},
		"huge":                       {"/v2/", "Authorization: Bearer " + strings.Repeat("x", 60_000), 401, "UNAUTHORIZED", base + `,error="invalid_token"`},
		"other scheme":               {"/v2/", "Authorization: Negotiate hush", 401, "UNAUTHORIZED", base},
		"password":                   {"/v2/b/1/x", basic("alice", "wonderland"), 200, "alice", ""},
		"password, for too much":     {"/v2/z/1/x", basic("alice", "wonderland"), 403, "DENIED", ""},
		"wrong password":             {"/v2/a/1/x", basic("alice", "hush"), 401, "UNAUTHORIZED", base + `,scope="repository:a/1:pull"`},
		"password can't be checked":  {"/v2/a/1/x", basic("alice", "busy"), 429, "TOOMANYREQUESTS", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var headers []string
			if test.header != "" {
				headers = append(headers, test.header)
			}
			res, body, err := get(t, s.URL+test.path, headers...)
			if err != nil {
				t.Fatal(err)
			}
			answer := body
			if test.status != 200 {
				answer = codeOf(t, body)
			}
			if res.StatusCode != test.status || answer != test.answer || res.Header.Get("WWW-Authenticate") != test.challenge {
				t.Errorf("got %d, %s, challenge %q\nwant %d, %s, %q", res.StatusCode, body, res.Header.Values("WWW-Authenticate"), test.status, test.answer, test.challenge)
			}
		})
	}
	s.Close()
	for _, line := range logs.All() {
		if text := fmt.Sprint(line.ContextMap()); strings.Contains(text, "eyJ") || strings.Contains(text, "hush") || strings.Contains(text, "xxxx") {
			t.Errorf("logged %s, want nothing of a token", text)
		}
	}
	if n := logs.FilterField(zap.String("outcome", "denied")).Len(); n != 5 {
		t.Errorf("%d lines tell of a refusal, want 5", n)
	}
}

// codeOf is the code in an error document.
func codeOf(t *testing.T, body string) string {
	t.Helper()
	var doc struct{ Errors []struct{ Code string } }
	if err := json.Unmarshal([]byte(body), &doc); err != nil || len(doc.Errors) != 1 {
		t.Fatalf("got %q, want an error document (%v)", body, err)
	}
	return doc.Errors[0].Code
}

// TestChallengeRepeatsNoOddHost sends what net/http's client would not.
func TestChallengeRepeatsNoOddHost(t *testing.T) {
	s, _ := serve(t, ok, tokenOptions(t), "auth")
	ask := func(target, host string) *http.Response {
		t.Helper()
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", target, host)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res
	}
	for _, host := range []string{"localhost:5000", "larder", "larder.example.org", "10.0.0.7:5000", "[::1]:5000", "[fd00::1]", "my_larder:5000"} {
		if got := ask("/v2/", host).Header.Get("WWW-Authenticate"); got != `Bearer realm="http://`+host+`/token",service="larder"` {
			t.Errorf("%s: challenge %q", host, got)
		}
	}
	if got := ask("http://larder:5000/v2/", "other").Header.Get("WWW-Authenticate"); got != `Bearer realm="http://larder:5000/token",service="larder"` {
		t.Errorf("absolute: challenge %q", got)
	}
	for _, host := range []string{
		`x",scope="y`, `x"`, "x\\", "x/y", "x?y", "x#y", "user@x", "user:pass@x", "x y", "x,y", "x;y", "x%22", "x:port", "x:", "x:123456", "[::1", "::1", "[::1]x", "-x", ".x",
		"ä", "x\ty", "", strings.Repeat("x", 300),
	} {
		if res := ask("/v2/", host); res.StatusCode != 400 || res.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%q: got %s, challenge %q", host, res.Status, res.Header.Get("WWW-Authenticate"))
		}
	}
}

func TestChallengeOverTLS(t *testing.T) {
	chained, err := middleware.Builtin().Chain(http.HandlerFunc(ok), tokenOptions(t), "auth")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(chained)
	defer s.Close()
	res, err := s.Client().Get(s.URL + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := res.Header.Get("WWW-Authenticate"); got != `Bearer realm="`+s.URL+`/token",service="larder"` {
		t.Errorf("challenge %q", got)
	}
}

func TestTokensAreGivenOut(t *testing.T) {
	const signIn = `Basic realm="larder", charset="UTF-8"`
	tests := map[string]struct {
		anonymous   bool
		query, auth string
		status      int
		user        string
		covers      string // the names of what is asked for that it is good for
	}{
		"right password":          {false, "service=larder&scope=repository:b/1:pull&account=alice&client_id=x&offline_token=true", basic("alice", "wonderland"), 200, "alice", "b/1"},
		"no scope: docker login":  {false, "service=larder", basic("alice", "wonderland"), 200, "alice", ""},
		"no parameters":           {false, "", basic("alice", "wonderland"), 200, "alice", ""},
		"list":                    {false, "scope=repository:b/1:pull+repository:a/1:pull,push&scope=repository:c/1:pull", basic("alice", "wonderland"), 200, "alice", "a/1 b/1 c/1"},
		"some of it":              {false, "scope=repository:z/1:pull&scope=repository:b/1:pull", basic("alice", "wonderland"), 200, "alice", "b/1"},
		"push and catalog":        {false, "scope=repository:b/1:push&scope=repository:b/2:*&scope=registry:catalog:*", basic("alice", "wonderland"), 200, "alice", ""},
		"wrong password":          {false, "scope=repository:b/1:pull", basic("alice", "hush"), 401, "", ""},
		"unknown user":            {false, "scope=repository:b/1:pull", basic("mallory", "wonderland"), 401, "", ""},
		"no password":             {false, "scope=repository:a/1:pull", "", 401, "", ""},
		"busy":                    {false, "", basic("alice", "busy"), 429, "", ""},
		"anonymous":               {true, "scope=repository:b/1:pull&scope=repository:a/1:pull", "", 200, "", "a/1"},
		"anonymous or alice":      {true, "scope=repository:b/1:pull&scope=repository:a/1:pull", basic("alice", "wonderland"), 200, "alice", "a/1 b/1"},
		"not anonymous but wrong": {true, "scope=repository:a/1:pull", basic("alice", "hush"), 401, "", ""},
		"nor garbled":             {true, "scope=repository:a/1:pull", "Authorization: Basic hush", 401, "", ""},
		"nor something else":      {true, "scope=repository:a/1:pull", "Authorization: Bearer hush", 401, "", ""},
		"other service":           {false, "service=registry.example", basic("alice", "wonderland"), 400, "", ""},
		"one of two services":     {false, "service=larder&service=x", basic("alice", "wonderland"), 400, "", ""},
		"odd query":               {false, "scope=%zz", basic("alice", "wonderland"), 400, "", ""},
		"too many scopes":         {false, manyScopes(100), basic("alice", "wonderland"), 400, "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			opts := tokenOptions(t)
			opts.Tokens.Anonymous = test.anonymous
			s, logs := serve(t, ok, opts, "log", "auth", "allow", "readonly")
			var headers []string
			if test.auth != "" {
				headers = append(headers, test.auth)
			}
			res, body, err := get(t, s.URL+"/token?"+test.query, headers...)
			if err != nil || res.StatusCode != test.status {
				t.Fatalf("got %v with %s, %v; want %d", res, body, err, test.status)
			}
			if got := res.Header.Get("WWW-Authenticate"); (got == signIn) != (test.status == 401) {
				t.Errorf("challenge %q", got)
			}
			s.Close()
			if line := logs.All()[0].ContextMap(); test.status == 200 && test.user != "" && line["user"] != test.user || line["path"] != "/token" {
				t.Errorf("logged %v", line)
			}
			if test.status != 200 {
				codeOf(t, body)
				return
			}
			if got := res.Header.Get("Content-Type") + res.Header.Get("Cache-Control"); got != "application/jsonno-store" {
				t.Errorf("headers %v", res.Header)
			}
			wantToken(t, opts, body, test.user, test.covers)
		})
	}
}

func manyScopes(n int) string {
	q := make(url.Values)
	for i := range n {
		q.Add("scope", token.Scope(fmt.Sprint("a/", i)))
	}
	return q.Encode()
}

func wantToken(t *testing.T, opts middleware.Options, body, user, covers string) {
	t.Helper()
	var answer struct {
		Token    string
		Access   string `json:"access_token"`
		Lifetime int    `json:"expires_in"`
		Issued   string `json:"issued_at"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("got %s: %v", body, err)
	}
	at, err := time.Parse(time.RFC3339, answer.Issued)
	if err != nil || time.Since(at).Abs() > time.Minute || answer.Lifetime != 300 || answer.Token != answer.Access {
		t.Errorf("got %s (%v)", body, err)
	}
	grant, err := opts.Tokens.Authority.Verify(answer.Token)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range []string{"a/1", "b/1", "b/2", "c/1", "z/1", "catalog"} {
		if grant.Covers(name) {
			got = append(got, name)
		}
	}
	if strings.Join(got, " ") != covers || grant.User != user {
		t.Errorf("the token is %q's and covers %q, want %q and %q", grant.User, got, user, covers)
	}
}

// TestTokensAreForGET is what containerd relies on: it tries OAuth's POST first,
// and takes a 405 for "not here".
func TestTokensAreForGET(t *testing.T) {
	opts := tokenOptions(t)
	opts.Tokens.Anonymous = true
	s, _ := serve(t, ok, opts, "auth", "readonly")
	for _, method := range []string{"POST", "HEAD", "PUT", "DELETE", "OPTIONS"} {
		body := strings.NewReader("grant_type=password&username=alice&password=wonderland&service=larder&client_id=x")
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/token", body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 405 || res.Header.Get("Allow") != "GET" {
			t.Errorf("%s: got %s, Allow %q", method, res.Status, res.Header.Get("Allow"))
		}
	}
	plain, _ := serve(t, ok, middleware.Options{Identify: identified, Verify: everybody}, "auth")
	if _, body, err := get(t, plain.URL+"/token", basic("a", "b")); err != nil || body != "fine" {
		t.Errorf("without tokens, /token is not left to the handler: %q, %v", body, err)
	}
}

// TestTokenExpires runs the protocol as a client does, in the time of a bubble.
func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chained, err := middleware.Builtin().Chain(http.HandlerFunc(ok), tokenOptions(t), "auth", "allow")
		if err != nil {
			t.Fatal(err)
		}
		ask := func(path, authorization string) *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(t.Context(), "GET", "http://larder:5000"+path, nil)
			_, value, _ := strings.Cut(authorization, ": ")
			r.Header.Set("Authorization", value)
			w := httptest.NewRecorder()
			chained.ServeHTTP(w, r)
			return w
		}
		var answer struct{ Token string }
		if err := json.Unmarshal(ask("/token?scope=repository:b/1:pull", basic("alice", "wonderland")).Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if w := ask("/v2/b/1/x", "Authorization: Bearer "+answer.Token); w.Code != 200 {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			time.Sleep(token.Lifetime - time.Second)
		}
		w := ask("/v2/b/1/x", "Authorization: Bearer "+answer.Token)
		if got := w.Header().Get("WWW-Authenticate"); w.Code != 401 || !strings.HasSuffix(got, `,scope="repository:b/1:pull",error="invalid_token"`) {
			t.Errorf("after its time: got %d, challenge %q", w.Code, got)
		}
	})
}

func TestTokensTakeIdentification(t *testing.T) {
	opts := tokenOptions(t)
	opts.Identify = nil
	if _, err := middleware.Builtin().Get("auth", opts); err == nil {
		t.Error("tokens are taken without anybody who says what they have to be good for")
	}
}
