package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"larder/handler/upstream/upstreamtest"
)

// oneLayer is a registry that has an image of one layer, and the layer's path.
func oneLayer(tb testing.TB, size int64) (hub *upstreamtest.Registry, layer []byte, path string) {
	tb.Helper()
	layer = make([]byte, size)
	if _, err := upstreamtest.Seeded(1, size).ReadAt(layer, 0); err != nil {
		tb.Fatal(err)
	}
	hub = upstreamtest.New(tb)
	img := hub.AddImage("library/layer", "1", layer)
	return hub, layer, "/v2/library/layer/blobs/" + img.Layers[0].Digest.String()
}

// sentOf is how much of a blob a registry has sent.
func sentOf(hub *upstreamtest.Registry, path string) (n int64) {
	for _, r := range hub.Requests() {
		if r.Method == http.MethodGet && r.Path == path {
			n += r.Bytes
		}
	}
	return n
}

// part is some bytes of a blob: from first to last, as in a Range header. With
// first -1 it is the last bytes, as many as last says.
type part struct{ first, last int64 }

func (p part) of(blob []byte) (first int64, content []byte) {
	if p.first < 0 {
		p.first, p.last = int64(len(blob))-p.last, int64(len(blob))-1
	}
	return p.first, blob[p.first : p.last+1]
}

func rangeOf(parts []part) string {
	var specs []string
	for _, p := range parts {
		if p.first < 0 {
			specs = append(specs, fmt.Sprintf("-%d", p.last))
		} else {
			specs = append(specs, fmt.Sprintf("%d-%d", p.first, p.last))
		}
	}
	return "bytes=" + strings.Join(specs, ",")
}

// readParts asks for parts of a blob in one request, and checks that it gets
// these and no others.
func (l *larder) readParts(ctx context.Context, path string, blob []byte, parts []part) error {
	resp, err := l.openRange(ctx, path, rangeOf(parts))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if len(parts) == 1 {
		return wantPart(resp.Body, resp.Header.Get("Content-Range"), blob, parts[0])
	}
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	r := multipart.NewReader(resp.Body, params["boundary"])
	for _, p := range parts {
		m, err := r.NextPart()
		if err != nil {
			return err
		}
		if err := wantPart(m, m.Header.Get("Content-Range"), blob, p); err != nil {
			return err
		}
	}
	if _, err := r.NextPart(); err != io.EOF {
		return fmt.Errorf("behind the last part: %w", err)
	}
	return nil
}

func wantPart(body io.Reader, contentRange string, blob []byte, p part) error {
	first, want := p.of(blob)
	if c := fmt.Sprintf("bytes %d-%d/%d", first, first+int64(len(want))-1, len(blob)); contentRange != c {
		return fmt.Errorf("got Content-Range %q, want %q", contentRange, c)
	}
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("%s: got %d bytes that are not the right ones (%w)", contentRange, len(got), err)
	}
	return nil
}

// openRange asks for a range, which must be had, and leaves the body to the caller.
func (l *larder) openRange(ctx context.Context, path, ranges string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.addr+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", ranges)
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: got %s, want 206", ranges, resp.Status)
	}
	return resp, err
}

// lazyPull is how a lazy-pulling snapshotter reads a layer: what tells where
// things are, one request after the other, and then what a container touches,
// several requests at a time. A request may be for several parts.
type lazyPull struct {
	metadata [][]part
	content  [][]part
}

