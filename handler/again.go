package handler

import (
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// soon is how long after a complete answer it is odd to ask again: a client
	// that got wrong bytes does.
	soon = time.Minute

	// oddities is how often that may happen to a blob before its bytes are in
	// doubt.
	oddities = 2

	// settled is how long a blob that was found to be right is not doubted again:
	// some clients do ask often.
	settled = time.Hour

	// maxAnswers bounds how many answers are remembered.
	maxAnswers = 10_000
)

// answers remembers who was lately given which blob as a whole, to notice blobs
// that clients do not take for right, though the cache does.
type answers struct {
	mu   sync.Mutex // guards all below
	last map[answer]time.Time
	odd  map[digest.Digest]oddity
}

// oddity is how often a blob was asked for again, and when it was last doubted.
type oddity struct {
	times   int
	doubted time.Time
}

// answer is a whole blob and who got it.
type answer struct {
	client string
	blob   digest.Digest
}

func newAnswers() *answers {
	return &answers{last: make(map[answer]time.Time), odd: make(map[digest.Digest]oddity)}
}

// whole reports whether r asks for a blob as a whole, and for whom.
func whole(r *http.Request, d digest.Digest) (a answer, ok bool) {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	return answer{client, d}, err == nil && r.Header.Get("Range") == ""
}

// again reports whether the blob is asked for again once too often.
func (s *answers) again(a answer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.last[a]
	if !ok || time.Since(at) > soon {
		return false
	}
	odd := s.odd[a.blob]
	if time.Since(odd.doubted) < settled {
		return false
	}
	doubt := odd.times+1 >= oddities
	if odd.times++; doubt {
		odd = oddity{doubted: time.Now()}
	}
	s.odd[a.blob] = odd
	return doubt
}

// given notes a complete answer.
func (s *answers) given(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxAnswers {
		clear(s.last)
		clear(s.odd)
	}
	s.last[a] = time.Now()
}
