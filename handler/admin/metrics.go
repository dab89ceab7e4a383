package admin

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler/middleware"
	"larder/handler/upstream"
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
	totals   totals
}

// Sources are the parts that are asked for their Stats at each scrape.
type Sources struct {
	Blobs     interface{ Stats() blobcache.Stats }
	Manifests interface{ Stats() manifestcache.Stats }
	Memory    *memory.Cache // nil: none
	Upstreams interface{ Stats() upstream.Stats }
	Limit     interface{ Stats() middleware.LimitStats }
}

// NewMetrics makes the metrics, in a registry of their own. Collect must be
// called before they are asked for.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_requests_total",
			Help: "Requests answered, by what was asked for, how it was answered (hit, join, miss, pass, revalidated, stale; denied by LARDER_ALLOW or LARDER_DENY; empty for other errors) and HTTP status (499: the client left).",
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
			Help:    "Time that the disk took to write a piece, or to commit a file (fsync and rename).",
			Buckets: []float64{.0001, .001, .01, .1, 1, 10},
		}, []string{"kind", "op"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_sent_bytes_total",
			Help: "Bytes of bodies sent to clients.",
		}, []string{"kind", "outcome"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "larder_build_info", Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.running, m.seconds, m.begun, m.sizes, m.sent, m.asked, m.failed, m.stored, build,
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
	m.requests.WithLabelValues(o.Kind, o.Outcome, strconv.Itoa(o.Status)).Inc()
	m.seconds.WithLabelValues(o.Kind, o.Outcome).Observe(o.Duration.Seconds())
	m.sent.WithLabelValues(o.Kind, o.Outcome).Add(float64(o.Bytes))
	if o.Begun > 0 {
		m.begun.WithLabelValues(o.Kind, o.Outcome).Observe(o.Begun.Seconds())
		m.sizes.WithLabelValues(o.Kind).Observe(float64(o.Bytes))
	}
	m.totals.add(o)
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

// statsCollector turns Stats into metrics at the time of the scrape.
type statsCollector struct{ from Sources }

var (
	fillsDesc      = prometheus.NewDesc("larder_fills", "Blobs on their way to disk now.", nil, nil)
	entriesDesc    = prometheus.NewDesc("larder_cache_entries", "Files in the cache.", []string{"kind"}, nil)
	bytesDesc      = prometheus.NewDesc("larder_cache_bytes", "Bytes in the cache.", []string{"kind"}, nil)
	maxDesc        = prometheus.NewDesc("larder_cache_max_bytes", "What blobs may take in the cache (0: no limit).", nil, nil)
	reservedDesc   = prometheus.NewDesc("larder_cache_reserved_bytes", "What blobs on their way have taken in the cache, or have room for.", nil, nil)
	evictedDesc    = prometheus.NewDesc("larder_evicted_total", "Blobs removed before the end of their time to live, to make room.", nil, nil)
	evictedBDesc   = prometheus.NewDesc("larder_evicted_bytes_total", "Bytes of blobs removed to make room.", nil, nil)
	passedDesc     = prometheus.NewDesc("larder_blobs_passed_total", "Answers with a blob that could not be kept.", nil, nil)
	storeDesc      = prometheus.NewDesc("larder_store_errors_total", "Failures to write, commit or remove files of the cache, by the system's name of the error.", []string{"kind", "error"}, nil)
	scrubbedDesc   = prometheus.NewDesc("larder_scrubbed_bytes_total", "Bytes of cached blobs read again to see whether they are right.", nil, nil)
	doubtedDesc    = prometheus.NewDesc("larder_blobs_doubted_total", "Cached blobs verified anew because clients asked for them again at once.", nil, nil)
	fetchedDesc    = prometheus.NewDesc("larder_upstream_bytes_total", "Bytes of blobs received from upstreams.", nil, nil)
	answersDesc    = prometheus.NewDesc("larder_upstream_requests_total", "Requests made to upstreams, handshakes and redirects included (code 0: no answer).", []string{"host", "code"}, nil)
	resumedDesc    = prometheus.NewDesc("larder_blob_resumes_total", "Bodies that broke off and were gone on with.", nil, nil)
	mismatchesDesc = prometheus.NewDesc("larder_digest_mismatches_total", "Answers of upstreams that were thrown away because their bytes were wrong.", []string{"kind"}, nil)
	damagedDesc    = prometheus.NewDesc("larder_damaged_total", "Files of the cache that were thrown away because they were not what was stored.", []string{"kind"}, nil)
	expiredDesc    = prometheus.NewDesc("larder_expired_total", "Files removed at the end of their time to live.", []string{"kind"}, nil)
	rememberedDesc = prometheus.NewDesc("larder_remembered_layers", "Blobs of which is remembered that a repository has them.", nil, nil)
	remHitsDesc    = prometheus.NewDesc("larder_remembered_layer_hits_total", "Blobs asked for of which that was remembered.", nil, nil)
	remMissesDesc  = prometheus.NewDesc("larder_remembered_layer_misses_total", "Blobs asked for of which upstream had to say that.", nil, nil)
	memHitsDesc    = prometheus.NewDesc("larder_memory_hits_total", "Manifests and small blobs taken from memory.", nil, nil)
	memMissesDesc  = prometheus.NewDesc("larder_memory_misses_total", "Manifests and small blobs that were not in memory.", nil, nil)
	memBytesDesc   = prometheus.NewDesc("larder_memory_bytes", "What manifests and small blobs take in memory.", nil, nil)
	memEntriesDesc = prometheus.NewDesc("larder_memory_entries", "Manifests and small blobs in memory.", nil, nil)
	memMaxDesc     = prometheus.NewDesc("larder_memory_max_bytes", "What they may take in memory.", nil, nil)
	openDesc       = prometheus.NewDesc("larder_upstream_breaker_open", "1 while an upstream is left alone because it has failed.", []string{"host", "url"}, nil)
	tripsDesc      = prometheus.NewDesc("larder_upstream_breaker_trips_total", "How often an upstream has begun to be left alone.", []string{"host", "url"}, nil)
	heldDesc       = prometheus.NewDesc("larder_upstream_held_repositories", "Repositories that an upstream is not asked about, after 429 or failures that are theirs alone.", []string{"host", "url"}, nil)
	limitDesc      = prometheus.NewDesc("larder_upstream_ratelimit_limit", "Pulls that an upstream allows in its window, where it says so.", []string{"host", "url"}, nil)
	remainingDesc  = prometheus.NewDesc("larder_upstream_ratelimit_remaining", "Pulls of them that were left when it last said so.", []string{"host", "url"}, nil)
	sourceDesc     = prometheus.NewDesc("larder_upstream_ratelimit_source", "Always 1; whose pulls are counted, an address or a user, is a label.", []string{"host", "url", "source"}, nil)
	runningDesc    = prometheus.NewDesc("larder_limit_running", "Requests for what is in a repository, without HEADs, that run now.", nil, nil)
	queuedDesc     = prometheus.NewDesc("larder_limit_queued", "Requests that wait until others have run.", nil, nil)
	refusedDesc    = prometheus.NewDesc("larder_limit_refused_total", "Requests that have not run: too many waited (full), it waited too long (late), its client left while it waited (left).", []string{"reason"}, nil)
	failedDesc     = prometheus.NewDesc("larder_expire_errors_total", "Expired files that could not be removed; each is tried again.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (c statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		fillsDesc, entriesDesc, bytesDesc, maxDesc, reservedDesc, evictedDesc, evictedBDesc, passedDesc, storeDesc,
		scrubbedDesc, doubtedDesc, fetchedDesc, answersDesc, resumedDesc, mismatchesDesc, damagedDesc, expiredDesc, failedDesc,
		openDesc, tripsDesc, heldDesc, limitDesc, remainingDesc, sourceDesc, runningDesc, queuedDesc, refusedDesc,
		rememberedDesc, remHitsDesc, remMissesDesc, memHitsDesc, memMissesDesc, memBytesDesc, memEntriesDesc, memMaxDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statsCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	b := c.from.Blobs.Stats()
	gauge(fillsDesc, b.Fills)
	gauge(entriesDesc, b.Entries, "blob")
	gauge(bytesDesc, b.Bytes, "blob")
	gauge(entriesDesc, b.Partials, "partial")
	gauge(bytesDesc, b.PartialBytes, "partial")
	gauge(maxDesc, b.MaxBytes)
	gauge(reservedDesc, b.Reserved)
	counter(evictedDesc, b.Evicted)
	counter(evictedBDesc, b.EvictedBytes)
	counter(passedDesc, b.Passed)
	for name, n := range b.StoreErrors {
		counter(storeDesc, n, "blob", name)
	}
	counter(scrubbedDesc, b.ScrubbedBytes)
	counter(doubtedDesc, b.Doubted)
	counter(fetchedDesc, b.Fetched)
	counter(resumedDesc, b.Resumed)
	counter(mismatchesDesc, b.Mismatches, "blob")
	counter(damagedDesc, b.Damaged, "blob")
	counter(expiredDesc, b.Expired, "blob")
	counter(failedDesc, b.ExpireErrors, "blob")

	l := c.from.Limit.Stats()
	gauge(runningDesc, l.Running)
	gauge(queuedDesc, l.Queued)
	counter(refusedDesc, l.Full, "full")
	counter(refusedDesc, l.Late, "late")
	counter(refusedDesc, l.Left, "left")

	m := c.from.Manifests.Stats()
	gauge(entriesDesc, m.Entries, "manifest")
	gauge(bytesDesc, m.Bytes, "manifest")
	for name, n := range m.StoreErrors {
		counter(storeDesc, n, "manifest", name)
	}
	gauge(entriesDesc, m.Lists, "list")
	gauge(bytesDesc, m.ListBytes, "list")
	counter(mismatchesDesc, m.Mismatches, "manifest")
	counter(damagedDesc, m.Damaged, "manifest")
	counter(expiredDesc, m.Expired, "manifest")
	counter(failedDesc, m.ExpireErrors, "manifest")
	gauge(rememberedDesc, m.Remembered)
	counter(remHitsDesc, m.RememberedHits)
	counter(remMissesDesc, m.RememberedMisses)

	k := c.from.Memory.Stats()
	counter(memHitsDesc, k.Hits)
	counter(memMissesDesc, k.Misses)
	gauge(memBytesDesc, k.Bytes)
	gauge(memEntriesDesc, k.Entries)
	gauge(memMaxDesc, k.MaxBytes)

	u := c.from.Upstreams.Stats()
	for host, answers := range u.Answers {
		for code, n := range answers {
			counter(answersDesc, n, host, strconv.Itoa(code))
		}
	}
	for _, p := range u.Places {
		gauge(openDesc, map[bool]int64{true: 1}[p.Open], p.Host, p.URL)
		counter(tripsDesc, p.Trips, p.Host, p.URL)
		gauge(heldDesc, int64(p.Held), p.Host, p.URL)
		if p.Quota.Seen.IsZero() {
			continue
		}
		gauge(limitDesc, int64(p.Quota.Limit), p.Host, p.URL)
		gauge(remainingDesc, int64(p.Quota.Remaining), p.Host, p.URL)
		gauge(sourceDesc, 1, p.Host, p.URL, p.Quota.Source)
	}
}
