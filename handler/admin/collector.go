package admin

import (
	"maps"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/handler/warm"
	"larder/manifestcache"
)

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
	prefetchDesc   = prometheus.NewDesc("larder_prefetches", "Blobs that are being fetched before anybody has asked for them (LARDER_PREFETCH).", nil, nil)
	prefetchedDesc = prometheus.NewDesc("larder_prefetched_blobs_total", "Blobs that were fetched before they were asked for: they came first (complete), a client came meanwhile (joined), none came in time (unused), they could not be had or kept (failed).", []string{"outcome"}, nil)
	pinnedDesc     = prometheus.NewDesc("larder_pinned_entries", "Files in the cache that pins hold.", []string{"kind"}, nil)
	pinnedBDesc    = prometheus.NewDesc("larder_pinned_bytes", "Bytes of blobs that pins hold.", nil, nil)
	pinsDesc       = prometheus.NewDesc("larder_pins", "Images that are pinned by hand.", nil, nil)
	warmingDesc    = prometheus.NewDesc("larder_warm_jobs", "Orders to warm images that are being carried out.", nil, nil)
	warmedDesc     = prometheus.NewDesc("larder_warm_images_total", "References that were warmed, by what became of it: done, failed, stopped.", []string{"state"}, nil)
	warmBytesDesc  = prometheus.NewDesc("larder_warm_bytes_total", "Bytes of blobs that were fetched to be warm.", nil, nil)
	diskDesc       = prometheus.NewDesc("larder_disk_bytes", "Size of the file system that the cache is on.", nil, nil)
	freeDesc       = prometheus.NewDesc("larder_disk_free_bytes", "What is free of it for larder.", nil, nil)
	lostDesc       = prometheus.NewDesc("larder_audit_lost_total", "Audit records that could not be written.", nil, nil)
	failedDesc     = prometheus.NewDesc("larder_expire_errors_total", "Expired files that could not be removed; each is tried again.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (c statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		fillsDesc, entriesDesc, bytesDesc, maxDesc, reservedDesc, evictedDesc, evictedBDesc, passedDesc, storeDesc,
		scrubbedDesc, doubtedDesc, fetchedDesc, answersDesc, resumedDesc, mismatchesDesc, damagedDesc, expiredDesc, failedDesc,
		openDesc, tripsDesc, heldDesc, limitDesc, remainingDesc, sourceDesc, runningDesc, queuedDesc, refusedDesc,
		rememberedDesc, remHitsDesc, remMissesDesc, memHitsDesc, memMissesDesc, memBytesDesc, memEntriesDesc, memMaxDesc,
		warmingDesc, warmedDesc, warmBytesDesc, pinnedDesc, pinnedBDesc, pinsDesc, prefetchDesc, prefetchedDesc,
		diskDesc, freeDesc, lostDesc,
	} {
		ch <- d
	}
	for _, d := range sharedDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statsCollector) Collect(ch chan<- prometheus.Metric) {
	s := sink(ch)
	s.blobs(c.from.Blobs.Stats())
	s.counter(fetchedDesc, c.from.Received())
	if size, free, err := c.from.Blobs.Disk(); err == nil {
		s.gauge(diskDesc, size)
		s.gauge(freeDesc, free)
	}
	s.manifests(c.from.Manifests.Stats())
	s.memory(c.from.Memory.Stats())
	s.upstreams(c.from.Upstreams.Stats())
	s.limit(c.from.Limit.Stats())
	s.warm(c.from.Warmer.Stats())
	if c.from.Shared != nil {
		s.shared(c.from.Shared.Stats())
	}
	if c.from.Prefetched != nil {
		running, ended := c.from.Prefetched()
		s.gauge(prefetchDesc, running)
		for outcome, n := range ended {
			s.counter(prefetchedDesc, n, outcome)
		}
	}
	if c.from.AuditLost != nil {
		s.counter(lostDesc, c.from.AuditLost())
	}
}

// sink takes the metrics of a scrape.
type sink chan<- prometheus.Metric

func (s sink) gauge(d *prometheus.Desc, v int64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
}

