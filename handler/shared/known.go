package shared

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// maxKnown bounds how many blobs something is remembered of.
const maxKnown = 10_000

// known remembers blobs, and what version of each was in the tier when.
type known struct {
	mu    sync.Mutex // guards blobs
	blobs map[digest.Digest]sighting
}

type sighting struct {
	version string // "": of no object in particular
	at      time.Time
}

func (k *known) add(d digest.Digest, version string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.blobs == nil || len(k.blobs) >= maxKnown {
		k.blobs = make(map[digest.Digest]sighting)
	}
	k.blobs[d] = sighting{version, time.Now()}
}

func (k *known) remove(d digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.blobs, d)
}

// version is what version of d was seen.
func (k *known) version(d digest.Digest) (version string, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.blobs[d]
	return s.version, ok
}

// lately reports whether d was seen no longer ago than within.
func (k *known) lately(d digest.Digest, within time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.blobs[d]
	return ok && time.Since(s.at) <= within
}

func (k *known) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.blobs)
}
