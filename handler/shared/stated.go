package shared

import (
	"sync"
	"time"
)

// stated remembers what this node has written of tags, rights and manifests, or has heard
// that is no more, and when.
type stated struct {
	mu   sync.Mutex // guards last
	last map[string]statement
}

type statement struct {
	says string // "": upstream has said no
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

// note notes that something was written, or found to be there, then.
func (s *stated) note(key, says string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxKnown {
		clear(s.last)
	}
	s.last[key] = statement{says, at}
}

// isOver reports whether upstream has said no to this node since something was validated:
// who has written that does not know, or it could not be removed.
func (s *stated) isOver(key string, validated time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[key]
	return ok && last.says == "" && !validated.After(last.at)
}

// forget has it written when it is next said.
func (s *stated) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, key)
}
