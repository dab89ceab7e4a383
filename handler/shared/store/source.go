package store

import (
	"context"
	"errors"
	"io"
	"sync"
)

var (
	errStopped = errors.New("the content is not read any more")
	errWhence  = errors.New("seek from elsewhere than the start")
)

// source is a part of a content for one attempt to send it. What sends it may outlive
// the attempt, as a connection's writer does; it gets nothing more once stop returns.
type source struct {
	ctx         context.Context
	start, size int64

	mu      sync.Mutex // held while content is read: stop waits for that
	content io.ReadSeeker
	at      int64
}

// newSource returns the size bytes of content from start on.
func newSource(ctx context.Context, content io.ReadSeeker, start, size int64) (*source, error) {
	if _, err := content.Seek(start, io.SeekStart); err != nil {
		return nil, err
	}
	return &source{ctx: ctx, start: start, size: size, content: content}, nil
}

// Read implements io.Reader. A content that is too short is an error.
func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.content == nil {
		return 0, errStopped
	}
	if err := context.Cause(s.ctx); err != nil {
		return 0, err
	}
	if s.at == s.size {
		return 0, io.EOF
	}
	n, err := s.content.Read(p[:min(int64(len(p)), s.size-s.at)])
	if s.at += int64(n); err == io.EOF && s.at < s.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Seek implements io.Seeker, as far as it is needed to begin again.
func (s *source) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.content == nil {
		return 0, errStopped
	}
	if whence != io.SeekStart || offset < 0 || offset > s.size {
		return 0, errWhence
	}
	if _, err := s.content.Seek(s.start+offset, io.SeekStart); err != nil {
		return 0, err
	}
	s.at = offset
	return offset, nil
}

// stop ends the use of content.
func (s *source) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content = nil
}
