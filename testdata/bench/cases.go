package main

import (
	"time"

	"larder/testdata/rig"
)

// scale is how much there is to pull: all of it, or little for a first look.
type scale struct {
	div   int64         // sizes and numbers of clients are divided by it
	burst time.Duration // for cases that take as long as one says
	sync  bool          // wait for the disk before each run
}

func full() scale  { return scale{1, 2 * time.Second, true} }
func short() scale { return scale{16, 150 * time.Millisecond, false} }

// repository is where everything is that is pulled, but for what a case wants
// to be counted apart.
const (
	repository    = "bench/app"
	hotRepository = "bench/hot"
)

// prepared is what a case does.
type prepared struct {
	warm     []rig.Request // asked for once, before anything is measured
	load     rig.Load
	hotReads int // of hotRepository in load
}

// benchCase is a row of the report.
type benchCase struct {
	name  string
	title string
	rig.Knobs
	options
	// prepare makes what is to be pulled.
	prepare func(c *rig.Content, s scale) (prepared, error)
	// keep has peers run through all rounds, with all that prepared.warm names
	// in their cache. Without it, they start with an empty cache each time.
	keep   bool
	cannot func(peer string) (why string)
	head   metric   // what the ratios in the table are of
	also   []metric // that the table shows, beside those of all and those of the bars
	bars   []bar
}

// bar is what larder must reach.
type bar struct {
	metric metric
	least  bool // it must be the limit at least, and not at most
	limit  float64
	of     string // times that of this peer; "": as it is
}

func atMost(limit float64, m metric, of string) bar  { return bar{m, false, limit, of} }
func atLeast(limit float64, m metric, of string) bar { return bar{m, true, limit, of} }

// What some peers can't do, and why.

func noUpstream(peer string) string {
	if peer == static {
		return "has no upstream"
	}
	return ""
}

func noCache(peer string) string {
	if peer == direct {
		return "has no cache"
	}
	return ""
}

func noBudget(peer string) string {
	if peer == dockerIO {
		return "has no limit of its size"
	}
	return noCache(peer) + noUpstream(peer)
}

func noTrust(peer string) string {
	if peer == dockerIO {
		return "asks for a tag each time"
	}
	return noCache(peer)
}

// memory is the bar of every case; small is that of cases that LARDER_MEMORY,
// 64 MiB, is used in.
func memory(mib float64) bar { return atMost(mib, growth, "") }

const (
	idle  = 64
	small = 64 + idle
)

// latency and capped are an upstream that is one on a network.
const (
	latency = 20 * time.Millisecond
	capped  = 40_000_000 // bytes a second on one connection
)

// allCases are the rows of the report, in its order.
func allCases() []benchCase { return append(coldCases(), warmCases()...) }

func coldCases() []benchCase {
	return []benchCase{
		{
			name: "cold-blob", title: "cold blob of 512 MiB, one client",
			prepare: coldBlob(512<<20, 1), cannot: noUpstream, head: seconds,
			bars: []bar{atMost(1, seconds, nginx), atMost(0.75, cpuSeconds, dockerIO), memory(idle)},
		},
		{
			name: "cold-image", title: "cold image of 10 layers, 266 MB, 3 at a time",
			prepare: coldImage, cannot: noUpstream, head: seconds,
			bars: []bar{atMost(0.9, seconds, nginx), memory(idle)},
		},
		{
			name: "cold-capped", title: "cold blob of 256 MiB, 40 MB/s on a connection",
			Knobs:   rig.Knobs{Rate: capped},
			prepare: coldBlob(256<<20, 1), cannot: noUpstream, head: seconds,
			bars: []bar{atMost(0.35, seconds, direct), memory(idle)},
		},
		{
			name: "cold-herd", title: "64 clients, one cold blob of 128 MiB",
			prepare: coldBlob(128<<20, 64), cannot: noUpstream, head: seconds,
			bars: []bar{
				atMost(0.65, seconds, nginx), atMost(0.15, firstByte50, nginx), atMost(1.05, cpuSeconds, nginx),
				atMost(1, upstreamTimes, ""), memory(idle),
			},
		},
		{
			name: "cold-tag", title: "500 clients, one cold tag",
			prepare: coldTag, cannot: noUpstream, head: seconds,
			bars: []bar{atMost(2, upstreamManifests, ""), atMost(1.2, seconds, nginx), memory(small)},
		},
		{
			name: "cold-ranges", title: "ranges of 64 KiB, cold, 20 ms and 40 MB/s away",
			Knobs:   rig.Knobs{Rate: capped, Latency: latency},
			prepare: coldRanges, cannot: noUpstream, head: rate,
			bars: []bar{atLeast(8, rate, nginx), atMost(1.5, upstreamOverAsked, ""), memory(idle)},
		},
		{
			name: "cold-small", title: "new blobs of 4 KiB, 16 clients",
			prepare: coldSmall, cannot: noUpstream, head: rate, also: []metric{cpuPerRequest},
			bars: []bar{atLeast(10, rate, dockerIO), memory(small)},
		},
		{
			name: "budget", title: "3 GiB through a cache of 1 GiB, 200 MiB hot",
			options: options{MaxSize: 1 << 30},
			prepare: budget, cannot: noBudget, head: cpuSeconds,
			bars: []bar{atMost(1, highWater, ""), atLeast(100, hotHits, ""), atMost(1.2, cpuSeconds, nginx), memory(idle)},
		},
	}
}

