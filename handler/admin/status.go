package admin

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/admin/pages"
	"larder/manifestcache"
)

const (
	// seldom is how often is found out what all entries have to be looked at for.
	seldom = 5 * time.Second

	// listedNext is how many of the blobs that are due to go are listed.
	listedNext = 8

	// shownFills is how many of the running fills are shown, the oldest first.
	shownFills = 50

	// smooth is how much the last second counts in a fill's speed.
	smooth = 0.3
)

// observer finds out what the status page shows.
type observer struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	last   time.Time
	speeds map[digest.Digest]pace
	rare   rare
}

// pace is how fast a fill was when it was last looked at.
type pace struct {
	brought int64
	speed   float64
}

// rare is what is looked at seldom.
type rare struct {
	at        time.Time
	manifests manifestcache.Stats
	next      []pages.Ending
	gone      []pages.Gone
}

// status is what the page shows.
func (o *observer) status() *pages.Status {
	from := o.cfg.Metrics.from
	s := &pages.Status{
		Version: o.cfg.Version, Chain: o.cfg.Chain, Settings: o.cfg.Settings,
		History: o.cfg.Metrics.history.Report(), Upstreams: from.Upstreams.Stats().Places, Blobs: from.Blobs.Stats(),
		Received: from.Received(),
	}
	if from.Shared != nil {
		stats := from.Shared.Stats()
		s.Shared = &stats
	}
	detail, err := o.cfg.Ready()
	if s.Detail = detail; err != nil {
		s.Detail, s.Failing = err.Error(), true
	}
	s.DiskTotal, s.DiskFree, _ = o.cfg.Control.Blobs.Disk() // where it can't be known, it is not shown
	s.Fills = o.fills(s.History.Now)
	s.MoreFills = max(len(s.Fills)-shownFills, 0)
	s.Fills = s.Fills[:len(s.Fills)-s.MoreFills]
	r := o.seldom(s.History.Now)
	s.Manifests, s.Next, s.Gone = r.manifests, r.next, r.gone
	return s
}

// fills are the running ones, and how fast they are: at first on the whole, then
// lately.
func (o *observer) fills(now time.Time) []pages.Fill {
	running := o.cfg.Control.Blobs.Fills()
	fills := make([]pages.Fill, 0, len(running))
	o.mu.Lock()
	defer o.mu.Unlock()
	passed := now.Sub(o.last).Seconds()
	speeds := make(map[digest.Digest]pace)
	for _, f := range running {
		before, ok := o.speeds[f.Digest]
		p := pace{brought: f.Brought}
		switch {
		case ok && passed > 0 && passed < seldom.Seconds() && f.Brought >= before.brought:
			p.speed = smooth*float64(f.Brought-before.brought)/passed + (1-smooth)*before.speed
		default:
			p.speed = float64(f.Brought) / max(now.Sub(f.Began).Seconds(), 0.001)
		}
		speeds[f.Digest] = p
		fills = append(fills, pages.Fill{Fill: f, Speed: p.speed})
	}
	o.last, o.speeds = now, speeds
	return fills
}

// seldom is what was found out lately, or is found out now.
func (o *observer) seldom(now time.Time) rare {
	o.mu.Lock()
	r := o.rare
	o.mu.Unlock()
	if now.Sub(r.at).Abs() < seldom {
		return r
	}
	r = rare{at: now, manifests: o.cfg.Metrics.from.Manifests.Stats()}
	for _, e := range o.cfg.Control.Blobs.Next(listedNext) {
		r.next = append(r.next, pages.Ending{Ending: e, Repository: o.repository(e.Digest)})
	}
	for _, g := range o.cfg.Control.Blobs.Gone() {
		r.gone = append(r.gone, pages.Gone{Gone: g, Repository: o.repository(g.Digest)})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rare = r
	return r
}

// repository is one that has the blob d, if one is known to.
func (o *observer) repository(d digest.Digest) string {
	for _, m := range o.cfg.Control.Manifests.Naming(d) {
		for _, name := range o.cfg.Control.Manifests.Having(m) {
			return name
		}
	}
	return ""
}
