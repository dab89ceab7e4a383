package blobcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

const (
	// window is how much of a blob that is not kept is held in memory, for
	// readers that are not equally fast.
	window = 1 << 20

	// patience is how long a slow reader may keep others waiting for what comes
	// next. Then it is left behind, and the rest is fetched for it alone.
	patience = time.Second

	// gathering is how long the beginning of a blob is held for others who want
	// it too: when many ask, they rarely ask at the same moment.
	gathering = 250 * time.Millisecond
)

// stream is a blob on its way through: what can't be kept is handed to its
// readers as it comes. A ring in memory holds the last of it; a reader that is
// too far from that follows another stream.
type stream struct {
	cache  *Cache
	digest digest.Digest
	source Source
	ctx    context.Context // of the stream; no reader's
	cancel context.CancelCauseFunc
	refs   int // its readers, and the fill that began it; guarded by Cache.mu

	// mu guards the fields below. changed is closed and replaced whenever
	// somebody may have something new to look at.
	mu         sync.Mutex
	changed    chan struct{}
	ring       []byte // what is at offset in the blob is here at offset modulo its length
	start, end int64  // what of the blob is in the ring
	size       int64  // -1: not known
	asked      int64  // where the part ends that upstream was last asked for
	passes     map[*pass]bool
	gathered   <-chan time.Time // until then the ring's start stays; of run's goroutine alone
	err        error            // how the stream has ended: io.EOF if all has arrived
}

// newStream needs mu.
func (c *Cache) newStream(d digest.Digest, src Source, offset int64) *stream {
	s := &stream{
		cache:   c,
		digest:  d,
		source:  src,
		changed: make(chan struct{}),
		ring:    make([]byte, c.sizes.window),
		start:   offset,
		end:     offset,
		size:    -1,
		asked:   math.MaxInt64,
		passes:  make(map[*pass]bool),
	}
	if offset == 0 {
		s.gathered = time.After(gathering)
	}
	s.ctx, s.cancel = context.WithCancelCause(c.ctx)
	c.streams[d] = append(c.streams[d], s)
	return s
}

// unboard takes a reader, or a fill, from s. Without any it ends.
func (c *Cache) unboard(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs--; s.refs == 0 {
		c.retire(s)
		s.cancel(errParked)
	}
}

// retire lets nobody board s any more. Needs mu.
func (c *Cache) retire(s *stream) {
	left := slices.DeleteFunc(c.streams[s.digest], func(o *stream) bool { return o == s })
	if c.streams[s.digest] = left; len(left) == 0 {
		delete(c.streams, s.digest)
	}
}

// leaveBody leaves a body to a stream, from pos on: first what was read and
// can't be written, then what is still to come.
func (f *fill) leaveBody(c *claim, pos int64, read []byte, body *ownedBody) {
	f.mu.Lock()
	size, asked := f.size, c.asked
	f.mu.Unlock()
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	if f.stream != nil { // another fetcher was first
		return
	}
	s := f.cache.newStream(f.digest, f.source, pos)
	s.size, s.asked, s.refs = size, asked, 1
	f.stream, body.left = s, true
	rest := io.MultiReader(bytes.NewReader(slices.Clone(read)), body)
	stop := context.AfterFunc(s.ctx, func() { body.cancel(context.Cause(s.ctx)) })
	f.cache.wg.Go(func() {
		defer stop()
		s.run(struct {
			io.Reader
			io.Closer
		}{rest, body})
	})
}

// run is the stream's goroutine: it ends with the blob, or when upstream has
// failed too often, or when nobody is left.
func (s *stream) run(body io.ReadCloser) {
	err := s.pump(body)
	if s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	if err != io.EOF { // then the next one to ask begins anew
		s.cache.mu.Lock()
		s.cache.retire(s)
		s.cache.mu.Unlock()
	}
	s.update(func() { s.err = err })
}

func (s *stream) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.wake()
}

// wake needs mu.
func (s *stream) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// pump fetches the blob, from body at first, until it is at its end: the error
// is then io.EOF. After a part was fetched, it waits for who wants more.
func (s *stream) pump(body io.ReadCloser) error {
	for failures := 0; ; {
		var err error
		if body == nil {
			body, err = s.open()
		}
		n := int64(0)
		if err == nil {
			n, err = s.take(body)
			body.Close()
			body = nil
		}
		switch {
		case err == io.EOF:
			return err
		case err == nil:
			err = s.demanded()
			if err != nil {
				return err
			}
			continue
		case s.ctx.Err() != nil, errors.Is(err, errSize), errors.Is(err, ErrRefused), !s.begun():
			return err
		}
		if n > 0 {
			failures = 0
		}
		if failures++; failures > resumeTries {
			return err
		}
		s.cache.count.resumed.Add(1)
		s.cache.log.Warn("blob broke off; going on", zap.Stringer("digest", s.digest), zap.Int64("offset", s.end), zap.Error(err))
		select {
		case <-time.After(resumePause << failures):
		case <-s.ctx.Done():
		}
	}
}

