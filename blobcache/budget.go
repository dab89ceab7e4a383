package blobcache

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
	"larder/ttl"
)

// settling is how long a blob waits for room that another one, which has arrived
// and is being written to disk, can soon be evicted from.
const settling = time.Second

// errNoRoom says that a blob can't be kept, whatever is removed for it.
var errNoRoom = errors.New("no room for the blob in the cache")

// Limit is a number of bytes, or a share of the file system that the cache is
// on; if both are given, what is less. The zero Limit is none.
type Limit struct {
	Bytes   int64
	Percent float64 // of the file system's size
}

// Of is the limit in bytes on a file system of the given size, 0 if there is
// none.
func (l Limit) Of(total int64) int64 {
	share := int64(float64(total) * l.Percent / 100)
	if l.Percent <= 0 || l.Bytes > 0 && l.Bytes < share {
		return l.Bytes
	}
	return max(share, 1)
}

// Quota bounds what is kept for one owner, or for all below it: "docker.io"
// counts for "docker.io/library/alpine" too.
type Quota struct {
	Owner string
	Bytes int64
}

// budget is what the cache may hold, and what it does. Cache.mu guards it.
type budget struct {
	max     int64    // bytes; 0: no limit
	minFree int64    // bytes of the file system that stay free
	quotas  []*quota // immutable

	blobs, partials holding // what is on disk and no fill's
	held            holding // of these: what stays, whatever happens
	holds           map[digest.Digest]bool
	reserved        int64 // what the running fills hold or may yet write
}

// holding is a number of files.
type holding struct{ n, bytes int64 }

// quota is a Quota in use.
type quota struct {
	Quota
	entries  int64 // bytes on disk that are no fill's
	held     int64 // of these: of what stays, whatever happens
	reserved int64
	due      ttl.Queue[*entry] // of its entries, as Cache.due is of all
}

// account is the owner for whom a blob is kept, and the quotas that it counts
// against.
type account struct {
	owner  string
	quotas []*quota
}

func newBudget(cfg Config, total int64) budget {
	b := budget{max: cfg.MaxSize.Of(total), minFree: cfg.MinFree.Of(total)}
	for _, q := range cfg.Quotas {
		b.quotas = append(b.quotas, &quota{Quota: q, due: ttl.Queue[*entry]{Shared: true}})
	}
	return b
}

// account returns the owner's account, or nil if no quota counts for it.
func (b *budget) account(owner string) *account {
	var a account
	for _, q := range b.quotas {
		if rest, ok := strings.CutPrefix(owner, q.Owner); ok && (rest == "" || rest[0] == '/') {
			a.quotas = append(a.quotas, q)
		}
	}
	if a.quotas == nil {
		return nil
	}
	a.owner = owner
	return &a
}

// all are the quotas of an account that may be nil.
func (a *account) all() []*quota {
	if a == nil {
		return nil
	}
	return a.quotas
}

// hold counts n bytes for a fill, or takes them back.
func (b *budget) hold(f *fill, n int64) {
	f.reserved += n
	b.reserved += n
	for _, q := range f.account.all() {
		q.reserved += n
	}
}

// holdAtLeast counts n bytes for f that are on disk already.
func (c *Cache) holdAtLeast(f *fill, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold(f, max(n-f.reserved, 0))
	c.arrived.Add(n)
}

// reserve makes room for f to hold n bytes. What can't be evicted yet, but in a
// moment, is waited for.
func (c *Cache) reserve(f *fill, n int64) error {
	for end := time.After(settling); ; {
		err := c.reserveNow(f, n)
		if !errors.Is(err, errNoRoom) {
			return err
		}
		other := c.settlingFor(f, n)
		if other == nil {
			return err
		}
		select {
		case <-other.gone:
		case <-end:
			return err
		case <-f.ctx.Done():
			return err
		}
	}
}

// settlingFor is a fill that needs nothing any more but the disk, and can then
// be evicted; nil if there is none, or f would not fit into what such fills hold.
func (c *Cache) settlingFor(f *fill, n int64) (other *fill) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stay := c.reserved - f.reserved + n
	for _, o := range c.fills {
		if o.isVerified() {
			other = o
			stay -= o.reserved
		}
	}
	if c.max > 0 && stay > c.max {
		return nil
	}
	return other
}

// reserveNow evicts what was used least recently, but nothing if that would be
// in vain.
func (c *Cache) reserveNow(f *fill, n int64) error {
	free, err := c.free()
	if err != nil {
		return err
	}
	for {
		c.mu.Lock()
		delta := n - f.reserved
		if delta <= 0 {
			c.mu.Unlock()
			return nil
		}
		q, ok := c.full(f, delta)
		if lacking := c.lacking(delta, free); ok && q == nil && lacking > 0 {
			q, ok = &c.due, lacking <= c.blobs.bytes+c.partials.bytes-c.held.bytes
		}
		if q == nil && ok {
			c.hold(f, delta)
		}
		c.mu.Unlock()
		if !ok {
			return errNoRoom
		}
		if q == nil {
			return nil
		}
		freed, ok := c.evictOne(q)
		if !ok {
			return errNoRoom
		}
		free += freed
	}
}

