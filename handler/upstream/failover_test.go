package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// mirrored is a registry at two URLs, a mirror's and its own, with the same in
// both.
func mirrored(t *testing.T, cfg upstream.Config) (mirror, origin *upstreamtest.Registry, c *upstream.Client) {
	t.Helper()
	mirror, origin = upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
	fill(mirror)
	fill(origin)
	cfg.Transport = network(t, map[string]*upstreamtest.Registry{"mirror.example:80": mirror, host + ":80": origin})
	return mirror, origin, newClient(t, "http://mirror.example|http://"+host, cfg)
}

func TestFirstPlaceIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mirror, origin, c := mirrored(t, upstream.Config{})
		askAll(t, repository(t, c))
		if n := len(origin.Requests()); n != 0 || len(mirror.Requests()) == 0 {
			t.Errorf("got %d requests at the second place, want none", n)
		}
	})
}

// Whatever keeps the first place from answering, the second is asked.
func TestSecondPlaceAnswers(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"silent": upstreamtest.StallHeaders(),
		"reset":  upstreamtest.ResetConnection(),
		"500":    upstreamtest.Status(500, nil),
		"503":    upstreamtest.Status(503, http.Header{"Retry-After": {"600"}}),
		"429":    upstreamtest.Status(429, http.Header{"Retry-After": {"600"}}),
		"401":    upstreamtest.Status(401, nil),
		"403":    upstreamtest.Status(403, nil),
		"404":    upstreamtest.Status(404, nil),
	}
	for name, fault := range faults {
		for question := range questions {
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					mirror, _, c := mirrored(t, upstream.Config{})
					mirror.Fault(upstreamtest.Match{Path: page(question)}, fault)
					began := time.Now()
					ask(t, repository(t, c), question)
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("took %v", took)
					}
				})
			})
		}
	}
}

func TestPlaceThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mirror, origin, c := mirrored(t, upstream.Config{})
		mirror.Stop()
		r := repository(t, c)
		for range 10 {
			askAll(t, r)
		}
		places := c.Stats().Places
		if !places[0].Open || places[0].URL != "http://mirror.example" || places[1].Open {
			t.Errorf("got %+v, want the first open only", places)
		}
		mirror.Start()
		origin.Reset()
		time.Sleep(5 * time.Second)
		askAll(t, r)
		origin.Reset()
		askAll(t, r)
		if n := len(origin.Requests()); n != 0 {
			t.Errorf("got %d requests at the second place though the first is back", n)
		}
	})
}

// A silent mirror costs one caller half of the time there is, and then nobody.
func TestSilentMirrorCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mirror, _, c := mirrored(t, upstream.Config{})
		mirror.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		began := time.Now()
		ask(t, repository(t, c), "head manifest")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("took %v, want 10s", took)
		}
		began = time.Now()
		askAll(t, repository(t, c))
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v, want nothing", took)
		}
	})
}

// A no is definite if the last place says so, and nothing else is.
func TestLastPlaceDecides(t *testing.T) {
	status := func(code int) upstreamtest.Fault { return upstreamtest.Status(code, nil) }
	tests := map[string]struct {
		mirror, origin upstreamtest.Fault
		status         int
		refused        bool
	}{
		"404, 404":    {status(404), status(404), 404, true},
		"404, 403":    {status(404), status(403), 403, true},
		"503, 404":    {status(503), status(404), 404, true},
		"silent, 404": {upstreamtest.StallHeaders(), status(404), 404, true},
		"404, 503":    {status(404), status(503), 503, false},
		"404, 429":    {status(404), status(429), 429, false},
		"404, silent": {status(404), upstreamtest.StallHeaders(), 0, false},
		"404, reset":  {status(404), upstreamtest.ResetConnection(), 0, false},
		"403, silent": {status(403), upstreamtest.StallHeaders(), 0, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mirror, origin, c := mirrored(t, upstream.Config{})
				mirror.Fault(upstreamtest.Match{Path: repoName}, test.mirror)
				origin.Fault(upstreamtest.Match{Path: repoName}, test.origin)
				for range 3 { // the second time something is left alone, perhaps
					for question, ask := range questions {
						began := time.Now()
						err := ask(t.Context(), repository(t, c))
						if e, ok := errors.AsType[*upstream.Error](err); !ok || e.Status != test.status && e.Status != 0 || test.refused && e.Status != test.status {
							t.Errorf("%s: got %v, want status %d", question, err, test.status)
						}
						wantRefused(t, err, test.refused)
						wantUnreachable(t, err, !test.refused)
						if took := time.Since(began); took > 20*time.Second {
							t.Errorf("%s took %v", question, took)
						}
					}
				}
			})
		})
	}
}

// What a tag means now the first place says, as long as it answers. Bytes by
// digest come from where nothing is wrong.
func TestHealthIsForDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mirror, origin, c := mirrored(t, upstream.Config{})
		newer := []byte(`{"schemaVersion":2,"annotations":{"newer":"yes"}}`)
		d := origin.AddManifest(repoName, "v1", ocispec.MediaTypeImageManifest, newer)
		mirror.AddManifest(repoName, "other", ocispec.MediaTypeImageManifest, newer)
		r := repository(t, c)
		wantManifest(t, r, "v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}, manifest)

		time.Sleep(time.Second)
		mirror.Stop()
		for range 5 {
			wantManifest(t, r, "v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(newer))}, newer)
		}
		mirror.Start()
		time.Sleep(5 * time.Second)
		mirror.Reset()
		ask(t, r, "get blob")
		wantManifest(t, r, d.String(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(newer))}, newer)
		if n := len(mirror.Requests()); n != 0 {
			t.Errorf("got %d requests by digest at a place that has failed, want none", n)
		}
		wantManifest(t, r, "v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}, manifest)
	})
}

