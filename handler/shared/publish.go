package shared

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/shared/store"
)

// partSize is how much of a blob that is being fetched is shared at once: large enough
// to make requests rare, small enough for who waits for it.
const partSize = 16 << 20

// commitPatience is how long a blob may take that has arrived to be verified and
// committed.
const commitPatience = time.Minute

// publisher brings a blob that this node has leased into the tier, part by part as it
// arrives in the local cache, which it reads as one reader more.
type publisher struct {
	tier   *Tier
	digest digest.Digest
	lease  *lease
	proves func(size int64) bool // the parts that were there, if the blob is right
	ctx    context.Context       // ends with the tier, the lease, or a fill that failed
	cancel context.CancelCauseFunc

	ended chan struct{} // closed when the fill has ended
	err   error         // of the fill; set before

	due  atomic.Int32 // of the two things that afterwards waits for, how many have happened
	size int64        // of the blob; of run's goroutine until it counts up due
}

func newPublisher(t *Tier, d digest.Digest, l *lease, proves func(size int64) bool) *publisher {
	p := &publisher{tier: t, digest: d, lease: l, proves: proves, ended: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(t.ctx)
	return p
}

// end is told when the fill has ended. It does not wait.
func (p *publisher) end(err error) {
	p.err = err
	close(p.ended)
	if err != nil {
		p.cancel(err)
	}
	p.afterwards()
}

// run is the publisher's goroutine. It ends with the fill, or before, or with the tier.
func (p *publisher) run() {
	p.tier.count.leases.Add(1)
	defer p.tier.count.leases.Add(-1)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		p.lease.keep(p.ctx)
		p.cancel(errHeld)
	})
	err := p.publish()
	p.cancel(nil)
	keeping.Wait()
	if err == nil {
		p.lease.done()
		p.removeParts()
		return
	}
	if errors.Is(err, blobcache.ErrDigest) {
		p.lease.tell(-1, 0)
	}
	p.lease.giveBack()
	p.tier.log.Debug("blob not shared while it was fetched", zap.Stringer("digest", p.digest), zap.Error(err))
	p.afterwards()
}

// afterwards does what is due when the fill has ended and it has not been published:
// it is called for each of the two.
func (p *publisher) afterwards() {
	switch {
	case p.due.Add(1) < 2:
	case p.err == nil:
		p.tier.upload(p.digest)
	case errors.Is(p.err, blobcache.ErrDigest): // nobody shall go on with its parts
		p.tier.start(p.removeParts)
	}
}

// publish brings the blob into the tier. It is made of its parts once the local cache
// has found it to be right.
func (p *publisher) publish() error {
	content, size, err := p.tier.cfg.Open(p.ctx, p.digest)
	if err != nil {
		return err
	}
	defer content.Close()
	if size < 0 {
		return errors.New("size is not known yet")
	}
	p.size = size
	p.lease.has(size, 0)
	if size <= p.tier.sizes.part {
		return p.putWhole(content)
	}
	number, part := p.lease.parts(), p.tier.sizes.part
	if _, err := content.Seek(min(number*part, size), io.SeekStart); err != nil {
		return err
	}
	for ; number*part < size; number++ {
		if err := p.awaitPart(content, number); err != nil {
			return err
		}
		if err := p.patiently(func() error { return p.putPart(content, number) }); err != nil {
			return err
		}
		p.lease.tell(size, number+1)
	}
	return p.compose(content)
}

// patiently has the store asked again while it has too much to do: others wait for what
// this node brings, and would ask upstream. When all has arrived, they don't wait for
// ever, and nor does it.
func (p *publisher) patiently(do func() error) error {
	err := do()
	for since, n := time.Now(), 0; isBusy(err) && time.Since(since) < p.tier.cfg.Wait && p.tier.pause(p.ctx, n) == nil; n++ {
		if !p.hasEnded() {
			since = time.Now()
		}
		err = do()
	}
	return err
}

// hasEnded reports whether the fill has.
func (p *publisher) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// putWhole puts a blob that is no more than a part.
func (p *publisher) putWhole(content io.ReadSeeker) error {
	if err := p.awaitPart(content, 0); err != nil {
		return err
	}
	if err := p.awaitEnd(); err != nil {
		return err
	}
	return p.putAll(content)
}

// putAll puts all of the blob, which has arrived.
func (p *publisher) putAll(content io.ReadSeeker) error {
	return p.patiently(func() error {
		if _, err := content.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return p.tier.putBlob(p.ctx, p.digest, content, p.size)
	})
}

// compose makes the blob of its parts. If the store can't, or some of them may be wrong,
// it gets all of it once more.
func (p *publisher) compose(content io.ReadSeeker) error {
	if err := p.awaitEnd(); err != nil {
		return err
	}
	composed := func() error {
		return p.tier.compose(p.ctx, blobKey(p.digest), p.partKeys(), store.Label{Digest: p.digest, Size: p.size})
	}
	if p.proves(p.size) && p.patiently(composed) == nil {
		p.tier.isShared(p.digest)
		return nil
	}
	return p.putAll(content)
}

// partOf is where a part begins and ends.
func (p *publisher) partOf(number int64) (start, end int64) {
	start = number * p.tier.sizes.part
	return start, min(start+p.tier.sizes.part, p.size)
}

// awaitPart waits until a part has arrived: no request to the store is kept waiting for
// that.
func (p *publisher) awaitPart(content io.Reader, number int64) error {
	for pos, end := p.partOf(number); pos < end; {
		n, err := io.CopyN(io.Discard, content, min(64<<10, end-pos))
		if err != nil {
			return err
		}
		pos += n
		p.lease.has(p.size, pos)
	}
	return nil
}

// putPart puts a part, which content stands behind then.
func (p *publisher) putPart(content io.ReadSeeker, number int64) error {
	start, end := p.partOf(number)
	if _, err := content.Seek(start, io.SeekStart); err != nil {
		return err
	}
	err := p.tier.put(p.ctx, partKey(p.digest, number), &section{content, start, end - start, 0}, store.Label{Size: end - start})
	if err != nil {
		return err
	}
	_, err = content.Seek(end, io.SeekStart)
	return err
}

// awaitEnd waits until the fill has ended, well. All of the blob has arrived.
func (p *publisher) awaitEnd() error {
	select {
	case <-p.ended:
		return p.err
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-time.After(commitPatience): // it is another one's, then
		return errors.New("not committed")
	}
}

func (p *publisher) partKeys() (keys []string) {
	for number := int64(0); number*p.tier.sizes.part < p.size; number++ {
		keys = append(keys, partKey(p.digest, number))
	}
	return keys
}

// removeParts removes what nobody needs any more. What is left of it, if the tier is
// closed, goes with a prune.
func (p *publisher) removeParts() {
	if p.size <= p.tier.sizes.part {
		return
	}
	for _, key := range p.partKeys() {
		if p.tier.remove(p.tier.ctx, key) != nil {
			return
		}
	}
}

// section is size bytes of content from start.
type section struct {
	content     io.ReadSeeker
	start, size int64
	pos         int64 // content stands at start+pos
}

// Read implements io.Reader.
func (s *section) Read(p []byte) (int, error) {
	if s.pos >= s.size {
		return 0, io.EOF
	}
	n, err := s.content.Read(p[:min(int64(len(p)), s.size-s.pos)])
	s.pos += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (s *section) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	_, err := s.content.Seek(s.start+offset, io.SeekStart)
	if err == nil {
		s.pos = offset
	}
	return offset, err
}
