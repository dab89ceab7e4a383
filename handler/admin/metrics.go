package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"larder/blobcache"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// Metrics is what larder tells Prometheus. No label holds a repository, a tag
// or a digest: there is no end of these.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     *prometheus.CounterVec
}

// Sources are the parts that are asked for their Stats at each scrape.
type Sources struct {
	Blobs     interface{ Stats() blobcache.Stats }
	Manifests interface{ Stats() manifestcache.Stats }
	Upstreams interface{ Stats() upstream.Stats }
}

// NewMetrics makes the metrics, in a registry of their own.
func NewMetrics(version string, from Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_requests_total",
			Help: "Requests answered, by what was asked for, how it was answered (hit, join, miss, pass, revalidated, stale; denied by LARDER_ALLOW or LARDER_DENY; empty for other errors) and HTTP status (499: the client left).",
		}, []string{"kind", "outcome", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "larder_request_duration_seconds",
			Help:    "Time from a request to the end of its answer.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 300},
		}, []string{"kind", "outcome"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "larder_sent_bytes_total",
			Help: "Bytes of bodies sent to clients.",
		}, []string{"kind", "outcome"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "larder_build_info", Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.seconds, m.sent, build, statsCollector{from},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe counts one request. It is the middleware's Options.Observe.
func (m *Metrics) Observe(o middleware.Observation) {
	m.requests.WithLabelValues(o.Kind, o.Outcome, strconv.Itoa(o.Status)).Inc()
	m.seconds.WithLabelValues(o.Kind, o.Outcome).Observe(o.Duration.Seconds())
	m.sent.WithLabelValues(o.Kind, o.Outcome).Add(float64(o.Bytes))
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
	storeDesc      = prometheus.NewDesc("larder_store_errors_total", "Failures to write, commit or remove files of blobs.", nil, nil)
	scrubbedDesc   = prometheus.NewDesc("larder_scrubbed_bytes_total", "Bytes of cached blobs read again to see whether they are right.", nil, nil)
	doubtedDesc    = prometheus.NewDesc("larder_blobs_doubted_total", "Cached blobs verified anew because clients asked for them again at once.", nil, nil)
	fetchedDesc    = prometheus.NewDesc("larder_upstream_bytes_total", "Bytes of blobs received from upstreams.", nil, nil)
	answersDesc    = prometheus.NewDesc("larder_upstream_requests_total", "Requests made to upstreams, handshakes and redirects included (code 0: no answer).", []string{"host", "code"}, nil)
	resumedDesc    = prometheus.NewDesc("larder_blob_resumes_total", "Bodies that broke off and were gone on with.", nil, nil)
	mismatchesDesc = prometheus.NewDesc("larder_digest_mismatches_total", "Answers of upstreams that were thrown away because their bytes were wrong.", []string{"kind"}, nil)
	damagedDesc    = prometheus.NewDesc("larder_damaged_total", "Files of the cache that were thrown away because they were not what was stored.", []string{"kind"}, nil)
	expiredDesc    = prometheus.NewDesc("larder_expired_total", "Files removed at the end of their time to live.", []string{"kind"}, nil)
	openDesc       = prometheus.NewDesc("larder_upstream_breaker_open", "1 while an upstream is left alone because it has failed.", []string{"host", "url"}, nil)
	tripsDesc      = prometheus.NewDesc("larder_upstream_breaker_trips_total", "How often an upstream has begun to be left alone.", []string{"host", "url"}, nil)
	heldDesc       = prometheus.NewDesc("larder_upstream_held_repositories", "Repositories that an upstream is not asked about, after 429 or failures that are theirs alone.", []string{"host", "url"}, nil)
	limitDesc      = prometheus.NewDesc("larder_upstream_ratelimit_limit", "Pulls that an upstream allows in its window, where it says so.", []string{"host", "url"}, nil)
	remainingDesc  = prometheus.NewDesc("larder_upstream_ratelimit_remaining", "Pulls of them that were left when it last said so.", []string{"host", "url"}, nil)
	sourceDesc     = prometheus.NewDesc("larder_upstream_ratelimit_source", "Always 1; whose pulls are counted, an address or a user, is a label.", []string{"host", "url", "source"}, nil)
	failedDesc     = prometheus.NewDesc("larder_expire_errors_total", "Expired files that could not be removed; each is tried again.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (c statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		fillsDesc, entriesDesc, bytesDesc, maxDesc, reservedDesc, evictedDesc, evictedBDesc, passedDesc, storeDesc,
		scrubbedDesc, doubtedDesc, fetchedDesc, answersDesc, resumedDesc, mismatchesDesc, damagedDesc, expiredDesc, failedDesc,
		openDesc, tripsDesc, heldDesc, limitDesc, remainingDesc, sourceDesc,
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
	counter(storeDesc, b.StoreErrors)
	counter(scrubbedDesc, b.ScrubbedBytes)
	counter(doubtedDesc, b.Doubted)
	counter(fetchedDesc, b.Fetched)
	counter(resumedDesc, b.Resumed)
	counter(mismatchesDesc, b.Mismatches, "blob")
	counter(damagedDesc, b.Damaged, "blob")
	counter(expiredDesc, b.Expired, "blob")
	counter(failedDesc, b.ExpireErrors, "blob")

	m := c.from.Manifests.Stats()
	gauge(entriesDesc, m.Entries, "manifest")
	gauge(bytesDesc, m.Bytes, "manifest")
	gauge(entriesDesc, m.Lists, "list")
	gauge(bytesDesc, m.ListBytes, "list")
	counter(mismatchesDesc, m.Mismatches, "manifest")
	counter(damagedDesc, m.Damaged, "manifest")
	counter(expiredDesc, m.Expired, "manifest")
	counter(failedDesc, m.ExpireErrors, "manifest")

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
