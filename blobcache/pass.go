package blobcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/opencontainers/go-digest"
)

// errBehind says that a stream does not have what a reader needs next.
var errBehind = errors.New("not near the stream")

// pass is one reader's way through a blob that is not kept. Who reads it from
// its start has it hashed on the way, and never gets the last byte of a wrong
// one.
type pass struct {
	cache  *Cache
	digest digest.Digest
	source Source
	stream *stream // nil: none at the moment

	pos, until int64           // until is where it probably ends; pos is guarded by the stream's mu
	waiting    bool            // for what is behind the stream's end; guarded by the stream's mu
	size       int64           // -1: not known
	verifier   digest.Verifier // of all before pos; nil for who reads a part
	small      []byte          // what is left of a small blob; all of it has been verified
	skip       int64           // where the last Seek leads, from here
}

func newPass(c *Cache, d digest.Digest, w *want, src Source) *pass {
	p := &pass{cache: c, digest: d, source: src, pos: w.pos, until: w.end, size: -1}
	if w.began == 0 {
		p.verifier = d.Verifier()
		p.until = math.MaxInt64
	}
	return p
}

// board returns a pass for who wants w of d on a stream that is near, or nil.
func (c *Cache) board(d digest.Digest, w *want, src Source) *pass {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams[d]) == 0 { // as nearly always
		return nil
	}
	if p := newPass(c, d, w, src); c.boardNear(p) {
		return p
	}
	return nil
}

// follow puts p on a stream that is near it, or on a new one.
func (c *Cache) follow(p *pass) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	if c.boardNear(p) {
		return nil
	}
	s := c.newStream(p.digest, p.source, p.pos)
	s.asked, s.size, s.refs = p.until, p.size, 1
	s.passes[p] = true
	p.stream = s
	c.wg.Go(func() { s.run(nil) })
	return nil
}

// boardNear needs mu.
func (c *Cache) boardNear(p *pass) bool {
	for _, s := range c.streams[p.digest] {
		s.mu.Lock()
		near := p.pos >= s.start && p.pos <= s.end+c.sizes.window && (s.err == nil || s.err == io.EOF)
		if near {
			s.passes[p] = true
		}
		s.mu.Unlock()
		if near {
			s.refs++
			p.stream = s
			return true
		}
	}
	return false
}

// open waits for the first byte, so that an error can still be a clear one.
func (p *pass) open(ctx context.Context) (*Blob, error) {
	began := time.Now()
	_, err := p.next(ctx, nil)
	if err == nil && p.isSmall() {
		err = p.takeSmall(ctx)
	}
	if err != nil && err != io.EOF {
		p.leave()
		return nil, err
	}
	p.cache.count.outcomes[Pass].Add(1)
	return &Blob{Content: &reader{ctx: ctx, size: p.size, pass: p, leave: func() {}}, Size: p.size, Outcome: Pass, Waited: time.Since(began)}, nil
}

// isSmall reports whether the blob is held back until its digest is right.
func (p *pass) isSmall() bool {
	return p.verifier != nil && p.pos == 0 && p.size >= 0 && p.size <= p.cache.sizes.whole
}

// takeSmall reads all of a small blob.
func (p *pass) takeSmall(ctx context.Context) error {
	blob := make([]byte, p.size)
	for n := 0; n < len(blob); {
		m, err := p.next(ctx, blob[n:])
		if err != nil {
			return err
		}
		n += m
	}
	p.small = blob
	return nil
}

