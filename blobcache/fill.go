package blobcache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// parking is the outcome of joining a fill that has just been given up, or
	// has failed: it is waited for, and a new one goes on where it stopped.
	parking Outcome = 255

	// whole is the size up to which a blob is held back until its digest is
	// right: for so little, a clear error is worth more than an early byte.
	whole = 64 << 10

	// maxLied bounds how many digests are remembered of which a part was wrong.
	maxLied = 10_000
)

var (
	// errParked ends a fill that nobody has wanted for the linger time.
	errParked = errors.New("fill parked")

	// errDamaged ends a fill of a stored blob that is not what it should be. The
	// next one fetches it.
	errDamaged = errors.New("blob file is damaged")
)

// fill is one blob on its way to disk: a sparse file and the set of extents
// that have arrived. Readers and fetchers meet there and nowhere else. A reader
// waits for the bytes at its offset; what is wanted and missing is planned for;
// each fetcher brings one segment.
type fill struct {
	cache  *Cache
	digest digest.Digest
	made   time.Time
	source Source
	ctx    context.Context // of the fill; no reader's
	cancel context.CancelCauseFunc
	gone   chan struct{} // closed once the fill has left the map of fills

	// Cache.mu guards these.
	readers  int
	linger   *time.Timer // runs while there are no readers
	parked   bool        // ending, not to be joined
	removing bool        // no fill, but what those wait for who want what is being removed
	over     bool        // out of the map, its file to be closed by its last reader
	reserved int64       // bytes that count for it in the budget
	before   *entry      // the parked fill that it goes on with
	stream   *stream     // what it has left to those of its readers who will follow

	account *account // whose quotas it counts against
	stuck   bool     // there is a blob file, wrong and not to be removed

	file     *os.File       // set before anything is written to it or shown
	info     fs.FileInfo    // of file, when it was opened
	held     []byte         // a small blob, instead of in a file: as much of it as has arrived
	stored   bool           // file is the blob's, which this process has not verified yet; set with it
	fetchers sync.WaitGroup // of the running ones; run waits for them
	saving   sync.Mutex     // held while the extents are written beside the file
	writing  sync.Mutex     // held while a hole is written to, so that no byte is twice

	// mu guards the fields below. changed is closed and replaced whenever
	// readers or the hash may have something new to look at.
	mu        sync.Mutex
	changed   chan struct{}
	planning  bool            // fetchers may be started
	answered  bool            // a fetch has: there is a blob, and size is its size
	size      int64           // -1: not known
	have      extents         // what has arrived and can be read
	claims    map[*claim]bool // what is being fetched
	wants     map[*want]bool  // what readers wait for, or have last waited for
	wantAll   bool            // some reader wanted the whole blob: go on without it
	inOne     bool            // no parts: one fetch, from the start
	parallel  int             // how many fetchers may bring what one reader wants
	unread    bool            // nobody reads it yet: one fetcher is enough
	scattered bool            // have is more than a beginning; it is kept in a file
	unsaved   int64           // bytes that have arrived since that file was written; -1: there is none
	saved     time.Time       // when it was
	failures  int             // of fetches, in a row
	room      int64           // how many bytes may be written
	taken     int64           // of these, how many have been or are about to
	arrived   int64           // what of Cache.arrived is this fill's
	left      int64           // of this, what an earlier fill has left
	began     time.Time       // when the first answer came
	givenUp   error           // why nothing more is fetched
	verified  bool            // all bytes are in the file and have the digest
	err       error           // why the fill ended otherwise
}

// joinOrStart adds a reader to the fill of d, starting one if there is none.
// It returns no fill if the blob has become complete. The caller must leave
// what it joined.
func (c *Cache) joinOrStart(d digest.Digest, src Source) (*fill, Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.fills[d]; f != nil {
		if f.parked || f.failed() {
			return f, parking, nil
		}
		f.join()
		if !src.background {
			f.isRead()
		}
		return f, Join, nil
	}
	// A fill leaves the map after its blob is in the index: with the lock
	// held, in neither means that nobody is fetching it.
	if e := c.entries.Get(d); e != nil && e.sealed() {
		return nil, Hit, nil
	}
	if c.ctx.Err() != nil {
		return nil, Miss, ErrClosed
	}
	f := &fill{
		cache:    c,
		digest:   d,
		made:     time.Now(),
		source:   src,
		gone:     make(chan struct{}),
		readers:  1,
		changed:  make(chan struct{}),
		size:     -1,
		unsaved:  -1,
		claims:   make(map[*claim]bool),
		wants:    make(map[*want]bool),
		parallel: max(c.cfg.Connections, 1),
		inOne:    c.lied[d],
		unread:   src.background,
		stuck:    c.stuck[d],
		account:  c.account(src.Owner),
	}
	if e := c.entries.Get(d); e != nil {
		f.goOnWith(e)
	}
	f.ctx, f.cancel = context.WithCancelCause(c.ctx)
	c.fills[d] = f
	c.wg.Go(func() { c.run(f) })
	return f, Miss, nil
}

