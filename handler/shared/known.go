package shared

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxKnown bounds how many blobs something is remembered of.
const maxKnown = 10_000

// known remembers blobs, and in what version each was in the tier.
type known struct {
	mu       sync.Mutex // guards versions
	versions map[digest.Digest]string
}

func (k *known) add(d digest.Digest, version string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.versions) >= maxKnown {
		clear(k.versions)
	}
	k.versions[d] = version
}

func (k *known) remove(d digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.versions, d)
}

func (k *known) version(d digest.Digest) (version string, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	version, ok = k.versions[d]
	return version, ok
}