func (p *pass) read(ctx context.Context, b []byte) (int, error) {
	if p.skip != 0 {
		p.move(p.at())
	}
	if p.small == nil {
		return p.next(ctx, b)
	}
	n := copy(b, p.small)
	if p.small = p.small[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// at is where the next read begins.
func (p *pass) at() int64 { return p.pos - int64(len(p.small)) + p.skip }

// move goes to another place, which another stream may be nearer to.
func (p *pass) move(offset int64) {
	p.leave()
	p.pos, p.until, p.small, p.skip, p.verifier = offset, math.MaxInt64, nil, 0, nil
	if offset == 0 {
		p.verifier = p.digest.Verifier()
	}
}

// next waits for what comes next and copies it; the last byte comes alone, and
// only if all bytes have the digest. With an empty b it just waits.
func (p *pass) next(ctx context.Context, b []byte) (n int, err error) {
	for {
		if p.stream == nil {
			if err := p.cache.follow(p); err != nil {
				return 0, err
			}
		}
		n, err = p.stream.read(ctx, p, b)
		if !errors.Is(err, errBehind) {
			break
		}
		p.leave()
	}
	if p.verifier == nil {
		return n, err
	}
	_, _ = p.verifier.Write(b[:n])
	if (err == io.EOF || n > 0 && p.pos == p.size) && !p.verifier.Verified() {
		p.cache.mismatch(p.stream.source)
		return 0, ErrDigest
	}
	return n, err
}

// sendTo sends the next n bytes.
func (p *pass) sendTo(ctx context.Context, w io.Writer, n int64) (sent int64, err error) {
	buf := p.cache.bufs.Get().(*[]byte)
	defer p.cache.bufs.Put(buf)
	for sent < n {
		m, err := p.read(ctx, (*buf)[:min(int64(len(*buf)), n-sent)])
		if err != nil {
			return sent, err
		}
		m, err = w.Write((*buf)[:m])
		sent += int64(m)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// seek only notes where to: who seeks to the end and back stays on its stream.
func (p *pass) seek(offset int64, whence int) (int64, error) {
	offset, err := target(offset, whence, p.at(), p.size)
	if err == nil {
		p.skip += offset - p.at()
	}
	return offset, err
}

// leave lets go of the stream.
func (p *pass) leave() {
	s := p.stream
	if s == nil {
		return
	}
	p.stream = nil
	s.update(func() { delete(s.passes, p) })
	p.cache.unboard(s)
}

// read copies what the stream has for p, and waits until it has something.
func (s *stream) read(ctx context.Context, p *pass, b []byte) (int, error) {
	for {
		s.mu.Lock()
		if p.size >= 0 && s.size >= 0 && p.size != s.size {
			s.mu.Unlock()
			return 0, fmt.Errorf("%w: %d, was %d", errSize, s.size, p.size)
		}
		p.size = max(p.size, s.size)
		available := s.available(p)
		if available != 0 || s.err != nil {
			n, err := s.copyTo(p, b, available)
			s.mu.Unlock()
			return n, err
		}
		if !p.waiting {
			p.waiting = true
			s.wake() // for pump, which may wait to be asked for more
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// available is how many bytes p can have now, -1 if it is too far away. Needs mu.
func (s *stream) available(p *pass) int64 {
	n := s.end - p.pos
	switch {
	case s.size >= 0 && p.pos >= s.size:
		return 0
	case p.pos < s.start, n < 0 && -n > s.cache.sizes.window:
		return -1
	case n <= 0 || p.verifier == nil:
		return max(n, 0)
	case s.size < 0, n > 1 && s.end == s.size:
		return n - 1 // the last byte comes alone
	default:
		return n
	}
}

// copyTo copies n bytes out of the ring, or says what has ended the stream.
// Needs mu.
func (s *stream) copyTo(p *pass, b []byte, n int64) (int, error) {
	switch {
	case n < 0:
		return 0, errBehind
	case n == 0:
		return 0, s.err
	}
	p.waiting = false
	b = b[:min(int64(len(b)), n)]
	for copied := 0; copied < len(b); {
		copied += copy(b[copied:], s.ring[(p.pos+int64(copied))%int64(len(s.ring)):])
	}
	p.pos += int64(len(b))
	if s.end-s.start == int64(len(s.ring)) {
		s.wake() // for room
	}
	return len(b), nil
}