// free is how much may be written to the disk.
func (c *Cache) free() (int64, error) {
	_, free, err := diskSpace(c.dir)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return math.MaxInt64 / 2, nil
	case err != nil:
		return 0, fmt.Errorf("%w: %w", errStore, err)
	}
	return free, nil
}

// lacking is how much has to be removed for delta bytes more to leave the file
// system as much space as it should have. Needs mu.
func (c *Cache) lacking(delta, free int64) int64 {
	toCome := max(c.reserved-c.arrived.Load(), 0) // what fills may write and have not
	return delta + toCome + c.minFree - free
}

// full returns the queue from which something has to go for f to hold delta
// bytes more, nil if there is room; ok is false if there can't be. Needs mu.
func (c *Cache) full(f *fill, delta int64) (q *ttl.Queue[*entry], ok bool) {
	if c.max > 0 {
		if c.held.bytes+c.reserved+delta > c.max {
			return nil, false
		}
		if c.blobs.bytes+c.partials.bytes+c.reserved+delta > c.max {
			q = &c.due
		}
	}
	for _, own := range f.account.all() {
		if own.held+own.reserved+delta > own.Bytes {
			return nil, false
		}
		if own.entries+own.reserved+delta > own.Bytes {
			q = &own.due // an owner makes room at its own expense first
		}
	}
	return q, true
}

// shrink evicts until what is on disk is within the budget.
func (c *Cache) shrink() {
	for {
		c.mu.Lock()
		q, _ := c.full(&fill{}, 0)
		for _, own := range c.quotas {
			if own.entries+own.reserved > own.Bytes {
				q = &own.due
			}
		}
		c.mu.Unlock()
		if q == nil {
			return
		}
		if _, ok := c.evictOne(q); !ok {
			return
		}
	}
}

// evictOne removes the least recently used blob of a queue, and says how large
// it was; ok is false if there is none, or it can't be removed.
func (c *Cache) evictOne(q *ttl.Queue[*entry]) (freed int64, ok bool) {
	c.mu.Lock()
	e := c.oldest(q)
	if e == nil {
		c.mu.Unlock()
		return 0, false
	}
	d := e.name.Digest()
	done := c.remove(d, e)
	c.mu.Unlock()
	if err := done(); err != nil {
		c.complain("blob can't be evicted", err)
		return 0, false
	}
	c.count.evicted.Add(1)
	c.count.evictedBytes.Add(e.size)
	c.noteGone(d, e, Evicted)
	c.log.Debug("evicted", zap.Stringer("digest", d), zap.Int64("size", e.size), zap.Time("used", e.used.Time()))
	return e.size, true
}

// oldest finds the entry of a queue that was used least recently. One that a
// fill is at work on stays. Needs mu.
func (c *Cache) oldest(q *ttl.Queue[*entry]) *entry {
	busy := make(map[*entry]time.Time)
	defer func() {
		for e, due := range busy {
			q.Set(e, due)
		}
	}()
	for {
		e, due, ok := q.Pop()
		if !ok {
			return nil
		}
		d := e.name.Digest()
		switch end := c.endOf(d, e); {
		case c.entries.Get(d) != e:
		case c.stays(d): // and so does all that would come after it
			q.Set(e, due)
			return nil
		case c.fills[d] != nil:
			busy[e] = due
		case end.After(due): // used since
			q.Set(e, end)
		default:
			return e
		}
	}
}

// remove takes e out of the index, and returns what removes its file. Until that
// is done, whoever wants the blob waits. Needs mu; done must not have it.
func (c *Cache) remove(d digest.Digest, e *entry) (done func() error) {
	c.drop(e)
	removing := &fill{size: -1, parked: true, removing: true, gone: make(chan struct{})}
	c.fills[d] = removing
	return func() error {
		err := c.removeFiles(d, e)
		c.mu.Lock()
		defer c.unlock()
		delete(c.fills, d)
		close(removing.gone)
		if err != nil {
			c.add(e)
		}
		return err
	}
}

func (c *Cache) removeFiles(d digest.Digest, e *entry) error {
	err := c.removeFile(d, e)
	if err == nil {
		c.removeOwner(d, e.account)
	}
	return err
}

func (c *Cache) removeFile(d digest.Digest, e *entry) error {
	if e.partial() {
		return c.removePartial(d)
	}
	return remove(c.root, blobName(d))
}

// unkept reports whether err means that the blob can be had, but not be kept.
func unkept(err error) bool {
	return !errors.Is(err, errDamaged) && (errors.Is(err, errNoRoom) || errors.Is(err, errStore))
}

// diskFull reports whether less on the disk would have helped.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// complain logs what is wrong with the disk, once a minute at most.
func (c *Cache) complain(message string, err error) {
	c.disk.Error(message, zap.Error(err))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storeErr = err
	c.storeErrs[durable.Kind(err)]++
}
