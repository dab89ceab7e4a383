package handler

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// renewed is for how long an image that was asked for need not be renewed again:
	// next to nothing of its life.
	renewed = time.Second

	// maxRenewals bounds how many images are remembered for that.
	maxRenewals = 10_000
)

// renewals remembers which images were renewed just now. To renew one takes a look
// at all that it names.
type renewals struct {
	mu   sync.Mutex // guards last
	last map[digest.Digest]time.Time
}

func newRenewals() *renewals { return &renewals{last: make(map[digest.Digest]time.Time)} }

// due reports whether d is to be renewed, which it then is.
func (s *renewals) due(d digest.Digest) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.last[d]; ok && now.Sub(at) < renewed {
		return false
	}
	if len(s.last) >= maxRenewals {
		clear(s.last)
	}
	s.last[d] = now
	return true
}
