package blobcache_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

var errFault = errors.New("upstream broke")

// modelBlob is a blob and what upstream does when asked for it.
type modelBlob struct {
	*model
	data    []byte
	digest  digest.Digest
	liar    bool // sends wrong bytes and sizes
	gentle  bool // only breaks off: no byte that is on disk may be fetched again
	noRange bool // knows no parts
	shy     bool // does not say the size
	pieces  int  // the most that one Read gives

	wrong   atomic.Bool  // there may be wrong bytes of it on disk
	damaged atomic.Int64 // how often its files were
	open    atomic.Int64 // bodies

	mu     sync.Mutex
	random *rand.Rand
	sent   []int8 // how often each byte was
}

func (m *model) newBlob(seed uint64) *modelBlob {
	sizes := []int{0, 1, 2 << 10, 2<<10 + 1, 4<<10 + 1, 40_000, 64<<10 + 1, 128<<10 - 1, 128 << 10, 150_000, 300_000}
	if m.large {
		sizes = []int{1<<20 - 1, 1 << 20, 1<<20 + 1, 3 << 20, 32<<20 - 1, 32 << 20, 39 << 20}
	}
	data := make([]byte, sizes[m.random.IntN(len(sizes))])
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(data)
	b := &modelBlob{model: m, data: data, digest: digest.FromBytes(data), sent: make([]int8, len(data)), pieces: 8 << 10}
	if m.large {
		b.pieces = 256 << 10
	}
	b.random = rand.New(rand.NewPCG(seed, 1))
	switch m.random.IntN(6) {
	case 0, 1:
		b.liar = true
		b.wrong.Store(true)
		b.noRange = m.random.IntN(4) == 0
	case 2:
		b.noRange = m.random.IntN(2) == 0
		b.shy = m.random.IntN(2) == 0
	default:
		b.gentle = m.cfg.TTL == 0 && m.cfg.MaxSize.Bytes == 0 && m.cfg.Quotas == nil
	}
	return b
}

// fetch is upstream's answer.
func (b *modelBlob) fetch(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
	size := int64(len(b.data))
	b.mu.Lock()
	defer b.mu.Unlock()
	body := &modelBody{modelBlob: b, ctx: ctx, offset: min(offset, size), end: size, breaks: -1, flips: -1}
	if offset > size && !b.gentle || b.noRange && offset > 0 {
		return nil, 0, blobcache.ErrNoRange
	}
	if length >= 0 && !b.noRange {
		body.end = min(offset+length, size)
	}
	if b.shy {
		size = -1
	}
	if !b.truthful.Load() {
		switch n := b.random.IntN(12); {
		case n == 0, n < 6 && b.open.Load() > 0 && offset > 0: // more connections than it likes
			return nil, 0, errFault
		case n == 1 && b.liar:
			size = max(int64(len(b.data))+b.random.Int64N(1000)-500, 0)
		case n == 2 && !b.gentle && offset > 0:
			return nil, 0, blobcache.ErrNoRange // for once
		}
		b.faults(body)
	}
	b.open.Add(1)
	return body, size, nil
}

// faults chooses what is wrong with a body.
func (b *modelBlob) faults(body *modelBody) {
	left := body.end - body.offset
	if left <= 0 {
		return
	}
	if b.random.IntN(3) == 0 {
		body.breaks = body.offset + b.random.Int64N(left)
	}
	if b.random.IntN(6) == 0 && (!b.shy || b.liar) {
		body.end -= b.random.Int64N(left)
	}
	if b.random.IntN(3) == 0 {
		body.stall = time.Duration(b.random.Int64N(int64(10 * time.Second)))
	}
	if b.liar && b.random.IntN(3) == 0 {
		body.flips = body.offset + b.random.Int64N(left)
	}
	if b.liar && b.random.IntN(8) == 0 {
		body.tail = 1 + b.random.Int64N(100<<10)
	}
}

// sentAgain is how many bytes were sent more often than once.
func (b *modelBlob) sentAgain() (again int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.sent {
		again += int64(max(n-1, 0))
	}
	return again
}

// modelBody is the body of one answer.
type modelBody struct {
	*modelBlob
	ctx                       context.Context
	offset, end, breaks, tail int64
	flips                     int64
	stall                     time.Duration // before each of its pieces
	last                      int64         // where its last piece began
	ended, closed             bool
}

// Close ends the body. If that is before its end, the end of its last piece may
// not have been needed, and therefore not been kept.
func (r *modelBody) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		r.t.Error("a body was closed twice")
		return nil
	}
	r.closed = true
	r.open.Add(-1)
	for i := r.last; i < r.offset && !r.ended; i++ {
		r.sent[i]--
	}
	return nil
}

func (r *modelBody) Read(p []byte) (n int, err error) {
	r.mu.Lock()
	p = p[:1+r.modelBlob.random.IntN(min(len(p), r.pieces))]
	early := r.modelBlob.random.IntN(2) == 0 // an end is said with the last bytes or after them
	r.mu.Unlock()
	if r.stall > 0 {
		select {
		case <-time.After(r.stall):
		case <-r.ctx.Done():
		}
	}
	if r.ctx.Err() != nil {
		return 0, r.ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.end
	if r.breaks >= 0 {
		end = min(end, r.breaks)
	}
	r.last = r.offset
	if r.offset < end {
		n = copy(p, r.data[r.offset:end])
		if at := r.flips - r.offset; at >= 0 && at < int64(n) {
			p[at] ^= 1
		}
		for i := range int64(n) {
			r.sent[r.offset+i]++
		}
		r.offset += int64(n)
	} else if r.tail > 0 && r.breaks < 0 {
		n = int(min(r.tail, int64(len(p))))
		r.tail -= int64(n)
	}
	switch {
	case r.offset < end || n > 0 && !early || r.tail > 0 && r.breaks < 0:
		return n, nil
	case r.breaks >= 0 && r.breaks < r.end:
		err = errFault
	default:
		err = io.EOF
	}
	r.ended = n == 0
	return n, err
}

// damage does to a file of b what only a hand in the directory does, or a bad
// disk.
func (b *modelBlob) damage(path string) {
	fi, err := os.Stat(path)
	if err != nil {
		return
	}
	n := b.model.random.IntN(4)
	if n == 0 {
		err = os.Remove(path)
	}
	if n > 0 || strings.HasSuffix(path, ".extents") { // without, the file passes for a beginning
		b.wrong.Store(true)
		b.damaged.Add(1)
	}
	switch {
	case n == 1:
		err = os.Truncate(path, b.model.random.Int64N(fi.Size()+1))
	case n == 2:
		err = os.Truncate(path, fi.Size()+1+b.model.random.Int64N(100_000))
	case n == 3 && fi.Size() > 0:
		var data []byte
		if data, err = os.ReadFile(path); err == nil {
			data[b.model.random.IntN(len(data))] ^= 1
			err = overwrite(path, data)
		}
	}
	if err != nil {
		b.t.Error(err)
	}
}

// overwrite changes the bytes of a file, as often as it takes the file system's
// clock to notice.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	before, err := f.Stat()
	for after := before; err == nil && after.ModTime().Equal(before.ModTime()); {
		_, err = f.WriteAt(data, 0)
		after, _ = f.Stat()
	}
	return errors.Join(err, f.Close())
}