func (s sink) counter(d *prometheus.Desc, v int64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (s sink) blobs(b blobcache.Stats) {
	s.gauge(fillsDesc, b.Fills)
	s.gauge(entriesDesc, b.Entries, "blob")
	s.gauge(bytesDesc, b.Bytes, "blob")
	s.gauge(entriesDesc, b.Partials, "partial")
	s.gauge(bytesDesc, b.PartialBytes, "partial")
	s.gauge(maxDesc, b.MaxBytes)
	s.gauge(reservedDesc, b.Reserved)
	s.gauge(pinnedDesc, b.Held, "blob")
	s.gauge(pinnedBDesc, b.HeldBytes)
	s.counter(evictedDesc, b.Evicted)
	s.counter(evictedBDesc, b.EvictedBytes)
	s.counter(passedDesc, b.Passed)
	s.storeErrors("blob", b.StoreErrors)
	s.counter(scrubbedDesc, b.ScrubbedBytes)
	s.counter(doubtedDesc, b.Doubted)
	s.counter(resumedDesc, b.Resumed)
	s.counter(mismatchesDesc, b.Mismatches, "blob")
	s.counter(damagedDesc, b.Damaged, "blob")
	s.counter(expiredDesc, b.Expired, "blob")
	s.counter(failedDesc, b.ExpireErrors, "blob")
}

// storeErrors begins with what may go wrong at 0, as Prometheus sees no increase in
// what was not there before.
func (s sink) storeErrors(kind string, errs map[string]int64) {
	all := map[string]int64{"ENOSPC": 0, "EROFS": 0, "EIO": 0}
	maps.Copy(all, errs)
	for name, n := range all {
		s.counter(storeDesc, n, kind, name)
	}
}

func (s sink) manifests(m manifestcache.Stats) {
	s.gauge(entriesDesc, m.Entries, "manifest")
	s.gauge(bytesDesc, m.Bytes, "manifest")
	s.storeErrors("manifest", m.StoreErrors)
	s.gauge(entriesDesc, m.Lists, "list")
	s.gauge(bytesDesc, m.ListBytes, "list")
	s.counter(mismatchesDesc, m.Mismatches, "manifest")
	s.counter(damagedDesc, m.Damaged, "manifest")
	s.counter(expiredDesc, m.Expired, "manifest")
	s.counter(failedDesc, m.ExpireErrors, "manifest")
	s.gauge(pinnedDesc, m.Held, "manifest")
	s.gauge(pinsDesc, m.Pins)
	s.gauge(rememberedDesc, m.Remembered)
	s.counter(remHitsDesc, m.RememberedHits)
	s.counter(remMissesDesc, m.RememberedMisses)
}

func (s sink) memory(k memory.Stats) {
	s.counter(memHitsDesc, k.Hits)
	s.counter(memMissesDesc, k.Misses)
	s.gauge(memBytesDesc, k.Bytes)
	s.gauge(memEntriesDesc, k.Entries)
	s.gauge(memMaxDesc, k.MaxBytes)
}

func (s sink) upstreams(u upstream.Stats) {
	for host, answers := range u.Answers {
		for code, n := range answers {
			s.counter(answersDesc, n, host, strconv.Itoa(code))
		}
	}
	for _, p := range u.Places {
		s.gauge(openDesc, one(p.Open), p.Host, p.URL)
		s.counter(tripsDesc, p.Trips, p.Host, p.URL)
		s.gauge(heldDesc, int64(p.Held), p.Host, p.URL)
		if p.Quota.Seen.IsZero() {
			continue
		}
		s.gauge(limitDesc, int64(p.Quota.Limit), p.Host, p.URL)
		s.gauge(remainingDesc, int64(p.Quota.Remaining), p.Host, p.URL)
		s.gauge(sourceDesc, 1, p.Host, p.URL, p.Quota.Source)
	}
}

func (s sink) limit(l middleware.LimitStats) {
	s.gauge(runningDesc, l.Running)
	s.gauge(queuedDesc, l.Queued)
	s.counter(refusedDesc, l.Full, "full")
	s.counter(refusedDesc, l.Late, "late")
	s.counter(refusedDesc, l.Left, "left")
}

func (s sink) warm(w warm.Stats) {
	s.gauge(warmingDesc, w.Running)
	s.counter(warmedDesc, w.Done, "done")
	s.counter(warmedDesc, w.Failed, "failed")
	s.counter(warmedDesc, w.Stopped, "stopped")
	s.counter(warmBytesDesc, w.Fetched)
}
