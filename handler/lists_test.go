package handler_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

const ociIndex = "application/vnd.oci.image.index.v1+json"

// wantWarned checks that an old answer says that it is one, of so many seconds or a
// few more, which have passed meanwhile.
func wantWarned(t *testing.T, a answer, age int) {
	t.Helper()
	wantOutcome(t, a, "stale")
	if got, err := strconv.Atoi(a.Header.Get("Age")); err != nil || got < age || got > age+5 {
		t.Errorf("Age is %q, want %d", a.Header.Get("Age"), age)
	}
	if got := a.Header.Get("Warning"); !strings.HasPrefix(got, `299 - "docker.io can't be asked`) {
		t.Errorf("Warning is %q", got)
	}
}

// listsOf are a repository's lists: with filters, on pages, and of signatures.
func listsOf(t *testing.T, l *larder) (paths []string, img upstreamtest.Image) {
	t.Helper()
	img = l.hub.AddImage("a/b", "1", random(t, 1, 100))
	l.hub.AddManifest("a/b", "2", ociManifest, []byte("{}"))
	addReferrers(l.hub, img.Manifest)
	l.hub.EnableSignatures()
	l.hub.AddSignature("a/b", img.Manifest, []byte("signed"))
	referrers := "/v2/a/b/referrers/" + img.Manifest.String()
	return []string{
		"/v2/a/b/tags/list", "/v2/a/b/tags/list?n=1", "/v2/a/b/tags/list?last=1&n=1", "/v2/a/b/tags/list?n=1&ns=docker.io",
		referrers, referrers + "?artifactType=application%2Fx.signature", "/v2/a/b/referrers/" + nobodys.String(),
		"/extensions/v2/a/b/signatures/" + img.Manifest.String(),
	}, img
}

func TestListsAreServedStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true, listTTL: time.Minute})
		paths, _ := listsOf(t, l)
		cold := make(map[string]answer)
		for _, path := range paths {
			cold[path] = l.record(t.Context(), "GET", path)
			cold[path].wantBody(t, http.StatusOK, cold[path].body)
			cold[path].want(t, "Warning", "")
		}
		check := func(outcome string, age int) {
			t.Helper()
			for _, path := range paths {
				get := l.record(t.Context(), "GET", path)
				get.wantBody(t, http.StatusOK, cold[path].body)
				for _, name := range []string{"Content-Type", "Link", "OCI-Filters-Applied"} {
					get.want(t, name, cold[path].Header.Get(name))
				}
				if outcome == "stale" {
					wantWarned(t, get, age)
				} else {
					wantOutcome(t, get, outcome)
				}
				wantParity(t, get, l.record(t.Context(), "HEAD", path))
			}
		}
		l.hub.Reset()
		check("hit", 0)
		if n := len(l.hub.Requests()); n != 0 {
			t.Errorf("upstream was asked %d times for what is fresh", n)
		}
		l.hub.Stop()
		time.Sleep(time.Minute)
		for range 5 { // until upstream is left alone, and nothing takes time
			l.record(t.Context(), "GET", "/v2/a/c/tags/list").wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		}
		check("stale", 61)
		l.record(t.Context(), "GET", "/v2/a/b/tags/list?n=9").wantError(t, http.StatusBadGateway, "UNAVAILABLE")
	})
}

func TestListAgainFromUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true, listTTL: time.Minute})
		paths, _ := listsOf(t, l)
		tags := func() string { return strings.Join(tagsOf(t, l.record(t.Context(), "GET", paths[0])), " ") }
		if got := tags(); got != "1 2" {
			t.Errorf("got tags %s", got)
		}
		l.hub.AddManifest("a/b", "3", ociManifest, []byte("{}"))
		if got := tags(); got != "1 2" {
			t.Errorf("got tags %s though a minute has not passed", got)
		}
		time.Sleep(time.Minute)
		if got := tags(); got != "1 2 3" {
			t.Errorf("got tags %s after a minute", got)
		}
		time.Sleep(time.Minute)
		l.hub.Stop()
		stale := l.record(t.Context(), "GET", paths[0])
		if got := strings.Join(tagsOf(t, stale), " "); got != "1 2 3" {
			t.Errorf("got tags %s when upstream is gone", got)
		}
		wantOutcome(t, stale, "stale")
	})
}

