package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	starts   = 5                // the median counts
	idle     = 10 * time.Second // what is measured of doing nothing
	quiet    = 5 * time.Second  // what is measured of requests alone
	settling = 2 * time.Second  // from the end of the scan to the first look
	blobTTL  = 168 * time.Hour

	// forcedGC is how often Go collects garbage when there is next to none.
	forcedGC = 2 * time.Minute
)

// request is for something warm.
type request struct{ path, digest string }

// requests are for all that is warm: each manifest by its tag and by its digest,
// each blob.
func requests() (tags, blobs, all []request) {
	for image := range warmImages {
		at := "/v2/" + repository(image)
		digest := sum(manifest(image))
		tags = append(tags, request{at + "/manifests/" + tag(image), digest})
		all = append(all, tags[image], request{at + "/manifests/sha256:" + digest, digest})
		for i := range blobsPerImage {
			d := blobDigest(image*blobsPerImage + i)
			blobs = append(blobs, request{at + "/blobs/sha256:" + d, d})
		}
	}
	return tags, blobs, append(all, blobs...)
}

// load sends a request each millisecond, one after the other, until ctx is done, one at least,
// and returns how long each took.
func (l *larder) load(ctx context.Context, all []request) (took []time.Duration, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; i == 0 || ctx.Err() == nil; i++ {
		<-tick.C
		began := time.Now()
		if r := all[i%len(all)]; err == nil {
			err = l.get(r.path, r.digest)
		}
		took = append(took, time.Since(began))
	}
	return took, err
}

