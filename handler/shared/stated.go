package shared

import (
	"sync"
	"time"
)

// stated remembers what this node has written of tags, rights and manifests, and when.
type stated struct {
	mu   sync.Mutex // guards last
	last map[string]statement
}

type statement struct {
	says string
	at   time.Time
}

// due reports whether something is to be written: it says something else than what
// was, or that was not of late.
func (s *stated) due(key, says string, every time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[key]
	return !ok || last.says != says || time.Since(last.at).Abs() >= every
}

// note notes that something was written, or found to be there.
func (s *stated) note(key, says string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxKnown {
		clear(s.last)
	}
	s.last[key] = statement{says, time.Now()}
}

// forget has it written when it is next said.
func (s *stated) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, key)
}