// What somebody in between says is neither passed on nor kept.
func TestLoginPageIsNoList(t *testing.T) {
	l := newLarder(t, setup{})
	paths, _ := listsOf(t, l)
	for _, path := range paths {
		good := l.ask(t, "GET", path)
		remove := l.hub.Fault(upstreamtest.Match{}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>log in")) })
		})
		stale := l.ask(t, "GET", path)
		stale.wantBody(t, http.StatusOK, good.body)
		wantWarned(t, stale, 0)
		remove()
		wantOutcome(t, l.ask(t, "GET", path), "miss")
	}
}

// Revoked is revoked, deleted is deleted, for lists as well.
func TestRevokedListIsNotStale(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			l := newLarder(t, setup{})
			paths, _ := listsOf(t, l)
			for _, path := range paths {
				l.ask(t, "GET", path)
			}
			l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(status, nil))
			for _, path := range paths {
				if a := l.ask(t, "GET", path); a.StatusCode != map[bool]int{true: 404, false: 403}[status == 404] {
					t.Errorf("%s: status %d", path, a.StatusCode)
				}
			}
			l.hub.Stop()
			for _, path := range paths {
				l.ask(t, "GET", path).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
			}
		})
	}
}

// A no to the tags is one to the repository, whatever else was listed of it.
func TestNoToTheTagsEndsAllLists(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			l := newLarder(t, setup{})
			paths, _ := listsOf(t, l)
			for _, path := range paths {
				l.ask(t, "GET", path)
			}
			l.hub.Fault(upstreamtest.Match{Path: "/tags/list"}, upstreamtest.Status(status, nil))
			l.ask(t, "GET", paths[1])
			l.hub.Stop()
			for _, path := range paths {
				l.ask(t, "GET", path).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
			}
		})
	}
}

// Without the referrers API, clients find an index of referrers by a tag. Whether
// upstream is there or not, they are led to it if it is known.
func TestFallbackTagOffline(t *testing.T) {
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		t.Run(string(algorithm), func(t *testing.T) {
			l := newLarder(t, setup{})
			subject := l.hub.AddManifestWith(algorithm, "a/b", "1", ociManifest, []byte(`{"schemaVersion":2}`))
			tag := string(algorithm) + "-" + subject.Encoded()[:64]
			index := []byte(`{"schemaVersion":2,"manifests":[]}`)
			l.hub.AddManifest("a/b", tag, ociIndex, index)
			referrers := "/v2/a/b/referrers/" + subject.String()

			l.ask(t, "GET", referrers).wantError(t, http.StatusNotFound, "UNSUPPORTED")
			wantManifest(t, l.ask(t, "GET", manifestPath("a/b", tag)), ociIndex, index, "miss")
			l.ask(t, "GET", manifestPath("a/b", "sha256-"+nobodys.Encoded())).wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")

			l.hub.Stop()
			message := l.ask(t, "GET", referrers).wantError(t, http.StatusNotFound, "UNSUPPORTED")
			if !strings.Contains(message, tag) {
				t.Errorf("message %q does not say where to look", message)
			}
			wantManifest(t, l.ask(t, "GET", manifestPath("a/b", tag)), ociIndex, index, "stale")
			// Nothing is known of others, and an outage must not look like an image
			// that nobody has signed.
			l.ask(t, "GET", "/v2/a/b/referrers/"+nobodys.String()).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
			l.ask(t, "GET", "/v2/a/c/referrers/"+subject.String()).wantError(t, http.StatusBadGateway, "UNAVAILABLE")

			// When the tag has gone, so has the hint.
			l.hub.Start()
			l.hub.Delete("a/b", tag)
			l.ask(t, "GET", manifestPath("a/b", tag)).wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
			l.hub.Stop()
			l.ask(t, "GET", referrers).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		})
	}
}