// latency is of requests, in milliseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// during measures requests while something else happens, and that.
func (l *larder) during(ctx context.Context, all []request, what func() error) (lat latency, took, cpu time.Duration, err error) {
	loading, done := context.WithCancel(ctx)
	defer done()
	type outcome struct {
		took []time.Duration
		err  error
	}
	loaded := make(chan outcome, 1)
	cpu0, err := l.cpu()
	if err != nil {
		return lat, 0, 0, err
	}
	began := time.Now()
	go func() { // ends with loading, which is waited for
		took, err := l.load(loading, all)
		loaded <- outcome{took, err}
	}()
	err = what()
	took = time.Since(began)
	done()
	o := <-loaded
	if err == nil {
		err = o.err
	}
	if err != nil {
		return lat, 0, 0, err
	}
	cpu1, err := l.cpu()
	slices.Sort(o.took)
	n := len(o.took)
	return latency{ms(o.took[n/2]), ms(o.took[n*99/100])}, took, cpu1 - cpu0, err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// result is what was measured with so many entries.
type result struct {
	Entries int `json:"entries"`
	Blobs   int `json:"blobs"`

	FirstTag  float64 `json:"firstTagMs"` // since the process was started
	FirstBlob float64 `json:"firstBlobMs"`

	Scan    float64 `json:"scanMs"`
	ScanCPU float64 `json:"scanCpuMs"`
	Scanned latency `json:"duringScanMs"`

	RSS          int     `json:"rssBytes"`
	RSSPerEntry  float64 `json:"rssPerEntry"` // beyond that of an empty cache
	Heap         int     `json:"heapBytes"`   // what is alive
	HeapPerEntry float64 `json:"heapPerEntry"`

	Idle float64 `json:"idleCpuMsPerS"` // with the garbage collections that are due in 2 minutes
	GC   float64 `json:"gcCpuMs"`       // of one

	Quiet    latency `json:"quietMs"`
	Swept    int     `json:"swept"`
	Sweep    float64 `json:"sweepMs"`
	SweepCPU float64 `json:"sweepCpuUsPerEntry"` // beyond that of the requests
	Sweeping latency `json:"duringSweepMs"`

	Evicted  int     `json:"evicted"`
	Evict    float64 `json:"evictMs"` // 0: it was over at once
	EvictCPU float64 `json:"evictCpuUsPerEntry"`
}

// measure measures everything there is to measure with a tree, which afterwards
// lacks what was swept and evicted.
func measure(ctx context.Context, binary string, t *tree) (*result, error) {
	r := &result{Entries: t.entries, Blobs: t.blobs}
	now := time.Now()
	if err := t.age(now, now); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context, string, *tree) error{r.starts, r.scan, r.sweep, r.evict} {
		if err := step(ctx, binary, t); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// starts measures the time to the first answers.
func (r *result) starts(ctx context.Context, binary string, t *tree) error {
	var tags, blobs []time.Duration
	manifests, layers, _ := requests()
	for range starts {
		l, err := start(ctx, binary, t.dir)
		if err != nil {
			return err
		}
		toTag, err := l.firstAnswer(manifests[0])
		if err != nil {
			return fmt.Errorf("%w\n%s", err, l.log.String())
		}
		toBlob, err := l.firstAnswer(layers[0])
		if err != nil {
			return err
		}
		tags, blobs = append(tags, toTag), append(blobs, toBlob)
		if err := l.stop(); err != nil {
			return err
		}
	}
	slices.Sort(tags)
	slices.Sort(blobs)
	r.FirstTag, r.FirstBlob = ms(tags[starts/2]), ms(blobs[starts/2])
	return nil
}

// scan measures a start to its end, and what is then in memory, and idling.
func (r *result) scan(ctx context.Context, binary string, t *tree) error {
	rss0, heap0, err := ofNothing(ctx, binary, t)
	if err != nil {
		return err
	}
	l, err := start(ctx, binary, t.dir)
	if err != nil {
		return err
	}
	tags, _, _ := requests()
	if _, err := l.firstAnswer(tags[0]); err != nil {
		return err
	}
	lat, _, _, err := l.during(ctx, tags, func() error { return l.scanned(t) })
	if err != nil {
		return err
	}
	cpu, err := l.cpu()
	if err != nil {
		return err
	}
	r.Scanned, r.Scan, r.ScanCPU = lat, ms(time.Since(l.began)), ms(cpu)
	time.Sleep(settling)
	if err := r.rest(l); err != nil {
		return err
	}
	r.RSSPerEntry = float64(r.RSS-rss0) / float64(t.entries)
	r.HeapPerEntry = float64(r.Heap-heap0) / float64(t.entries)
	return l.stop()
}

// rest measures one that has nothing to do.
func (r *result) rest(l *larder) error {
	before, err := l.cpu()
	if err != nil {
		return err
	}
	time.Sleep(idle)
	after, err := l.cpu()
	if err != nil {
		return err
	}
	if r.RSS, err = l.rss(); err != nil {
		return err
	}
	var gc time.Duration
	r.Heap, gc, err = l.heap()
	r.GC = ms(gc)
	r.Idle = ms(after-before)/idle.Seconds() + r.GC/forcedGC.Seconds()
	return err
}

// ofNothing is what one takes whose cache is empty.
func ofNothing(ctx context.Context, binary string, t *tree) (rss, heap int, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(t.dir), "empty-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	l, err := start(ctx, binary, dir)
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(settling)
	if rss, err = l.rss(); err != nil {
		return 0, 0, err
	}
	if heap, _, err = l.heap(); err != nil {
		return 0, 0, err
	}
	return rss, heap, l.stop()
}

// sweep measures requests without and with many blobs that expire at once.
func (r *result) sweep(ctx context.Context, binary string, t *tree) error {
	due := time.Now().Add(time.Duration(1.5*r.Scan*float64(time.Millisecond)) + quiet + 3*settling)
	if err := t.age(due.Add(-blobTTL), time.Now().Add(-time.Hour)); err != nil {
		return err
	}
	l, err := start(ctx, binary, t.dir, "LARDER_BLOB_TTL="+blobTTL.String())
	if err != nil {
		return err
	}
	_, _, all := requests()
	if _, err := l.firstAnswer(all[0]); err != nil {
		return err
	}
	if err := l.scanned(t); err != nil {
		return err
	}
	warmUp := func() error { time.Sleep(time.Second); return nil }
	if _, _, _, err := l.during(ctx, all, warmUp); err != nil {
		return err
	}
	var took, cpu time.Duration
	r.Quiet, took, cpu, err = l.during(ctx, all, func() error { time.Sleep(quiet); return nil })
	if err != nil {
		return err
	}
	share := cpu.Seconds() / took.Seconds() // of a CPU, for requests
	if time.Now().After(due) {
		return fmt.Errorf("the scan took too long: blobs have expired before there was an end of quiet")
	}
	time.Sleep(time.Until(due))
	r.Sweeping, took, cpu, err = l.during(ctx, all, func() error {
		_, err := t.await(ctx, t.cold())
		return err
	})
	if err != nil {
		return err
	}
	r.Swept, r.Sweep = t.due, ms(took)
	r.SweepCPU = (cpu.Seconds() - share*took.Seconds()) * 1e6 / float64(t.due)
	return l.stop()
}

// evict measures a start with a cache that may hold less than there is.
func (r *result) evict(ctx context.Context, binary string, t *tree) error {
	r.Evicted = min(100_000, t.blobs/4)
	size := t.bytes() - (t.due+r.Evicted)*coldSize
	l, err := start(ctx, binary, t.dir, fmt.Sprintf("LARDER_MAX_SIZE=%d", size))
	if err != nil {
		return err
	}
	tags, _, _ := requests()
	if _, err := l.firstAnswer(tags[0]); err != nil {
		return err
	}
	first, err := t.await(ctx, t.cold()-1)
	if err != nil {
		return err
	}
	began := time.Now()
	before, err := l.cpu()
	if err != nil {
		return err
	}
	last, err := t.await(ctx, t.cold()-r.Evicted)
	if err != nil {
		return err
	}
	after, err := l.cpu()
	if err != nil {
		return err
	}
	if seen := float64(first - last); seen > 0 {
		r.Evict = ms(time.Since(began)) * float64(r.Evicted) / seen
		r.EvictCPU = (after - before).Seconds() * 1e6 / seen
	}
	return l.stop()
}
