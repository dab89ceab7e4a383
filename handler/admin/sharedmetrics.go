package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"larder/handler/shared"
)

var (
	shRequestsDesc   = prometheus.NewDesc("larder_shared_requests_total", "Requests made to the fleet's store, by what came of them.", []string{"op", "result"}, nil)
	shHitsDesc       = prometheus.NewDesc("larder_shared_hits_total", "Blobs that were to be fetched and were in the fleet's store.", nil, nil)
	shMissesDesc     = prometheus.NewDesc("larder_shared_misses_total", "Blobs that were to be fetched and were not there.", nil, nil)
	shReadDesc       = prometheus.NewDesc("larder_shared_read_bytes_total", "Bytes read from the fleet's store.", nil, nil)
	shWrittenDesc    = prometheus.NewDesc("larder_shared_written_bytes_total", "Bytes written to it.", nil, nil)
	shOutDesc        = prometheus.NewDesc("larder_shared_breaker_open", "1 while the fleet's store is left alone because it has failed, by whether it is read or written.", []string{"direction"}, nil)
	shVersionDesc    = prometheus.NewDesc("larder_shared_wrong_version", "1 if it is left alone because larders of another kind use it.", nil, nil)
	shOutagesDesc    = prometheus.NewDesc("larder_shared_breaker_trips_total", "How often it has begun to be left alone.", nil, nil)
	shQueuedDesc     = prometheus.NewDesc("larder_shared_queued", "What waits to be written to it, or is being written.", nil, nil)
	shDroppedDesc    = prometheus.NewDesc("larder_shared_dropped_total", "What was not written to it, as too much was waiting.", nil, nil)
	shLeasesDesc     = prometheus.NewDesc("larder_shared_leases", "Blobs that this larder is fetching for the fleet.", nil, nil)
	shFollowedDesc   = prometheus.NewDesc("larder_shared_followed_total", "Blobs that another larder was fetching for this one.", nil, nil)
	shTakenOverDesc  = prometheus.NewDesc("larder_shared_taken_over_total", "Blobs that this larder went on with, as the one that was fetching them was gone.", nil, nil)
	shDistrustedDesc = prometheus.NewDesc("larder_shared_distrusted_total", "Objects of the fleet's store that were not what they should be.", nil, nil)

	sharedDescs = []*prometheus.Desc{
		shRequestsDesc, shHitsDesc, shMissesDesc, shReadDesc, shWrittenDesc, shOutDesc, shVersionDesc, shOutagesDesc,
		shQueuedDesc, shDroppedDesc, shLeasesDesc, shFollowedDesc, shTakenOverDesc, shDistrustedDesc,
	}
)

// shared are the metrics of a larder that is one of a fleet.
func (s sink) shared(t shared.Stats) {
	for _, r := range t.Requests {
		s.counter(shRequestsDesc, r.Number, r.Op, r.Result)
	}
	s.counter(shHitsDesc, t.Hits)
	s.counter(shMissesDesc, t.Misses)
	s.counter(shReadDesc, t.Read)
	s.counter(shWrittenDesc, t.Written)
	s.gauge(shOutDesc, one(t.ReadsOut != nil), "read")
	s.gauge(shOutDesc, one(t.WritesOut != nil), "write")
	s.gauge(shVersionDesc, one(t.WrongVersion))
	s.counter(shOutagesDesc, t.Outages)
	s.gauge(shQueuedDesc, int64(t.Queued))
	s.counter(shDroppedDesc, t.Dropped)
	s.gauge(shLeasesDesc, t.Leases)
	s.counter(shFollowedDesc, t.Followed)
	s.counter(shTakenOverDesc, t.TakenOver)
	s.counter(shDistrustedDesc, t.Distrusted)
}

// one is the value of a gauge that says yes or no.
func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