func TestSignatureExtension(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 100))
	l.hub.AddSignature("a/b", img.Manifest, []byte("signed"))
	path := "/extensions/v2/a/b/signatures/" + img.Manifest.String()

	// Not announced: not asked for.
	l.ask(t, "GET", path).wantError(t, http.StatusNotFound, "UNSUPPORTED")
	if n := l.hub.Count("", "/extensions/"); n != 0 {
		t.Errorf("upstream was asked %d times for what it has not announced", n)
	}
	tests := map[string]struct {
		path   string
		status int
		code   string
	}{
		"no digest":       {"/extensions/v2/a/b/signatures/1", 400, "DIGEST_INVALID"},
		"no name":         {"/extensions/v2/signatures/" + nobodys.String(), 404, "UNSUPPORTED"},
		"bad name":        {"/extensions/v2/A/signatures/" + nobodys.String(), 400, "NAME_INVALID"},
		"nothing":         {"/extensions/v2/", 404, "UNSUPPORTED"},
		"less":            {"/extensions/v2", 404, "UNSUPPORTED"},
		"not there":       {"/extensions/v2/a/b/manifests/1", 404, "UNSUPPORTED"},
		"not under v2":    {"/v2/a/b/signatures/" + nobodys.String(), 404, "UNSUPPORTED"},
		"not listed":      {"/extensions/v2/quay.io/a/signatures/" + nobodys.String(), 404, "NAME_UNKNOWN"},
		"another version": {"/extensions/v3/a/b/signatures/" + nobodys.String(), 404, "UNSUPPORTED"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { l.ask(t, "GET", test.path).wantError(t, test.status, test.code) })
	}

	l = newLarder(t, setup{})
	l.hub.AddImage("a/b", "1", random(t, 1, 100))
	l.hub.AddSignature("a/b", img.Manifest, []byte("signed"))
	l.hub.EnableSignatures()
	l.ghcr.EnableSignatures()
	get := l.ask(t, "GET", path)
	var list struct {
		Signatures []struct{ Content []byte }
	}
	if err := json.Unmarshal(get.body, &list); err != nil || get.StatusCode != 200 || len(list.Signatures) != 1 || string(list.Signatures[0].Content) != "signed" {
		t.Errorf("got %d %s, %v", get.StatusCode, get.body, err)
	}
	get.want(t, "Content-Type", "application/json")
	wantOutcome(t, get, "miss")
	wantParity(t, l.ask(t, "GET", path), l.ask(t, "HEAD", path))
	l.ask(t, "GET", "/extensions/v2/a/b/signatures/"+nobodys.String()).wantError(t, http.StatusNotFound, "UNSUPPORTED")
	l.ask(t, "GET", "/extensions/v2/ghcr.io/a/b/signatures/"+nobodys.String()).wantError(t, http.StatusNotFound, "UNSUPPORTED")
	if n := l.ghcr.Count("GET", "/extensions/v2/a/b/signatures/"); n != 1 {
		t.Errorf("ghcr.io was asked %d times, want once", n)
	}
	// There are two registries behind this one.
	l.ask(t, "GET", "/v2/").want(t, "X-Registry-Supports-Signatures", "")
	l.hub.Stop()
	stale := l.ask(t, "GET", path)
	stale.wantBody(t, http.StatusOK, get.body)
	wantOutcome(t, stale, "stale")
}

// larder speaks for its one upstream, once it knows what that says.
func TestSignaturesAreAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true}) // docker.io alone
		l.record(t.Context(), "GET", "/v2/").want(t, "X-Registry-Supports-Signatures", "")
		l.hub.EnableSignatures()
		l.record(t.Context(), "GET", "/v2/a/b/tags/list")
		for _, method := range []string{"GET", "HEAD"} {
			l.record(t.Context(), method, "/v2/").want(t, "X-Registry-Supports-Signatures", "1")
		}
	})
}

// The digest of a signed manifest is that of what was signed.
func TestSchema1(t *testing.T) {
	const payload = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a/b\",\n   \"fsLayers\": []\n}"
	tail := strings.LastIndex(payload, "\n}")
	protected := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":"Cn0"}`, tail)) // "\n}"
	signed := payload[:tail] + `,"signatures":[{"protected":"` + protected + `"}]` + payload[tail:]
	const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := algorithm.FromString(payload)
		l := newLarder(t, setup{})
		l.hub.AddManifestAs("a/b", "1", d, mediaType, []byte(signed))
		references := []string{"1", d.String()}
		for _, phase := range []string{"cold", "warm", "offline"} {
			if phase == "offline" {
				l.hub.Stop()
			}
			for _, reference := range references {
				a := l.ask(t, "GET", manifestPath("a/b", reference))
				a.wantBody(t, http.StatusOK, []byte(signed))
				a.want(t, "Content-Type", mediaType)
				a.want(t, "Docker-Content-Digest", d.String())
				wantParity(t, l.ask(t, "GET", manifestPath("a/b", reference)), l.ask(t, "HEAD", manifestPath("a/b", reference)))
			}
			slices.Reverse(references)
		}
		l.hub.Start()
		for _, wrong := range []string{strings.Replace(signed, "a/b", "a/c", 1), strings.Replace(signed, `"signatures"`, `"fsLayers":[{}],"signatures"`, 1)} {
			l.hub.AddManifestAs("a/b", "2", digest.FromString(payload+"x"), mediaType, []byte(wrong))
			l.ask(t, "GET", manifestPath("a/b", "2")).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		}
	}
}