func warmCases() []benchCase {
	blobBars := []bar{atMost(0.8, cpuPerGB, nginx), atLeast(1, throughput, nginx), memory(idle)}
	smallBars := []bar{atMost(1.15, cpuPerRequest, nginx), atMost(1, total99, nginx), memory(small)}
	return []benchCase{
		{
			name: "warm-blob-1", title: "warm blobs of 64 MiB, one client",
			prepare: warmBlobs(1), keep: true, cannot: noCache, head: cpuPerGB, bars: blobBars,
		},
		{
			name: "warm-blob-32", title: "warm blobs of 64 MiB, 32 clients",
			prepare: warmBlobs(32), keep: true, cannot: noCache, head: cpuPerGB, bars: blobBars,
		},
		{
			name: "warm-small", title: "warm blobs of 4 KiB, 64 clients",
			prepare: warmSmall, keep: true, cannot: noCache, head: cpuPerRequest, also: []metric{rate}, bars: smallBars,
		},
		{
			name: "warm-manifest", title: "warm manifests by digest, 64 clients",
			prepare: warmManifests, keep: true, cannot: noCache, head: cpuPerRequest, also: []metric{rate}, bars: smallBars,
		},
		{
			name: "warm-ranges", title: "ranges of 64 KiB, warm, 32 clients",
			prepare: warmRanges, keep: true, cannot: noCache, head: cpuPerRequest, also: []metric{rate},
			bars: []bar{atMost(1.15, cpuPerRequest, nginx), memory(idle)},
		},
		{
			name: "tags-trusted", title: "tags trusted for 60 s, 64 clients",
			options: options{TagTTL: time.Minute},
			prepare: tags, keep: true, cannot: noTrust, head: cpuPerRequest, also: []metric{rate}, bars: smallBars,
		},
		{
			name: "tags-asked", title: "tags always asked for, 20 ms away, 64 clients",
			Knobs:   rig.Knobs{Latency: latency},
			prepare: tags, keep: true, cannot: noUpstream, head: rate, also: []metric{cpuPerRequest},
			bars: []bar{atLeast(1, rate, nginx), atMost(130, upstreamPer1000, ""), memory(small)},
		},
	}
}

// coldBlob is one blob for some clients.
func coldBlob(size int64, clients int) func(*rig.Content, scale) (prepared, error) {
	return func(c *rig.Content, s scale) (prepared, error) {
		b, err := c.Blob(repository, size/s.div)
		return prepared{load: rig.Every(max(1, clients/int(s.div)), []rig.Request{rig.Get(b)})}, err
	}
}

// coldImage is pulled as containerd pulls it.
func coldImage(c *rig.Content, s scale) (prepared, error) {
	config, err := c.Blob(repository, 4<<10)
	if err != nil {
		return prepared{}, err
	}
	blobs := []rig.Object{config}
	for _, mb := range []int64{90, 60, 40, 30, 20, 10, 8, 5, 2, 1} {
		b, err := c.Blob(repository, mb*1e6/s.div)
		if err != nil {
			return prepared{}, err
		}
		blobs = append(blobs, b)
	}
	byTag, byDigest, err := c.Manifest(repository, "latest", blobs)
	const atOnce = 3
	return prepared{load: rig.Sequence(
		rig.Every(1, []rig.Request{rig.Get(byTag), rig.Get(byDigest), rig.Get(config)}), rig.Each(atOnce, 0, rig.Gets(blobs[1:])),
	)}, err
}

