package admin_test

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"larder/handler/admin"
)

// browse sends a request with these headers, of which Host is one.
func browse(t *testing.T, server *httptest.Server, method, path string, header map[string]string, form url.Values) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range header {
		req.Header.Set(name, strings.ReplaceAll(value, "SELF", req.Host))
	}
	if host := header["Host"]; host != "" {
		req.Host = host
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestGuard(t *testing.T) {
	l := newLarder(t) // knows example.com
	server := httptest.NewServer(l.admin)
	t.Cleanup(server.Close)
	navigation := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
	with := func(base map[string]string, more ...string) map[string]string {
		header := make(map[string]string)
		maps.Copy(header, base)
		for i := 0; i < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return header
	}
	for name, test := range map[string]struct {
		method string // GET
		header map[string]string
		status int
	}{
		"curl":                         {"", nil, 200},
		"a kubelet":                    {"", with(nil, "Host", "10.1.2.3:5001"), 200},
		"IPv6":                         {"", with(nil, "Host", "[fd00::1]:5001"), 200},
		"IPv6 with a zone":             {"", with(nil, "Host", "[fe80::1%25eth0]:5001"), 200},
		"localhost":                    {"", with(nil, "Host", "LocalHost:80"), 200},
		"a name below localhost":       {"", with(nil, "Host", "larder.localhost"), 200},
		"a listed name":                {"", with(nil, "Host", "Example.com:5001"), 200},
		"a listed name with a dot":     {"", with(nil, "Host", "example.com."), 200},
		"another name":                 {"", with(nil, "Host", "evil.example"), 403},
		"a name like localhost":        {"", with(nil, "Host", "localhost.evil.example"), 403},
		"a name like an address":       {"", with(nil, "Host", "127.0.0.1.evil.example"), 403},
		"below a listed name":          {"", with(nil, "Host", "evil.example.com"), 403},
		"notlocalhost":                 {"", with(nil, "Host", "notlocalhost"), 403},
		"rebound, as its own origin":   {"", with(nil, "Host", "evil.example", "Origin", "http://evil.example", "Sec-Fetch-Site", "same-origin"), 403},
		"its own page":                 {"", with(nil, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"), 200},
		"its own page, by origin":      {"", with(nil, "Origin", "http://SELF"), 200},
		"behind a proxy with TLS":      {"", with(nil, "Host", "example.com", "Origin", "https://example.com"), 200},
		"typed in":                     {"", with(nil, "Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"), 200},
		"a link elsewhere to no page":  {"", navigation, 403},
		"a fetch elsewhere":            {"", with(nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors", "Origin", "http://evil.example"), 403},
		"a fetch without an origin":    {"", with(nil, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"), 403},
		"another port of this machine": {"", with(nil, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"), 403},
		"an older browser":             {"", with(nil, "Origin", "http://evil.example"), 403},
		"a sandboxed frame":            {"", with(nil, "Origin", "null"), 403},
		"the same host, another port":  {"", with(nil, "Origin", "http://127.0.0.1:1"), 403},
		"no URL at all":                {"", with(nil, "Origin", "http://%zz"), 403},
		"a form elsewhere":             {"POST", with(navigation, "Origin", "http://evil.example"), 403},
		"a form elsewhere, older":      {"POST", with(navigation), 403},
		"its own page, no token":       {"POST", with(nil, "Sec-Fetch-Site", "same-origin", "Origin", "http://SELF"), 403},
		"its own page, wrong token":    {"POST", with(nil, "Sec-Fetch-Site", "same-origin", "X-Csrf-Token", "guessed"), 403},
		"curl posts":                   {"POST", nil, 405},
		"curl posts by a name":         {"POST", with(nil, "Host", "evil.example"), 403},
	} {
		t.Run(name, func(t *testing.T) {
			method := test.method
			if method == "" {
				method = "GET"
			}
			for _, path := range []string{"/healthz", "/metrics"} {
				if resp, body := browse(t, server, method, path, test.header, nil); resp.StatusCode != test.status {
					t.Errorf("%s: got %s with %s, want %d", path, resp.Status, body, test.status)
				}
			}
		})
	}
}

// TestLinksLeadToPages of other sites, that is, and not in frames.
func TestLinksLeadToPages(t *testing.T) {
	l := running(t)
	server := httptest.NewServer(l.admin)
	t.Cleanup(server.Close)
	link := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
	frame := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
	for path, status := range map[string]int{
		"/": 200, "/images?q=app": 200, "/images/": 403, "/cache": 403, "/warm": 403, "/doctor": 403, "/debug/pprof/profile?seconds=60": 403, "/debug/pprof/": 403,
	} {
		if resp, body := browse(t, server, "GET", path, link, nil); resp.StatusCode != status {
			t.Errorf("a link to %s: got %s with %s, want %d", path, resp.Status, body, status)
		}
		if resp, body := browse(t, server, "GET", path, frame, nil); resp.StatusCode != http.StatusForbidden {
			t.Errorf("a frame of %s: got %s with %s", path, resp.Status, body)
		}
	}
}

// TestEveryAnswerHasAPolicy so that no HTML of anybody's, as Go's own of the profiles, is without one.
func TestEveryAnswerHasAPolicy(t *testing.T) {
	l := running(t)
	server := httptest.NewServer(l.admin)
	t.Cleanup(server.Close)
	for _, path := range []string{"/", "/images", "/cache", "/nowhere", "/debug/pprof", "/debug/pprof/", "/healthz", "/metrics", "//x/"} {
		for _, host := range []string{"", "evil.example"} {
			resp, _ := browse(t, server, "GET", path, map[string]string{"Host": host}, nil)
			got := resp.Header.Get("Content-Security-Policy")
			if !strings.HasPrefix(got, "default-src 'none'; ") || !strings.Contains(got, "frame-ancestors 'none'") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s of %q, %s: %v", path, host, resp.Status, resp.Header)
			}
		}
	}
}

// running is a larder whose caches know what is on disk, and whose pages are live.
func running(t *testing.T) *larder {
	t.Helper()
	l := newLarder(t)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = l.blobs.Run(ctx) })
	all.Go(func() { _ = l.manifests.Run(ctx) })
	all.Go(func() { l.admin.Run(ctx) })
	t.Cleanup(all.Wait)
	t.Cleanup(cancel)
	return l
}

// policy is what keeps a page from running what somebody has smuggled into it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

func TestAnswersToBrowsersAreSecure(t *testing.T) {
	l := running(t)
	server := httptest.NewServer(l.admin)
	t.Cleanup(server.Close)
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/images": "text/html; charset=utf-8", "/images?q=<script>&sort=x": "text/html; charset=utf-8",
		"/static/style.css": "text/css; charset=utf-8", "/static/live.js": "text/javascript; charset=utf-8",
	} {
		resp, body := browse(t, server, "GET", strings.ReplaceAll(path, "<", "%3C"), nil, nil)
		for name, want := range map[string]string{
			"Content-Type": contentType, "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if inline := regexp.MustCompile(`(?i)<script(>| [^s])|\son\w+=|\sstyle=|javascript:`).FindString(body); contentType[:9] == "text/html" && inline != "" {
			t.Errorf("%s: %q is in the page", path, inline)
		}
		if !strings.HasPrefix(path, "/static/") {
			continue
		}
		if again, _ := browse(t, server, "GET", path, map[string]string{"If-None-Match": resp.Header.Get("ETag")}, nil); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: got %s", path, again.Status)
		}
	}
}

// tokenIn is what a page's forms show.
func tokenIn(t *testing.T, page string) string {
	t.Helper()
	m := regexp.MustCompile(`name="token" value="([A-Z2-7]{26})"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no token is in the page: %s", page)
	}
	return m[1]
}

func TestButtonsNeedTheToken(t *testing.T) {
	l := running(t)
	img := l.hub.AddImage("library/app", "1", []byte("layer"))
	if w := ask(l.registry, "GET", "/v2/library/app/manifests/1"); w.Code != http.StatusOK {
		t.Fatal(w.Code)
	}
	server := httptest.NewServer(l.admin)
	t.Cleanup(server.Close)
	_, page := browse(t, server, "GET", "/images", nil, nil)
	token := tokenIn(t, page)
	own := map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://SELF"}
	reference := "docker.io/library/app:1"
	for name, form := range map[string]url.Values{
		"none":                     {"reference": {reference}},
		"empty":                    {"reference": {reference}, "token": {""}},
		"another":                  {"reference": {reference}, "token": {strings.Repeat("A", 26)}},
		"in the query, not a form": nil,
		"too large a form":         {"reference": {reference}, "q": {strings.Repeat("x", 70<<10)}, "token": {token}},
	} {
		for _, header := range []map[string]string{nil, own} {
			for _, action := range []string{"delete", "refresh"} {
				resp, body := browse(t, server, "POST", "/images/"+action+"?token="+token+"&reference="+reference, header, form)
				if resp.StatusCode != http.StatusForbidden {
					t.Errorf("%s: %s with %s token: got %s with %s", action, header, name, resp.Status, body)
				}
			}
		}
	}
	if w := ask(l.admin, "GET", "/cache/app:1"); w.Code != http.StatusOK || l.hub.Count("HEAD", "/manifests/1") != 1 {
		t.Errorf("something was done: %d", w.Code)
	}
	resp, _ := browse(t, server, "POST", "/images/delete", own, url.Values{"reference": {reference}, "token": {token}, "q": {"a&b"}})
	location := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(location, "/images?q=a%26b&said=") {
		t.Fatalf("got %s to %s", resp.Status, location)
	}
	if _, page := browse(t, server, "GET", location, own, nil); !strings.Contains(page, reference+" is removed: 1 tags, 1 manifests") {
		t.Errorf("the page says %s", page)
	}
	if w := ask(l.admin, "GET", "/cache/app:1"); w.Code != http.StatusNotFound {
		t.Errorf("%s is there still: %d", img.Manifest, w.Code)
	}
	for reference, why := range map[string]string{
		"":                                 "not a reference like",
		"docker.io/library/app:1":          "not in the cache",
		"<img src=x onerror=alert(1)>":     "invalid repository name",
		"docker.io/library/../../etc":      "invalid repository name",
		"docker.io/library/app:1@sha256:1": "not a reference like",
	} {
		resp, _ := browse(t, server, "POST", "/images/delete", own, url.Values{"reference": {reference}, "token": {token}})
		if _, page := browse(t, server, "GET", resp.Header.Get("Location"), own, nil); !strings.Contains(page, why) || strings.Contains(page, "<img") {
			t.Errorf("%q: the page says %s", reference, page)
		}
	}
}

// TestPinsHaveAButton, but for what the configuration pins.
func TestPinsHaveAButton(t *testing.T) {
	l := running(t)
	for _, tag := range []string{"1", "kept"} {
		l.hub.AddImage("library/app", tag, []byte("layer"+tag))
		if w := ask(l.registry, "GET", "/v2/library/app/manifests/"+tag); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
	}
	server := httptest.NewServer(admin.New(l.config))
	t.Cleanup(server.Close)
	for _, step := range []struct {
		word, said string
		pinned     bool
	}{{"Pin", "is pinned.", true}, {"Unpin", "is not pinned any more.", false}} {
		_, page := browse(t, server, "GET", "/images", nil, nil)
		if !strings.Contains(page, `aria-label="`+step.word+` docker.io/library/app:1"`) || strings.Contains(page, `in docker.io/library/app:kept"`) || strings.Count(page, "pinned by LARDER_PIN") != 1 {
			t.Errorf("want %s: %s", step.word, page)
		}
		value := regexp.MustCompile(`name="pinned" value="(\w+)"`).FindStringSubmatch(page)[1]
		form := url.Values{"reference": {"docker.io/library/app:1"}, "token": {tokenIn(t, page)}, "pinned": {value}}
		resp, _ := browse(t, server, "POST", "/images/pin", nil, form)
		if _, page := browse(t, server, "GET", resp.Header.Get("Location"), nil, nil); !strings.Contains(page, step.said) {
			t.Errorf("%s: %s", step.word, page)
		}
		if byHand, _ := l.manifests.Pinned("docker.io/library/app", "1"); byHand != step.pinned {
			t.Errorf("%s: pinned %v", step.word, byHand)
		}
	}
}
