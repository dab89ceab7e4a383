package main

import "time"

// scale is how much there is to pull: all of it, or little for a first look.
type scale struct {
	div   int64         // sizes and numbers of clients are divided by it
	burst time.Duration // for cases that take as long as one says
}

func full() scale  { return scale{1, 2 * time.Second} }
func short() scale { return scale{8, 300 * time.Millisecond} }

// repository is where everything is that is pulled, but for what a case wants
// to be counted apart.
const repository = "bench/app"

// prepared is what a case does.
type prepared struct {
	warm []request // asked for once, before anything is measured
	load load
}

// benchCase is a row of the report.
type benchCase struct {
	name  string
	title string
	knobs
	options
	// prepare makes what is to be pulled.
	prepare func(c *content, s scale) (prepared, error)
	// keep has peers run through all rounds, with all that prepared.warm names
	// in their cache. Without it, they start with an empty cache each time.
	keep   bool
	cannot func(peer string) (why string)
	head   metric // what ratios are of
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

func allCases() []benchCase {
	return []benchCase{
		{
			name: "cold-blob", title: "cold blob of 512 MiB, one client",
			prepare: coldBlob(512<<20, 1), cannot: noUpstream, head: seconds,
			bars: []bar{atMost(1, seconds, nginx), atMost(0.75, cpuSeconds, dockerIO), memory(idle)},
		},
		{
			name: "cold-herd", title: "64 clients, one cold blob of 128 MiB",
			prepare: coldHerd, cannot: noUpstream, head: seconds,
			bars: []bar{
				atMost(0.65, seconds, nginx), atMost(0.15, firstByte50, nginx), atMost(1.05, cpuSeconds, nginx),
				atMost(1, upstreamTimes, ""), memory(idle),
			},
		},
		{
			name: "warm-blob-1", title: "warm blobs of 64 MiB, one client",
			prepare: warmBlobs(1), keep: true, cannot: noCache, head: cpuPerGB,
			bars: []bar{atMost(0.8, cpuPerGB, nginx), atLeast(1, throughput, nginx), memory(idle)},
		},
		{
			name: "warm-blob-32", title: "warm blobs of 64 MiB, 32 clients",
			prepare: warmBlobs(32), keep: true, cannot: noCache, head: cpuPerGB,
			bars: []bar{atMost(0.8, cpuPerGB, nginx), atLeast(1, throughput, nginx), memory(idle)},
		},
		{
			name: "warm-small", title: "warm blobs of 4 KiB, 64 clients",
			prepare: warmSmall, keep: true, cannot: noCache, head: cpuPerRequest,
			bars: smallBars(),
		},
		{
			name: "warm-manifest", title: "warm manifests by digest, 64 clients",
			prepare: warmManifests, keep: true, cannot: noCache, head: cpuPerRequest,
			bars: smallBars(),
		},
		{
			name: "tags-trusted", title: "tags trusted for 60 s, 64 clients",
			options: options{TagTTL: time.Minute},
			prepare: tags(64), keep: true, cannot: noTrust, head: cpuPerRequest,
			bars: smallBars(),
		},
	}
}

// smallBars are those of answers that cost little but their headers.
func smallBars() []bar {
	return []bar{atMost(1.15, cpuPerRequest, nginx), atMost(1, total99, nginx), memory(small)}
}

// coldBlob is one blob for some clients.
func coldBlob(size int64, clients int) func(*content, scale) (prepared, error) {
	return func(c *content, s scale) (prepared, error) {
		b, err := c.blob(repository, size/s.div)
		return prepared{load: every(clients, []request{get(b)})}, err
	}
}

func coldHerd(c *content, s scale) (prepared, error) {
	b, err := c.blob(repository, 128<<20/s.div)
	return prepared{load: every(64/int(s.div), []request{get(b)})}, err
}

func warmBlobs(clients int) func(*content, scale) (prepared, error) {
	return func(c *content, s scale) (prepared, error) {
		blobs, err := c.blobs(repository, 8, 64<<20/s.div)
		return prepared{warm: gets(blobs), load: anyFor(clients, s.burst, gets(blobs))}, err
	}
}

func warmSmall(c *content, s scale) (prepared, error) {
	blobs, err := c.blobs(repository, 200, 4<<10)
	return prepared{warm: gets(blobs), load: anyFor(64, s.burst, gets(blobs))}, err
}

// images are n manifests of a config and ten layers each. Nobody pulls these.
func images(c *content, n int) (byTag, byDigest []object, err error) {
	for range n {
		blobs, err := c.blobs(repository, 11, 1<<10)
		if err != nil {
			return nil, nil, err
		}
		t, d, err := c.manifest(repository, "t"+blobs[0].digest[7:19], blobs)
		if err != nil {
			return nil, nil, err
		}
		byTag, byDigest = append(byTag, t), append(byDigest, d)
	}
	return byTag, byDigest, nil
}

func warmManifests(c *content, s scale) (prepared, error) {
	_, byDigest, err := images(c, 100)
	return prepared{warm: gets(byDigest), load: anyFor(64, s.burst, gets(byDigest))}, err
}

func tags(clients int) func(*content, scale) (prepared, error) {
	return func(c *content, s scale) (prepared, error) {
		byTag, _, err := images(c, 4)
		return prepared{warm: gets(byTag), load: anyFor(clients, s.burst, gets(byTag))}, err
	}
}
