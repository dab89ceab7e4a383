package upstreamtest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// token asks for one as this Authorization, "" for none.
func token(t *testing.T, r *Registry, authorization string, scopes ...string) (bearer string, a answer) {
	t.Helper()
	query := url.Values{"service": {r.host}, "scope": scopes}
	a = get(t, r, "/token?"+query.Encode(), "Authorization", authorization)
	var body struct {
		Token     string
		ExpiresIn int `json:"expires_in"`
	}
	json.Unmarshal(a.body, &body)
	return "Bearer " + body.Token, a
}

func TestBasic(t *testing.T) {
	r, path := withBlob(t)
	r.RequireBasic("me", "secret")
	get(t, r, path, "Authorization", basic("me", "secret")).want(t, http.StatusOK, blobData)
	for _, authorization := range []string{"", basic("me", "wrong"), basic("you", "secret"), "Bearer x"} {
		a := get(t, r, path, "Authorization", authorization)
		if a.StatusCode != http.StatusUnauthorized || a.code() != "UNAUTHORIZED" {
			t.Errorf("%q: got %d, want 401", authorization, a.StatusCode)
		}
		a.wantHeader(t, "WWW-Authenticate", `Basic realm="upstreamtest"`)
	}
	if a := get(t, r, "/v2/"); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("ping: got %d, want 401", a.StatusCode)
	}
}

func TestBearer(t *testing.T) {
	r, path := withBlob(t)
	r.RequireBearer("me", "secret", time.Hour)
	challenge := `Bearer realm="` + r.URL + `/token",service="` + r.host + `"`
	get(t, r, "/v2/").wantHeader(t, "WWW-Authenticate", challenge)
	challenge += `,scope="repository:library/alpine:pull"`
	get(t, r, path).wantHeader(t, "WWW-Authenticate", challenge)

	good, _ := token(t, r, basic("me", "secret"), "repository:other:pull repository:library/alpine:push,pull")
	get(t, r, path, "Authorization", good).want(t, http.StatusOK, blobData)
	other, _ := token(t, r, basic("me", "secret"), "repository:other:pull")
	get(t, r, path, "Authorization", other).wantHeader(t, "WWW-Authenticate", challenge+`,error="insufficient_scope"`)
	get(t, r, "/v2/", "Authorization", other).want(t, http.StatusOK, []byte("{}"))
	get(t, r, path, "Authorization", "Bearer made-up").wantHeader(t, "WWW-Authenticate", challenge+`,error="invalid_token"`)

	r.ExpireTokens()
	get(t, r, path, "Authorization", good).wantHeader(t, "WWW-Authenticate", challenge+`,error="invalid_token"`)
	if n := r.Count("GET", "/token"); n != 2 {
		t.Errorf("got %d token requests, want 2", n)
	}
}

func TestTokenRefused(t *testing.T) {
	r := New(t)
	r.RequireBearer("me", "secret", time.Hour)
	for _, authorization := range []string{"", basic("me", "wrong")} {
		if _, a := token(t, r, authorization); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("as %q: got %d, want 401", authorization, a.StatusCode)
		}
	}
	for _, scope := range []string{"repository:a:push", "registry:catalog:*", "a"} {
		if _, a := token(t, r, basic("me", "secret"), scope); a.StatusCode != http.StatusBadRequest {
			t.Errorf("scope %q: got %d, want 400", scope, a.StatusCode)
		}
	}
	a := get(t, r, "/token?service=other", "Authorization", basic("me", "secret"))
	if a.StatusCode != http.StatusBadRequest {
		t.Errorf("another service: got %d, want 400", a.StatusCode)
	}
}

func TestAnonymousToken(t *testing.T) {
	r, path := withBlob(t)
	r.RequireBearer("", "", 0)
	bearer, _ := token(t, r, "", "repository:library/alpine:pull")
	get(t, r, path, "Authorization", bearer).want(t, http.StatusOK, blobData)
	r.Fault(Match{Path: "/token"}, Status(http.StatusTeapot, nil))
	if _, a := token(t, r, ""); a.StatusCode != http.StatusTeapot {
		t.Errorf("with a fault on /token: got %d, want 418", a.StatusCode)
	}
}

func TestTokenLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewPipe(t)
		r.RequireBearer("", "", time.Minute)
		bearer, a := token(t, r, "")
		if want := `"expires_in":60`; !jsonHas(a.body, "expires_in", 60.0) {
			t.Errorf("got %s, want %s", a.body, want)
		}
		time.Sleep(time.Minute - time.Nanosecond)
		if a := get(t, r, "/v2/", "Authorization", bearer); a.StatusCode != http.StatusOK {
			t.Errorf("before it expires: got %d", a.StatusCode)
		}
		time.Sleep(time.Nanosecond)
		if a := get(t, r, "/v2/", "Authorization", bearer); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("when it expires: got %d, want 401", a.StatusCode)
		}
	})
}

func jsonHas(body []byte, key string, want any) bool {
	var m map[string]any
	return json.Unmarshal(body, &m) == nil && m[key] == want
}
