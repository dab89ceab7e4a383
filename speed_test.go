package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"larder/handler/upstream/upstreamtest"
)

// latency is how long the benchmarks' upstream takes to answer, where it is one
// on a network, and capped the most it sends on one connection in a second.
const (
	latency = 20 * time.Millisecond
	capped  = 40_000_000
)

// impatient is a client that keeps all its connections.
func impatient(b *testing.B) *http.Client {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	b.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// coldLarder is a process with an empty cache, which is gone after done.
func coldLarder(b *testing.B, hub *upstreamtest.Registry) (l *larder, done func()) {
	l = execLarder(b, nil, "LARDER_UPSTREAMS=docker.io="+hub.URL, "LARDER_LOG_LEVEL=warn")
	l.waitUntilUp(b)
	return l, func() {
		l.stop(b)
		if err := os.RemoveAll(l.cache); err != nil {
			b.Error(err)
		}
	}
}

// wantStored waits until larder has the whole blob on disk.
func (l *larder) wantStored(b *testing.B, path string) {
	d := digest.Digest(filepath.Base(path))
	eventually(b, "the blob under its name", func() bool {
		_, err := os.Stat(filepath.Join(l.cache, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded()))
		return err == nil
	})
}

// download gets a URL as a client does that stores what it gets, in large
// pieces, and returns how long that took.
func download(b *testing.B, c *http.Client, url, file string, size int64) time.Duration {
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(file)
	defer f.Close()
	start := time.Now()
	resp, err := c.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{resp.Body}, make([]byte, 1<<20))
	if err != nil || n != size {
		b.Fatalf("%s: got %d bytes (%v), want %d", resp.Status, n, err, size)
	}
	return time.Since(start)
}

// pairs are the times of the same thing done directly and through larder, one
// after the other.
type pairs struct{ direct, through []time.Duration }

// ratio is the median of the pairs' ratios.
func (p *pairs) ratio() float64 {
	ratios := make([]float64, len(p.direct))
	for i := range ratios {
		ratios[i] = p.through[i].Seconds() / p.direct[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// download adds a pair. Who comes first changes.
func (p *pairs) download(b *testing.B, c *http.Client, l *larder, hub *upstreamtest.Registry, path string, size int64) {
	file := filepath.Join(b.TempDir(), "blob")
	direct := func() { p.direct = append(p.direct, download(b, c, hub.URL+path, file, size)) }
	through := func() {
		p.through = append(p.through, download(b, c, "http://"+l.addr+path, file, size))
		l.wantStored(b, path)
	}
	if len(p.direct)%2 == 0 {
		direct()
		through()
	} else {
		through()
		direct()
	}
}

// report is b's only result.
func report(b *testing.B, metrics map[string]float64) {
	for unit, value := range metrics {
		b.ReportMetric(value, unit)
	}
	b.ReportMetric(0, "ns/op") // of no meaning where one operation is several
}

// BenchmarkColdCapped pulls a cold blob from an upstream that is slow on each
// connection.
func BenchmarkColdCapped(b *testing.B) {
	const size = 256 << 20
	hub, _, path := oneLayer(b, size)
	hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Latency(latency), upstreamtest.Rate(capped))
	p := new(pairs)
	var sent int64
	for b.Loop() {
		l, done := coldLarder(b, hub)
		hub.Reset()
		p.download(b, impatient(b), l, hub, path, size)
		done()
		sent += sentOf(hub, path) - size
	}
	report(b, map[string]float64{
		"x-faster":   1 / p.ratio(),
		"upstream-x": float64(sent) / float64(b.N) / size,
	})
}

// BenchmarkColdUncapped pulls a cold blob from an upstream that sends as fast as
// this machine can, and over links that all connections share.
func BenchmarkColdUncapped(b *testing.B) {
	const size = 256 << 20
	links := map[string]int{"loopback": 0, "4Gbps": 500_000_000, "1Gbps": 125_000_000}
	for name, bytesPerSecond := range links {
		b.Run(name, func(b *testing.B) {
			hub, _, path := oneLayer(b, size)
			if bytesPerSecond > 0 {
				hub.Fault(upstreamtest.Match{Path: "/blobs/"}, link(bytesPerSecond))
			}
			pair := func(p *pairs) {
				l, done := coldLarder(b, hub)
				defer done()
				p.download(b, impatient(b), l, hub, path, size)
			}
			pair(new(pairs)) // memory that was never used is slow at first
			p := new(pairs)
			for b.Loop() {
				pair(p)
			}
			report(b, map[string]float64{"x-direct": p.ratio(), "MB/s": size / 1e6 / slices.Min(p.through).Seconds()})
		})
	}
}

// link lets all answers together have so many bytes in a second.
func link(bytesPerSecond int) upstreamtest.Fault {
	limiter := rate.NewLimiter(rate.Limit(bytesPerSecond), 1<<20)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&linked{w, r.Context(), limiter}, r)
		})
	}
}

type linked struct {
	http.ResponseWriter
	ctx     context.Context // of the request
	limiter *rate.Limiter
}

