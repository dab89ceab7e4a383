package manifestcache

import (
	"maps"
	"sync/atomic"
)

// Stats is what a cache holds and what it has done since it was opened.
type Stats struct {
	Entries, Bytes               int64 // manifests on disk
	Lists, ListBytes             int64
	Hits, Revalidated, Misses    int64
	Stale, Shared                int64
	Mismatches                   int64            // answers thrown away for ErrDigest
	Damaged                      int64            // files thrown away
	Fetched                      int64            // bytes of manifests that came from upstream
	StoreErrors                  map[string]int64 // of the disk, by durable.Kind
	Expired, ExpireErrors, Scans int64
	Pins                         int64 // by hand
	Held                         int64 // manifests that pins hold and that are here
	Remembered                   int64 // rights to blobs: named by a manifest, or proven
	RememberedHits               int64 // of them: upstream need not be asked
	RememberedMisses             int64
}

type counters struct {
	outcomes                                    [5]atomic.Int64
	mismatches, damaged, expired, failed, scans atomic.Int64
	fetched                                     atomic.Int64
	remembered, unremembered                    atomic.Int64 // what Refers found, or did not
}

// Stats says what the cache holds and has done.
func (c *Cache) Stats() Stats {
	s := Stats{
		Hits:         c.count.outcomes[Hit].Load(),
		Revalidated:  c.count.outcomes[Revalidated].Load(),
		Misses:       c.count.outcomes[Miss].Load(),
		Stale:        c.count.outcomes[Stale].Load(),
		Shared:       c.count.outcomes[SharedHit].Load(),
		Mismatches:   c.count.mismatches.Load(),
		Damaged:      c.count.damaged.Load(),
		Expired:      c.count.expired.Load(),
		ExpireErrors: c.count.failed.Load(),
		Scans:        c.count.scans.Load(),
		Fetched:      c.count.fetched.Load(),

		RememberedHits:   c.count.remembered.Load(),
		RememberedMisses: c.count.unremembered.Load(),
	}
	s.Lists, s.ListBytes = c.lists.stats()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Entries, s.Bytes, s.StoreErrors = int64(c.manifests.Len()), c.bytes, maps.Clone(c.storeErrs)
	s.Remembered = int64(c.layers.held + len(c.proofs.proven))
	s.Pins = int64(len(c.pins.hand))
	for d := range c.pins.held {
		if c.manifests.Get(d) != nil {
			s.Held++
		}
	}
	return s
}
