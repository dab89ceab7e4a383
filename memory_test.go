package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// mostMemory is what larder may take over what it does when idle, in MiB.
const mostMemory = 128

// TestMemoryIsBounded has many do at once what takes memory, each kind with a
// process of its own, and looks at the most that it has ever had.
func TestMemoryIsBounded(t *testing.T) {
	if raced {
		t.Skip("the race detector takes many times the memory")
	}
	t.Parallel()
	const crowd, limit = 200, 8 << 20
	tests := map[string]func(t *testing.T, w *world) (paths []string, slow bool){
		"slow readers of a blob": func(_ *testing.T, w *world) ([]string, bool) {
			return []string{w.blob()}, true
		},
		"slow readers of a cached blob": func(t *testing.T, w *world) ([]string, bool) {
			w.pull(t, "first")
			return []string{w.blob()}, true
		},
		"slow readers of large manifests": func(t *testing.T, w *world) ([]string, bool) {
			var paths []string
			for i := range crowd / 40 {
				paths = append(paths, appPath+"manifests/"+w.large(t, i, limit).String())
			}
			return paths, true
		},
		"slow readers of what can't be kept": func(t *testing.T, w *world) ([]string, bool) {
			for _, dir := range []string{"sha256", "lists"} {
				dir = filepath.Join(w.cache, "manifests", dir)
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				writeFile(t, dir, "in the way")
			}
			w.list(`{"tags":[]` + strings.Repeat(" ", limit/2-20) + "}")
			var paths []string
			for i := range crowd / 10 {
				paths = append(paths, appPath+"manifests/"+w.large(t, i, limit).String(), fmt.Sprintf("%stags/list?n=%d", appPath, i))
			}
			return paths, true
		},
		"endless manifests": func(_ *testing.T, w *world) ([]string, bool) {
			w.hub.Fault(upstreamtest.Match{Method: http.MethodGet, Path: "/manifests/"}, upstreamtest.NoContentLength(), upstreamtest.Extend(1<<40))
			var paths []string
			for i := range crowd {
				w.hub.AddManifest(appName, fmt.Sprint("t", i), ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"a":%d}`, i))
				paths = append(paths, appPath+"manifests/t"+fmt.Sprint(i))
			}
			return paths, false
		},
		"a manifest with millions of layers": func(_ *testing.T, w *world) ([]string, bool) {
			d := w.hub.AddManifest(appName, "", ocispec.MediaTypeImageManifest, []byte(`{"layers":[{}`+strings.Repeat(",{}", limit/3-10)+`]}`))
			return []string{appPath + "manifests/" + d.String()}, false
		},
		"manifests with many layers": func(_ *testing.T, w *world) ([]string, bool) {
			var paths []string
			for i := range 10 {
				var body bytes.Buffer
				fmt.Fprintf(&body, `{"i":%d,"layers":[{}`, i)
				for j := range limit/90 - 10 {
					fmt.Fprintf(&body, `,{"digest":"%s"}`, digest.FromString(fmt.Sprint(i, j)))
				}
				d := w.hub.AddManifest(appName, "", ocispec.MediaTypeImageManifest, append(body.Bytes(), "]}"...))
				paths = append(paths, appPath+"manifests/"+d.String())
			}
			return paths, false
		},
		"endless lists": func(_ *testing.T, w *world) ([]string, bool) {
			w.hub.Fault(upstreamtest.Match{Path: "/tags/list"}, upstreamtest.NoContentLength(), upstreamtest.Extend(1<<40))
			return []string{appPath + "tags/list"}, false
		},
		"slow readers of lists": func(t *testing.T, w *world) ([]string, bool) {
			w.list(`{"tags":[]` + strings.Repeat(" ", limit/2-20) + "}")
			return w.lists(t, 5), true
		},
		"slow readers of lists of middling size": func(t *testing.T, w *world) ([]string, bool) {
			w.list(`{"tags":[]` + strings.Repeat(" ", 255<<10) + "}")
			return w.lists(t, 5), true
		},
		"many large lists": func(_ *testing.T, w *world) ([]string, bool) {
			w.list(`{"tags":[]` + strings.Repeat(" ", limit/2-20) + "}")
			var paths []string
			for i := range crowd {
				paths = append(paths, fmt.Sprintf("%stags/list?n=%d", appPath, i))
			}
			return paths, true
		},
		"lists with other things": func(_ *testing.T, w *world) ([]string, bool) {
			var body strings.Builder
			for i := 0; body.Len() < limit/2-100; i++ {
				fmt.Fprintf(&body, `"%x":0,`, i)
			}
			w.list("{" + body.String() + `"tags":[]}`)
			return []string{appPath + "tags/list", appPath + "tags/list?n=1", appPath + "tags/list?n=2"}, false
		},
		"large signed manifests": func(t *testing.T, w *world) ([]string, bool) {
			const mediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
			payload := `{"a":"` + strings.Repeat("x", limit-1000) + `"`
			protected := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":"fQ"}`, len(payload)))
			path := appPath + "manifests/" + digest.FromString(payload+"}").String()
			w.hub.AddManifestAs(appName, "", digest.FromString(payload+"}"), mediaType, []byte(payload+`,"signatures":[{"protected":"`+protected+`"}]}`))
			if a := w.ask(path, ""); a.status != http.StatusOK {
				t.Fatal(a)
			}
			return []string{path}, false
		},
		"names that nobody has": func(*testing.T, *world) ([]string, bool) {
			var paths []string
			for i := range 2_000 {
				paths = append(paths, fmt.Sprintf("/v2/x%d/y/manifests/1", i), fmt.Sprintf("%smanifests/t%d", appPath, i),
					appPath+"blobs/"+digest.FromString(fmt.Sprint(i)).String())
			}
			return paths, false
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := prepareWorld(t, 32<<20)
			w.larder = execLarder(t, nil, w.environ("LARDER_LOG_LEVEL=error", "LARDER_ADDR="+freeAddr(t), "LARDER_TAG_TTL=1h")...)
			w.waitUntilUp(t)
			t.Cleanup(w.client.CloseIdleConnections)
			w.ask(appTag, "")
			idle := w.memory(t, "VmRSS")
			paths, slow := test(t, w)
			w.resetPeak(t)
			w.press(t, paths, crowd, slow)
			if peak := w.memory(t, "VmHWM") - idle; peak > mostMemory {
				t.Errorf("%.0f MiB more than when idle (%.0f), want at most %d", peak, idle, mostMemory)
			} else {
				t.Logf("%.0f MiB more than when idle (%.0f)", peak, idle)
			}
			w.notFooled(t, w.blob(), "", w.ask(w.blob(), ""))
		})
	}
}

// large adds a manifest of this size.
func (w *world) large(t *testing.T, i, size int) digest.Digest {
	t.Helper()
	body := fmt.Appendf(nil, `{"i":%d`, i)
	body = append(append(body, bytes.Repeat([]byte(" "), size-len(body)-1)...), '}')
	d := w.hub.AddManifest(appName, "", ocispec.MediaTypeImageManifest, body)
	if a := w.ask(appPath+"manifests/"+d.String(), ""); a.status != http.StatusOK {
		t.Fatal(a)
	}
	return d
}

// list makes this the registry's list of tags, whatever is asked for.
func (w *world) list(body string) {
	w.hub.Fault(upstreamtest.Match{Path: "/tags/list"}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, body) })
	})
}

// lists has some pages of it cached.
func (w *world) lists(t *testing.T, pages int) (paths []string) {
	t.Helper()
	for i := range pages {
		paths = append(paths, fmt.Sprintf("%stags/list?n=%d", appPath, i))
		if a := w.ask(paths[i], ""); a.status != http.StatusOK {
			t.Fatal(a)
		}
	}
	return paths
}

// press has so many clients at a time ask for the paths. Slow ones all have an
// answer before any of them reads on.
func (w *world) press(t *testing.T, paths []string, clients int, slow bool) {
	t.Helper()
	var begun, all sync.WaitGroup
	begun.Add(clients)
	requests := make(chan string)
	for range clients {
		all.Go(func() {
			first := true
			for path := range requests {
				resp, err := w.open(t.Context(), path)
				if first && slow {
					begun.Done()
					begun.Wait()
				}
				first = false
				if err != nil {
					t.Error(err)
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	for i := range max(clients, len(paths)) {
		requests <- paths[i%len(paths)]
	}
	close(requests)
	all.Wait()
}