// join adds a reader. Needs Cache.mu.
func (f *fill) join() {
	f.readers++
	if f.linger != nil {
		f.linger.Stop()
	}
}

// goOnWith makes f the fill of what is on disk. Needs Cache.mu.
func (f *fill) goOnWith(e *entry) {
	if e.account != nil {
		f.account = e.account
	}
	if e.partial() {
		f.before = e
		f.cache.drop(e)
		f.cache.hold(f, e.size)
	}
}

// leave takes a reader from f. The last one to leave gives the fill its linger
// time to find a new one.
func (c *Cache) leave(f *fill, linger time.Duration) {
	c.mu.Lock()
	f.readers--
	last := f.readers == 0
	over := f.over
	if last && !over {
		f.linger = time.AfterFunc(linger, func() { c.park(f) })
	}
	c.mu.Unlock()
	if last && over {
		c.bury(f)
	}
}

// bury is called when the fill has ended and its last reader has left: until
// then, no other file can be taken for its file (see openFile).
func (c *Cache) bury(f *fill) {
	if f.file != nil {
		f.file.Close()
	}
	if f.stream != nil {
		c.unboard(f.stream)
	}
}

func (c *Cache) park(f *fill) {
	c.mu.Lock()
	idle := f.readers == 0
	if idle {
		f.parked = true
	}
	c.mu.Unlock()
	if idle {
		f.cancel(errParked)
	}
}

// abandon ends a fill that has lost its file; the next one begins anew.
func (c *Cache) abandon(f *fill) {
	c.mu.Lock()
	f.parked = true
	c.mu.Unlock()
	f.cancel(errMissed)
}

// run is the fill's goroutine: it ends when the blob is complete, can't be
// had, or is no longer wanted.
func (c *Cache) run(f *fill) {
	err := c.fillFile(f)
	f.mu.Lock()
	f.planning = false
	f.mu.Unlock()
	if err != nil && f.ctx.Err() != nil {
		err = context.Cause(f.ctx)
	}
	switch {
	case f.stored && (errors.Is(err, ErrDigest) || errors.Is(err, errStore)):
		err = fmt.Errorf("%w: %w", errDamaged, err)
		c.count.damaged.Add(1)
	case errors.Is(err, ErrDigest):
		c.mismatch(f.source)
	}
	f.update(func() {
		if f.err = err; err == nil {
			f.verified = true
		}
	})
	f.cancel(nil) // what the fetchers still bring is there already, or of no use
	f.fetchers.Wait()

	kept := c.settle(f, err)
	end := err
	if err == nil && kept == nil {
		end = ErrUnkept
	}
	if end != nil {
		f.source.end(end) // before anybody begins anew
	}
	if c.over(f, kept, err) {
		c.bury(f)
	}
	if end == nil {
		f.source.end(nil) // when the blob can be opened
	}
}

func (s Source) end(err error) {
	if s.Ended != nil {
		s.Ended(err)
	}
}

// mismatch notes that a source has sent wrong bytes, before anybody asks it again.
func (c *Cache) mismatch(src Source) {
	c.count.mismatches.Add(1)
	if src.Wrong != nil {
		src.Wrong()
	}
}

// over takes the fill out of the map, and what it has kept into the index. It
// reports whether no readers are left.
func (c *Cache) over(f *fill, kept *entry, err error) (unread bool) {
	c.mu.Lock()
	defer c.unlock()
	c.hold(f, -f.reserved)
	c.arrived.Add(-f.arrived)
	if kept != nil {
		if kept.account == nil {
			kept.account = f.account
		}
		c.add(kept)
	} else { // the file it stood for is gone
		c.drop(c.entries.Get(f.digest))
	}
	if err == nil {
		delete(c.lied, f.digest)
	} else if errors.Is(err, ErrDigest) && f.scattered {
		if len(c.lied) >= maxLied {
			clear(c.lied)
		}
		c.lied[f.digest] = true
	}
	delete(c.fills, f.digest)
	if f.linger != nil {
		f.linger.Stop()
	}
	f.over = true
	close(f.gone)
	return f.readers == 0
}

// update changes the fields that mu guards and wakes everybody who waits.
func (f *fill) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.wake()
}

// wake needs mu.
func (f *fill) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// failed reports whether the fill has ended without the blob. Who was there gets
// its error; it means nothing to who comes later. A blob that just can't be kept
// is still to be had with the others.
func (f *fill) failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err != nil && !unkept(f.err)
}

// isVerified reports whether all of the blob is in the file.
func (f *fill) isVerified() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verified
}

// hasFile reports whether anything was written.
func (f *fill) hasFile() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file != nil
}

func (f *fill) knownSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// limit is where the blob ends, as far as is known. Needs mu.
func (f *fill) limit() int64 {
	if f.size < 0 {
		return math.MaxInt64
	}
	return f.size
}

// complete reports whether all bytes have arrived, or too many. Needs mu.
func (f *fill) complete() bool { return f.size >= 0 && f.have.run(0) >= f.size }