// lazyPulls are of a layer of 200 MB.
var lazyPulls = map[string]lazyPull{
	// Everything in pieces of 50,000 bytes. A probe for redirects, the footer, the
	// table of contents before it, the files that the image marks for prefetching,
	// then a request for all pieces that a read needs and does not have yet.
	"stargz": {
		metadata: [][]part{
			{{0, 1}},
			{{199_950_000, 199_999_999}},
			{{198_900_000, 199_949_999}},
			{{0, 1_499_999}},
		},
		content: [][]part{
			{{20_000_000, 20_049_999}, {20_150_000, 20_199_999}, {21_000_000, 22_499_999}},
			{{75_000_000, 77_049_999}},
			{{110_500_000, 110_549_999}, {110_600_000, 110_649_999}, {110_700_000, 110_749_999}, {110_850_000, 110_899_999}},
			{{150_000_000, 151_299_999}, {149_000_000, 149_499_999}},
			{{22_400_000, 22_449_999}, {60_000_000, 61_999_999}, {198_850_000, 198_899_999}},
		},
	},
	// The table of contents is another blob. The layer is read by spans, each
	// where 4 MiB of the unpacked layer are.
	"SOCI": {
		metadata: [][]part{{{0, 1}}},
		content: [][]part{
			{{33_554_432, 36_700_159}},
			{{36_700_160, 38_111_222}},
			{{101_234_567, 105_428_870}},
			{{3, 1_100_000}},
			{{190_000_001, 192_000_000}},
		},
	},
	// The last bytes say where the table of contents is; then chunks of 1 MiB,
	// neighbours together.
	"nydus": {
		metadata: [][]part{
			{{-1, 51}},
			{{-1, 10 << 10}},
			{{199_000_000, 199_800_000}},
		},
		content: [][]part{
			{{4096, 4096 + 1<<20 - 1}},
			{{40 << 20, 44<<20 - 1}},
			{{44 << 20, 45<<20 - 1}},
			{{90 << 20, 91<<20 - 1}},
			{{90<<20 + 1<<19, 92<<20 - 1}},
			{{170 << 20, 172<<20 - 1}},
		},
	},
}

// TestLazyPullCostsUpstreamLittle lets snapshotters read here and there in a
// layer that is not in the cache, and a second time.
func TestLazyPullCostsUpstreamLittle(t *testing.T) {
	t.Parallel()
	const size = 200_000_000
	hub, layer, path := oneLayer(t, size)
	for name, pull := range lazyPulls {
		t.Run(name, func(t *testing.T) {
			hub.Reset()
			l := startLarder(t, nil, "LARDER_UPSTREAMS=docker.io="+hub.URL)
			if resp, _ := l.get(t, "/v2/library/layer/manifests/1"); resp.StatusCode != http.StatusOK {
				t.Fatalf("manifest: %s", resp.Status)
			}
			read := func() {
				for _, parts := range pull.metadata {
					if err := l.readParts(t.Context(), path, layer, parts); err != nil {
						t.Error(err)
					}
				}
				var g errgroup.Group
				g.SetLimit(3)
				for _, parts := range pull.content {
					g.Go(func() error { return l.readParts(t.Context(), path, layer, parts) })
				}
				if err := g.Wait(); err != nil {
					t.Error(err)
				}
			}
			read()
			before := hub.Count("", path)
			read()
			if again := hub.Count("", path) - before; again > 0 {
				t.Errorf("reading the same again took %d requests to upstream", again)
			}
			l.stop(t) // what it still fetches counts
			if sent := sentOf(hub, path); sent >= size/10 {
				t.Errorf("upstream sent %d bytes of a blob of %d", sent, size)
			} else {
				t.Logf("upstream sent %d bytes, in %d requests", sent, before)
			}
		})
	}
}

// TestParallelLayerFetchCostsUpstreamTheBlobOnce does as containerd 2 with
// concurrent_layer_fetch_buffer: it asks from the start of each chunk to the end
// of the blob, on connections of their own, and hangs up after the chunk. Upstream
// is as slow as a network: a fast one fills sockets that are closed unread.
func TestParallelLayerFetchCostsUpstreamTheBlobOnce(t *testing.T) {
	t.Parallel()
	const size, chunk, connections = 100_000_000, 4 << 20, 5
	hub, layer, path := oneLayer(t, size)
	l := startLarder(t, nil, "LARDER_UPSTREAMS=docker.io="+hub.URL)
	hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Latency(5*time.Millisecond), upstreamtest.Rate(20_000_000))
	order := append([]int{0}, rand.New(rand.NewPCG(1, 2)).Perm(size/chunk)...)
	for i := range order[1:] {
		order[i+1]++
	}

	var chunks sync.WaitGroup
	slots := make(chan struct{}, connections)
	for _, i := range order {
		slots <- struct{}{}
		chunks.Go(func() {
			defer func() { <-slots }()
			first := int64(i) * chunk
			resp, err := l.openRange(t.Context(), path, fmt.Sprintf("bytes=%d-", first))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			want := layer[first:min(first+chunk, size)]
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("chunk %d is not what it should be: %v", i, err)
			}
		})
	}
	chunks.Wait()
	l.stop(t)
	// When a fetch takes over the rest of another, what is on its way there comes
	// twice: nothing to speak of, and what sockets hold of each if the machine is busy.
	if sent := sentOf(hub, path); sent < size || sent > size+size/5 {
		t.Errorf("upstream sent %d bytes of a blob of %d", sent, size)
	}
}
