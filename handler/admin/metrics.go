package admin

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler/admin/history"
	"larder/handler/middleware"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/handler/warm"
	"larder/manifestcache"
)

// Metrics is what larder tells Prometheus. No label holds a repository, a tag
// or a digest: there is no end of these.
type Metrics struct {
	registry *prometheus.Registry
	from     Sources
	requests *prometheus.CounterVec
	running  *prometheus.GaugeVec
	seconds  *prometheus.HistogramVec
	begun    *prometheus.HistogramVec
	sizes    *prometheus.HistogramVec
	sent     *prometheus.CounterVec
	asked    *prometheus.HistogramVec
	failed   *prometheus.CounterVec
	stored   *prometheus.HistogramVec
	shared   *prometheus.HistogramVec
	totals   totals
	history  *history.History

	mu    sync.Mutex                         // held to replace known
	known atomic.Pointer[map[labels]*series] // for answers that there have been
}

// labels are what the metrics of requests differ by. There are few of them.
type labels struct {
	kind, outcome string
	status        int
}

// series are the metrics of one kind of answers: to find them by their labels takes
// longer than to count.
type series struct {
	requests, sent        prometheus.Counter
	seconds, begun, sizes prometheus.Observer
}

// Sources are the parts that are asked for their Stats at each scrape.
type Sources struct {
	Blobs     Blobs
	Manifests interface{ Stats() manifestcache.Stats }
	Memory    *memory.Cache // nil: none
	Upstreams interface{ Stats() upstream.Stats }
	Limit     interface{ Stats() middleware.LimitStats }
	AuditLost func() int64 // nil: nothing is recorded
	Shared    *shared.Tier // nil: this larder is alone
	Received  func() int64 // bytes of blobs that came from upstreams
	Warmer    interface{ Stats() warm.Stats }

	// Prefetched counts blobs that were fetched before they were asked for, by what
	// became of them, and says how many are on their way. nil: none are.
	Prefetched func() (running int64, ended map[string]int64)
}

// Blobs is what is asked of the cache of blobs at each scrape.
type Blobs interface {
	Stats() blobcache.Stats
	Disk() (size, free int64, err error)
}

// NewMetrics makes the metrics, in a registry of their own. Collect must be
// called before they are asked for.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		history:  history.New(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_requests_total",
			Help: "Requests answered, by what was asked for, how it was answered (hit, join, miss, pass, revalidated, stale, shared; denied by LARDER_ALLOW, LARDER_DENY or LARDER_ACCESS; empty for other errors) and HTTP status (499: the client left).",
		}, []string{"kind", "outcome", "code"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "larder_requests_in_flight",
			Help: "Requests whose answers have not come to their end.",
		}, []string{"kind"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_request_duration_seconds",
			Help:    "Time from a request to the end of its answer.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 300},
		}, []string{"kind", "outcome"}),
		begun: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_first_byte_seconds",
			Help:    "Time from a request to the beginning of its answer.",
			Buckets: []float64{.0005, .002, .01, .05, .2, 1, 5, 25},
		}, []string{"kind", "outcome"}),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_response_size_bytes",
			Help:    "Bytes of one answer's body, sent.",
			Buckets: prometheus.ExponentialBuckets(1<<10, 16, 7), // 1 KiB to 16 GiB
		}, []string{"kind"}),
		asked: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_upstream_duration_seconds",
			Help:    "Time from a question to an upstream to its answer; of a blob, to the header.",
			Buckets: []float64{.005, .02, .1, .5, 2, 10, 25},
		}, []string{"host", "op"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_upstream_errors_total",
			Help: "Questions to an upstream that were not answered as hoped, by reason: timeout, unreachable, unasked (it is left alone), ratelimit, denied, notfound, upstream (5xx), wrong (an answer that can't be used), left (the client was gone).",
		}, []string{"host", "op", "reason"}),
		stored: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_store_duration_seconds",
			Help:    "Time that the disk took to write a piece, or to commit a file (rename, and fsync unless it is small).",
			Buckets: []float64{.0001, .001, .01, .1, 1, 10},
		}, []string{"kind", "op"}),
		shared: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_shared_request_duration_seconds",
			Help:    "Time that the fleet's store took for a request; of what is read, until it begins to come.",
			Buckets: []float64{.002, .01, .05, .2, 1, 5},
		}, []string{"op"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_sent_bytes_total",
			Help: "Bytes of bodies sent to clients.",
		}, []string{"kind", "outcome"}),
	}
	m.known.Store(&map[labels]*series{})
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "larder_build_info", Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.running, m.seconds, m.begun, m.sizes, m.sent, m.asked, m.failed, m.stored, m.shared, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Collect says whose Stats are metrics too. It is called once.
func (m *Metrics) Collect(from Sources) {
	m.from = from
	m.registry.MustRegister(statsCollector{from})
}

// Observe counts one request. It is the middleware's Options.Observe.
func (m *Metrics) Observe(o middleware.Observation) {
	s := m.series(labels{o.Kind, o.Outcome, o.Status})
	s.requests.Inc()
	s.seconds.Observe(o.Duration.Seconds())
	s.sent.Add(float64(o.Bytes))
	if o.Begun > 0 {
		s.begun.Observe(o.Begun.Seconds())
		s.sizes.Observe(float64(o.Bytes))
	}
	m.totals.add(o)
	m.history.Add(o)
}

func (m *Metrics) series(a labels) *series {
	if s := (*m.known.Load())[a]; s != nil {
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &series{
		requests: m.requests.WithLabelValues(a.kind, a.outcome, strconv.Itoa(a.status)),
		sent:     m.sent.WithLabelValues(a.kind, a.outcome),
		seconds:  m.seconds.WithLabelValues(a.kind, a.outcome),
		begun:    m.begun.WithLabelValues(a.kind, a.outcome),
		sizes:    m.sizes.WithLabelValues(a.kind),
	}
	known := maps.Clone(*m.known.Load())
	known[a] = s
	m.known.Store(&known)
	return s
}

// Running counts requests that are being answered. It is the middleware's
// Options.Running.
func (m *Metrics) Running(kind string, delta int) {
	m.running.WithLabelValues(kind).Add(float64(delta))
}

// Asked counts a question to an upstream. It is upstream's Config.Observe.
func (m *Metrics) Asked(o upstream.Observation) {
	m.asked.WithLabelValues(o.Host, o.Op).Observe(o.Took.Seconds())
	if o.Failure != "" {
		m.failed.WithLabelValues(o.Host, o.Op, o.Failure).Inc()
	}
}

// Stored is the Config.Observe of a cache of blobs or manifests.
func (m *Metrics) Stored(kind string) func(op string, took time.Duration) {
	return func(op string, took time.Duration) { m.stored.WithLabelValues(kind, op).Observe(took.Seconds()) }
}

// Shared counts a request to the fleet's store. It is a tier's Config.Observe.
func (m *Metrics) Shared(op string, took time.Duration, _ string) {
	m.shared.WithLabelValues(op).Observe(took.Seconds())
}
