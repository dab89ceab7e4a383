package main

import (
	"slices"

	"larder/testdata/rig"
)

// sample is what one run of a case against one peer gave.
type sample struct {
	Seconds  float64
	Requests int
	Bytes    int64 // of bodies
	CPU      float64
	Idle     int64 // resident bytes after the start
	Peak     int64 // and at most
	Size     int64 // of all that can be asked for, each byte once

	First50, First99 float64 // seconds to the first byte of a body
	Total50, Total99 float64 // and to the last

	UpstreamCPU float64
	Upstream    rig.Count

	HighWater int64 // of the cache on disk, where there is a budget
	Budget    int64
	HotReads  int // of what is hot
	HotMisses int // that upstream was asked for
}

// record takes the clients' figures.
func (s *sample) record(p *rig.Pull) {
	bytes, firsts, totals := p.Measured()
	s.Bytes = bytes
	s.Seconds, s.Requests = p.Took.Seconds(), len(totals)
	slices.Sort(firsts)
	slices.Sort(totals)
	s.First50, s.First99 = quantile(firsts, 0.5).Seconds(), quantile(firsts, 0.99).Seconds()
	s.Total50, s.Total99 = quantile(totals, 0.5).Seconds(), quantile(totals, 0.99).Seconds()
}

// quantile is of sorted values: the least of them that a share q is not above.
func quantile[T any](sorted []T, q float64) T {
	var zero T
	if len(sorted) == 0 {
		return zero
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// metric is a figure of a sample, called by its name and unit.
type metric string

const (
	seconds       metric = "time s"
	cpuSeconds    metric = "CPU s"
	cpuPerGB      metric = "CPU s/GB"
	cpuPerRequest metric = "CPU µs/request"
	throughput    metric = "GB/s"
	rate          metric = "requests/s"
	firstByte50   metric = "first byte p50 ms"
	firstByte99   metric = "first byte p99 ms"
	total99       metric = "p99 ms"
	growth        metric = "RSS over idle MiB"

	upstreamRequests  metric = "upstream requests"
	upstreamManifests metric = "upstream manifest requests"
	upstreamPer1000   metric = "upstream requests per 1000"
	upstreamMiB       metric = "upstream MiB"
	upstreamTimes     metric = "upstream bytes / what there is"
	upstreamOverAsked metric = "upstream bytes / what was asked for"
	highWater         metric = "high-water / budget"
	hotHits           metric = "hot hits %"
)

// figure is the metric's value.
func (s sample) figure(m metric) float64 {
	switch m {
	case seconds:
		return s.Seconds
	case cpuSeconds:
		return s.CPU
	case cpuPerGB:
		return s.CPU / (float64(s.Bytes) / 1e9)
	case cpuPerRequest:
		return s.CPU / float64(s.Requests) * 1e6
	case throughput:
		return float64(s.Bytes) / 1e9 / s.Seconds
	case rate:
		return float64(s.Requests) / s.Seconds
	case firstByte50:
		return s.First50 * 1e3
	case firstByte99:
		return s.First99 * 1e3
	case total99:
		return s.Total99 * 1e3
	case growth:
		return float64(s.Peak-s.Idle) / (1 << 20)
	case upstreamRequests:
		return float64(s.Upstream.Heads + s.Upstream.Manifests + s.Upstream.Blobs)
	case upstreamManifests:
		return float64(s.Upstream.Heads + s.Upstream.Manifests)
	case upstreamPer1000:
		return s.figure(upstreamRequests) / float64(s.Requests) * 1000
	case upstreamMiB:
		return float64(s.Upstream.Bytes) / (1 << 20)
	case upstreamOverAsked:
		return float64(s.Upstream.Bytes) / float64(s.Bytes)
	case highWater:
		return float64(s.HighWater) / float64(s.Budget)
	case hotHits:
		return 100 * (1 - float64(s.HotMisses)/float64(s.HotReads))
	case upstreamTimes:
		return float64(s.Upstream.Bytes) / float64(s.Size)
	default:
		panic("no metric " + m)
	}
}