func (l *linked) Write(p []byte) (int, error) {
	if err := l.limiter.WaitN(l.ctx, len(p)); err != nil {
		return 0, err
	}
	return l.ResponseWriter.Write(p)
}

// BenchmarkHerd has 64 clients ask for one cold blob at once.
func BenchmarkHerd(b *testing.B) {
	const size, clients = 128 << 20, 64
	hub, _, path := oneLayer(b, size)
	c := impatient(b)
	var sent int64
	var took []time.Duration
	peak := 0.0
	for b.Loop() {
		l, done := coldLarder(b, hub)
		hub.Reset()
		idle := l.memory(b, "VmRSS")
		l.resetPeak(b)
		start := time.Now()
		var herd sync.WaitGroup
		for range clients {
			herd.Go(func() {
				resp, err := c.Get("http://" + l.addr + path)
				if err != nil {
					b.Error(err)
					return
				}
				defer resp.Body.Close()
				if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
					b.Errorf("%s: got %d bytes (%v), want %d", resp.Status, n, err, size)
				}
			})
		}
		herd.Wait()
		took = append(took, time.Since(start))
		l.wantStored(b, path)
		peak = max(peak, l.memory(b, "VmHWM")-idle)
		done()
		sent += sentOf(hub, path)
	}
	slices.Sort(took)
	report(b, map[string]float64{
		"upstream-x": float64(sent) / float64(b.N) / size,
		"MiB-peak":   peak,
		"s/herd":     took[len(took)/2].Seconds(),
	})
}

// memory is one of the figures in the process's status, in MiB. None of them
// counts the page cache.
func (l *larder) memory(b testing.TB, name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid))
	if errors.Is(err, os.ErrNotExist) {
		b.Skip("no /proc here")
	}
	_, rest, _ := strings.Cut(string(status), "\n"+name+":")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatalf("no %s in %s", name, status)
	}
	return kib / 1024
}

// resetPeak lets VmHWM begin anew.
func (l *larder) resetPeak(b testing.TB) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", l.pid), []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkColdRanges has 32 clients ask for ranges all over a cold blob, and
// upstream directly for the same. The latency of the first tenth, which
// finds little in the cache, is given beside that of all.
func BenchmarkColdRanges(b *testing.B) {
	const size, length, ranges, clients = 512 << 20, 64 << 10, 10_000, 32
	hub, layer, path := oneLayer(b, size)
	hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Latency(latency))
	directly, _, _ := oneLayer(b, size)
	directly.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Latency(latency))
	c := impatient(b)
	var sent, again int64
	var all, cold float64
	for b.Loop() {
		l, done := coldLarder(b, hub)
		hub.Reset()
		p := &pairs{make([]time.Duration, ranges), make([]time.Duration, ranges)}
		var running sync.WaitGroup
		for client := range clients {
			running.Go(func() {
				random := rand.New(rand.NewPCG(uint64(client), 1))
				for i := client; i < ranges; i += clients {
					first := random.Int64N(size - length)
					for _, way := range random.Perm(2) {
						times, url := p.direct, directly.URL
						if way == 1 {
							times, url = p.through, "http://"+l.addr
						}
						times[i] = getRange(b, c, url+path, first, layer[first:first+length])
					}
				}
			})
		}
		running.Wait()
		done()
		n, twice := traffic(hub, path)
		sent, again = sent+n, again+twice
		cold += median(p.through[:ranges/10]) / median(p.direct[:ranges/10])
		all += median(p.through) / median(p.direct)
	}
	n := float64(b.N)
	report(b, map[string]float64{
		"upstream-x":   float64(sent) / n / size,
		"again-B":      float64(again) / n,
		"p50-x-direct": all / n, "p50-cold-x-direct": cold / n,
	})
}

func median(times []time.Duration) float64 {
	return slices.Sorted(slices.Values(times))[len(times)/2].Seconds()
}

// getRange asks for what of a blob is at first, and returns how long that took.
func getRange(b *testing.B, c *http.Client, url string, first int64, want []byte) time.Duration {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		b.Error(err)
		return 0
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, first+int64(len(want))-1))
	got := make([]byte, len(want))
	start := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer resp.Body.Close()
	_, err = io.ReadFull(resp.Body, got)
	took := time.Since(start)
	if err != nil || !slices.Equal(got, want) {
		b.Errorf("%d bytes at %d: %s, and not the right ones (%v)", len(want), first, resp.Status, err)
	}
	return took
}

// traffic is how much of a blob upstream has sent, and how much of that was not
// for the first time.
func traffic(hub *upstreamtest.Registry, path string) (sent, again int64) {
	type extent struct{ start, end int64 }
	var extents []extent
	for _, r := range hub.Requests() {
		if r.Method != http.MethodGet || r.Path != path {
			continue
		}
		var start int64 // 0 if no range was asked for
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start)
		extents = append(extents, extent{start, start + r.Bytes})
		sent += r.Bytes
	}
	slices.SortFunc(extents, func(x, y extent) int { return cmp.Compare(x.start, y.start) })
	var end int64
	for _, e := range extents {
		again += max(min(end, e.end)-e.start, 0)
		end = max(end, e.end)
	}
	return sent, again
}
