package shared

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/shared/store"
)

// partSize is how much of a blob that is being fetched is shared at once: large enough
// to make requests rare, small enough for who waits for it.
const partSize = 16 << 20

// publisher brings a blob that this node has leased into the tier, part by part as it
// arrives in the local cache, which it reads as one reader more.
type publisher struct {
	tier   *Tier
	digest digest.Digest
	lease  *lease
	ctx    context.Context // ends with the tier, the lease, or a fill that failed
	cancel context.CancelCauseFunc

	ended chan struct{} // closed when the fill has ended
	err   error         // of the fill; set before
}

func newPublisher(t *Tier, d digest.Digest, l *lease) *publisher {
	p := &publisher{tier: t, digest: d, lease: l, ended: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(t.ctx)
	return p
}

// end is told when the fill has ended.
func (p *publisher) end(err error) {
	p.err = err
	close(p.ended)
	if err != nil {
		p.cancel(err)
	}
}

// run is the publisher's goroutine. It ends after the fill, or with the tier.
func (p *publisher) run() {
	p.tier.count.leases.Add(1)
	defer p.tier.count.leases.Add(-1)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		p.lease.keep(p.ctx)
		p.cancel(errHeld)
	})
	size, err := p.publish()
	p.cancel(nil)
	keeping.Wait()
	if err == nil {
		p.lease.done()
		p.removeParts(size)
		return
	}
	if errors.Is(err, blobcache.ErrDigest) {
		p.lease.tell(-1, 0)
	}
	p.lease.giveBack()
	p.tier.log.Debug("blob not shared while it was fetched", zap.Stringer("digest", p.digest), zap.Error(err))
	select {
	case <-p.ended:
		p.afterwards(size)
	case <-p.tier.ctx.Done():
	}
}

// afterwards does what is due when the fill has ended and has not been published.
func (p *publisher) afterwards(size int64) {
	switch {
	case p.err == nil:
		p.tier.upload(p.digest)
	case errors.Is(p.err, blobcache.ErrDigest): // nobody shall go on with its parts
		p.removeParts(size)
	}
}

// publish brings the blob into the tier. It is made of its parts once the local cache
// has found it to be right.
func (p *publisher) publish() (size int64, err error) {
	content, size, err := p.tier.cfg.Open(p.ctx, p.digest)
	if err != nil {
		return size, err
	}
	defer content.Close()
	if size < 0 {
		return size, errors.New("size is not known yet")
	}
	p.lease.has(size, 0)
	if size <= p.tier.sizes.part {
		if err := p.awaitEnd(); err != nil {
			return size, err
		}
		return size, p.tier.putBlob(p.ctx, p.digest, content, size)
	}
	number, part := p.lease.parts(), p.tier.sizes.part
	if _, err := content.Seek(min(number*part, size), io.SeekStart); err != nil {
		return size, err
	}
	for ; number*part < size; number++ {
		if err := p.awaitPart(content, number, size); err != nil {
			return size, err
		}
		if err := p.putPart(content, number, min(part, size-number*part)); err != nil {
			return size, err
		}
		p.lease.tell(size, number+1)
	}
	if err := p.awaitEnd(); err != nil {
		return size, err
	}
	return size, p.compose(content, size)
}

// compose makes the blob of its parts. If the store can't, it gets all of it once more.
func (p *publisher) compose(content io.ReadSeeker, size int64) error {
	err := p.tier.compose(p.ctx, blobKey(p.digest), p.partKeys(size), store.Label{Digest: p.digest, Size: size})
	if err == nil {
		p.tier.isShared(p.digest)
		return nil
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return p.tier.putBlob(p.ctx, p.digest, content, size)
}

// awaitPart waits until a part has arrived: no request to the store is kept waiting for
// that.
func (p *publisher) awaitPart(content io.Reader, number, size int64) error {
	part := p.tier.sizes.part
	for pos, end := number*part, min(number*part+part, size); pos < end; {
		n, err := io.CopyN(io.Discard, content, min(64<<10, end-pos))
		if err != nil {
			return err
		}
		pos += n
		p.lease.has(size, pos)
	}
	return nil
}

// putPart puts a part, which content stands behind then.
func (p *publisher) putPart(content io.ReadSeeker, number, size int64) error {
	start := number * p.tier.sizes.part
	if _, err := content.Seek(start, io.SeekStart); err != nil {
		return err
	}
	err := p.tier.put(p.ctx, partKey(p.digest, number), &section{content, start, size, 0}, store.Label{Size: size})
	if err != nil {
		return err
	}
	_, err = content.Seek(start+size, io.SeekStart)
	return err
}

// awaitEnd waits until the fill has ended, well.
func (p *publisher) awaitEnd() error {
	select {
	case <-p.ended:
		return p.err
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

func (p *publisher) partKeys(size int64) (keys []string) {
	for number := int64(0); number*p.tier.sizes.part < size; number++ {
		keys = append(keys, partKey(p.digest, number))
	}
	return keys
}

// removeParts removes what nobody needs any more. What is left of it, if the tier is
// closed, goes with a prune.
func (p *publisher) removeParts(size int64) {
	if size <= p.tier.sizes.part {
		return
	}
	for _, key := range p.partKeys(size) {
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