// begun reports whether a reader may have been promised something.
func (s *stream) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end > s.start || s.size >= 0
}

// open fetches what follows.
func (s *stream) open() (io.ReadCloser, error) {
	s.mu.Lock()
	offset, length := s.end, s.asked-s.end
	if s.asked == math.MaxInt64 || s.size >= 0 && s.asked >= s.size {
		length, s.asked = -1, math.MaxInt64
	}
	s.mu.Unlock()
	body, size, err := s.source.Fetch(s.ctx, offset, length)
	if errors.Is(err, ErrNoRange) && offset > 0 {
		body, size, err = s.skip(offset)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if size >= 0 && s.size >= 0 && size != s.size {
		body.Close()
		return nil, fmt.Errorf("%w: %d, was %d", errSize, size, s.size)
	}
	s.size = max(s.size, size)
	s.wake()
	return body, nil
}

// skip fetches all of the blob and reads up to offset: upstream knows no parts.
func (s *stream) skip(offset int64) (io.ReadCloser, int64, error) {
	body, size, err := s.source.Fetch(s.ctx, 0, -1)
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	s.asked = math.MaxInt64
	s.mu.Unlock()
	n, err := io.CopyN(io.Discard, body, offset)
	switch {
	case err == nil:
		return body, size, nil
	case err == io.EOF && (size < 0 || n == size): // what was wanted is behind the end
		return body, n, nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	body.Close()
	return nil, 0, err
}

// take reads body into the ring until it ends or all has arrived. At the end of
// the blob the error is io.EOF, at that of a part it is nil.
func (s *stream) take(body io.Reader) (taken int64, err error) {
	for {
		room, err := s.room()
		if err != nil {
			return taken, err
		}
		n, err := body.Read(room)
		taken += int64(n)
		s.cache.count.fetched.Add(int64(n))
		s.mu.Lock()
		s.end += int64(n)
		if err == io.EOF && s.size < 0 && s.end != s.asked {
			s.size = s.end // nobody said it, but this was all of it
		}
		all, part := s.size >= 0 && s.end >= s.size, s.end == s.asked
		s.wake()
		s.mu.Unlock()
		switch {
		case all:
			return taken, io.EOF
		case err == io.EOF && part:
			return taken, nil
		case err == io.EOF:
			return taken, io.ErrUnexpectedEOF
		case err != nil:
			return taken, err
		}
	}
}

// room waits until there is room behind the end for what comes next. Nobody
// reads there.
func (s *stream) room() ([]byte, error) {
	for {
		s.mu.Lock()
		length := int64(len(s.ring))
		if s.end-s.start == length && s.gathered == nil {
			s.start = s.slowest()
		}
		if free := length - (s.end - s.start); free > 0 {
			if s.size >= 0 { // one byte more would be read at the end
				free = min(free, max(s.size-s.end, 1))
			}
			at := s.end % length
			room := s.ring[at:min(length, at+min(free, chunk))]
			s.mu.Unlock()
			return room, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-s.gathered:
			s.gathered = nil
		case <-time.After(patience):
			s.overtake()
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
}

// slowest is the offset of the reader that is the least far. Needs mu.
func (s *stream) slowest() int64 {
	if len(s.passes) == 0 {
		return s.start
	}
	slowest := s.end
	for p := range s.passes {
		if p.pos >= s.start {
			slowest = min(slowest, p.pos)
		}
	}
	return slowest
}

// overtake leaves the slowest reader behind if another waits for what comes
// next.
func (s *stream) overtake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted() {
		s.start = min(s.slowest()+max(int64(len(s.ring))/4, 1), s.end)
	}
}

// wanted reports whether a reader has had all there is for it. Needs mu.
func (s *stream) wanted() bool {
	for p := range s.passes {
		if p.waiting && s.available(p) == 0 {
			return true
		}
	}
	return false
}

// demanded waits until somebody wants more than the part that was fetched.
func (s *stream) demanded() error {
	for {
		s.mu.Lock()
		wanted, changed := s.wanted(), s.changed
		if wanted {
			s.asked = math.MaxInt64
		}
		s.mu.Unlock()
		if wanted {
			return nil
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}