// A body that breaks off is gone on with elsewhere.
func TestRestOfBlobComesFromElsewhere(t *testing.T) {
	for name, fault := range map[string]upstreamtest.Fault{"cut": upstreamtest.CutAfter(10), "stalled": upstreamtest.StallAfter(10)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mirror, origin, c := mirrored(t, upstream.Config{})
				mirror.Fault(upstreamtest.Match{Path: "/blobs/"}, fault)
				r := repository(t, c)
				body, size := open(t, r, digest.FromBytes(blobData), 0, -1)
				got, err := io.ReadAll(body)
				if err == nil || size != blobSize || !bytes.Equal(got, blobData[:len(got)]) {
					t.Fatalf("got %q of %d, %v", got, size, err)
				}
				rest, size := open(t, r, digest.FromBytes(blobData), int64(len(got)), -1)
				tail, err := io.ReadAll(rest)
				if err != nil || size != blobSize || !bytes.Equal(append(got, tail...), blobData) {
					t.Errorf("got %q, %q of %d, %v", got, tail, size, err)
				}
				if n := origin.Count("GET", "/blobs/"); n != 1 {
					t.Errorf("got %d requests at the second place, want one", n)
				}
			})
		})
	}
}

// keys are credentials by host, which may be asked for by any of them.
type keys struct {
	mu    sync.Mutex
	asked map[string]bool
}

// Resolve implements upstream.Keychain.
func (k *keys) Resolve(_ context.Context, host string) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked[host] = true
	return authn.FromConfig(authn.AuthConfig{Username: userOf(host), Password: password}), nil
}

// userOf is the user's name at a host: one can have no colon.
func userOf(host string) string { return strings.ReplaceAll(host, ":", "-") }

func TestEachPlaceHasItsOwnCredentials(t *testing.T) {
	tests := map[string]struct {
		list string
		want map[string]string // credentials by place
	}{
		"registry and mirror": {host + "=http://mirror.example|http://" + host, map[string]string{"mirror.example:80": "mirror.example", host + ":80": host}},
		"two mirrors":         {host + "=http://mirror.example|http://b.example", map[string]string{"mirror.example:80": "mirror.example", "b.example:80": "b.example"}},
		"one URL":             {host + "=http://mirror.example", map[string]string{"mirror.example:80": host}},
		"Docker Hub":          {"docker.io=http://mirror.example|http://registry-1.docker.io", map[string]string{"mirror.example:80": "mirror.example", "registry-1.docker.io:80": "docker.io"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := make(map[string]*upstreamtest.Registry)
				for place, user := range test.want {
					hosts[place] = upstreamtest.NewPipe(t)
					hosts[place].RequireBasic(user, password)
				}
				list, err := upstream.ParseList(test.list)
				if err != nil {
					t.Fatal(err)
				}
				k := &keys{asked: make(map[string]bool)}
				c, err := upstream.New(upstream.Config{Registries: list, Keychain: k, Transport: network(t, hosts)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if err := c.CheckCredentials(t.Context()); err != nil {
					t.Errorf("credentials check: %v", err)
				}
				r := repository(t, c)
				_, err = r.HeadManifest(t.Context(), "v1") // 404 for who is let in
				wantRefused(t, err, true)
				for place, reg := range hosts {
					if n := reg.Count("HEAD", "/manifests/"); n != 1 {
						t.Errorf("%s got %d questions, want one", place, n)
					}
					for _, req := range reg.Requests() {
						if user, _, ok := (&http.Request{Header: req.Header}).BasicAuth(); ok && user != test.want[place] {
							t.Errorf("%s got the password of %s", place, user)
						}
					}
				}
				if got, want := slices.Sorted(maps.Keys(k.asked)), slices.Sorted(maps.Values(test.want)); !slices.Equal(got, want) {
					t.Errorf("credentials were looked up for %v, want %v", got, want)
				}
			})
		})
	}
}

// A place that knows no ranges is asked for all of a blob; that says nothing of
// the others.
func TestRangesArePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mirror, _, c := mirrored(t, upstream.Config{})
		mirror.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.IgnoreRange())
		body, _ := open(t, repository(t, c), digest.FromBytes(blobData), 10, 5)
		if got, err := io.ReadAll(body); err != nil || string(got) != "abcde" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// Two registries at one URL share neither credentials nor tokens.
func TestRegistriesAtOneURLAreTwo(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	reg.RequireBasic("one.example", password)
	list, err := upstream.ParseList("one.example=" + reg.URL + ",two.example=" + reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Registries: list, Keychain: &keys{asked: make(map[string]bool)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for ns, want := range map[string]bool{"one.example": true, "two.example": false} {
		for range 2 {
			r, err := c.Repository(ns, repoName)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.HeadManifest(t.Context(), "v1"); (err == nil) != want {
				t.Errorf("%s: got %v, want an answer: %v", ns, err, want)
			}
		}
	}
}