func coldTag(c *rig.Content, s scale) (prepared, error) {
	byTag, _, err := images(c, 1)
	if err != nil {
		return prepared{}, err
	}
	return prepared{load: rig.Every(500/int(s.div), rig.Gets(byTag))}, nil
}

func coldRanges(c *rig.Content, s scale) (prepared, error) {
	const clients = 8
	b, err := c.Blob(repository, 256<<20/s.div)
	if err != nil {
		return prepared{}, err
	}
	return prepared{load: rig.Each(clients, 7*s.burst, rig.RandomRanges(b, 200/int(s.div), 64<<10))}, nil
}

func coldSmall(c *rig.Content, s scale) (prepared, error) {
	const clients = 16
	blobs, err := c.Blobs(repository, 20000/int(s.div), 4<<10)
	return prepared{load: rig.Each(clients, 3*s.burst/2, rig.Gets(blobs))}, err
}

// budget reads what is hot again and again, in time for whoever lets go first of what was used least
// recently: between two reads of a blob, no more than half of the budget goes through.
func budget(c *rig.Content, s scale) (prepared, error) {
	const clients, colds, hots, hotsBetween = 2, 48, 50, 13
	cold, err := c.Blobs(repository, colds, 64<<20/s.div)
	if err != nil {
		return prepared{}, err
	}
	hot, err := c.Blobs(hotRepository, hots, 4<<20/s.div)
	if err != nil {
		return prepared{}, err
	}
	var requests []rig.Request
	for i, b := range cold {
		requests = append(requests, rig.Get(b))
		for j := range hotsBetween {
			requests = append(requests, rig.Get(hot[(i*hotsBetween+j)%hots]))
		}
	}
	return prepared{warm: rig.Gets(hot), load: rig.Each(clients, 0, requests), hotReads: colds * hotsBetween}, nil
}

func warmBlobs(clients int) func(*rig.Content, scale) (prepared, error) {
	return func(c *rig.Content, s scale) (prepared, error) {
		blobs, err := c.Blobs(repository, 8, 64<<20/s.div)
		return prepared{warm: rig.Gets(blobs), load: rig.AnyFor(clients, s.burst, rig.Gets(blobs))}, err
	}
}

func warmSmall(c *rig.Content, s scale) (prepared, error) {
	blobs, err := c.Blobs(repository, 200, 4<<10)
	return prepared{warm: rig.Gets(blobs), load: rig.AnyFor(64, s.burst, rig.Gets(blobs))}, err
}

// images are n manifests of a config and ten layers each. Nobody pulls these.
func images(c *rig.Content, n int) (byTag, byDigest []rig.Object, err error) {
	for range n {
		blobs, err := c.Blobs(repository, 11, 1<<10)
		if err != nil {
			return nil, nil, err
		}
		t, d, err := c.Manifest(repository, "t"+blobs[0].Digest[7:19], blobs)
		if err != nil {
			return nil, nil, err
		}
		byTag, byDigest = append(byTag, t), append(byDigest, d)
	}
	return byTag, byDigest, nil
}

func warmManifests(c *rig.Content, s scale) (prepared, error) {
	_, byDigest, err := images(c, 100)
	return prepared{warm: rig.Gets(byDigest), load: rig.AnyFor(64, s.burst, rig.Gets(byDigest))}, err
}

func warmRanges(c *rig.Content, s scale) (prepared, error) {
	b, err := c.Blob(repository, 256<<20/s.div)
	if err != nil {
		return prepared{}, err
	}
	return prepared{warm: []rig.Request{rig.Get(b)}, load: rig.AnyFor(32, s.burst, rig.RandomRanges(b, 4096, 64<<10))}, nil
}

func tags(c *rig.Content, s scale) (prepared, error) {
	byTag, _, err := images(c, 4)
	return prepared{warm: rig.Gets(byTag), load: rig.AnyFor(64, s.burst, rig.Gets(byTag))}, err
}
