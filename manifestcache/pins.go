package manifestcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
)

const (
	// pinDir holds a file for each image that was pinned by hand: its reference. The
	// name is a hash of that.
	pinDir = "pins"

	// maxPins bounds how many there may be, and maxPin what is read of one.
	maxPins = 10_000
	maxPin  = 1 << 10

	// pinPause is how long after what pins hold was worked out it is not worked out
	// again: tags may move by the dozen.
	pinPause = time.Second
)

// ErrTooManyPins says that no more can be pinned by hand.
var ErrTooManyPins = errors.New("too many pins")

// pins are the images that are neither evicted nor expire. A pin is on a reference:
// it holds what that means now, and all that this leads to, as far as it is here. Who
// may have it is another matter: what upstream says is gone is held no longer.
type pins struct {
	hand   map[string]bool        // references that were pinned by hand
	held   map[digest.Digest]bool // manifests that pins hold, here or not
	wanted int                    // counts what might make a difference to held
	known  int                    // how much of that is in held
	worked chan struct{}          // closed and replaced when held was worked out
}

// pinOf is the reference that a pin is on.
func pinOf(repository, reference string) string {
	if strings.Contains(reference, ":") { // no tag has one
		return repository + "@" + reference
	}
	return repository + ":" + reference
}

func pinName(pin string) string {
	sum := sha256.Sum256([]byte(pin))
	return path.Join(pinDir, hex.EncodeToString(sum[:]))
}

// readPins reads what was pinned by hand.
func (c *Cache) readPins() {
	c.pins = pins{hand: make(map[string]bool), worked: make(chan struct{})}
	files, err := fs.ReadDir(c.root.FS(), pinDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("pins can't be read; what they hold may be removed", zap.Error(err))
	}
	for _, de := range files {
		name := path.Join(pinDir, de.Name())
		pin, _, err := durable.ReadFile(c.root, name, maxPin)
		if err == nil && pinName(string(pin)) != name {
			err = errDamaged
		}
		if err != nil {
			c.log.Error("a pin can't be read; pin the image again", zap.String("path", name), zap.Error(err))
			continue
		}
		c.pins.hand[string(pin)] = true
	}
}

// anyPins reports whether there may be any.
func (c *Cache) anyPins() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Pinned != nil || len(c.pins.hand) > 0
}

// Pin pins an image, a tag or a digest of a repository, be it here or not, and
// returns when that holds it. Run must be running.
func (c *Cache) Pin(ctx context.Context, repository, reference string) error {
	pin := pinOf(repository, reference)
	c.mu.Lock()
	full := len(c.pins.hand) >= maxPins && !c.pins.hand[pin]
	c.mu.Unlock()
	if full {
		return ErrTooManyPins
	}
	wanted, err := c.putPin(pin)
	if err != nil {
		c.complain("pin not stored", err, zap.String("pin", pin))
		return err
	}
	return c.workedOut(ctx, wanted)
}

// putPin makes a pin, and returns what has to be worked out for it to hold.
func (c *Cache) putPin(pin string) (wanted int, err error) {
	name := pinName(pin)
	defer c.changes.begin(name)()
	if err := c.write(name, []byte(pin)); err != nil {
		return 0, err
	}
	return c.changePins(func() { c.pins.hand[pin] = true }), nil
}

// Unpin takes back what Pin has done, if it has.
func (c *Cache) Unpin(ctx context.Context, repository, reference string) error {
	pin := pinOf(repository, reference)
	wanted, err := c.takePin(pin)
	if err != nil {
		c.complain("pin not removed", err, zap.String("pin", pin))
		return err
	}
	return c.workedOut(ctx, wanted)
}

// takePin is the opposite of putPin.
func (c *Cache) takePin(pin string) (wanted int, err error) {
	name := pinName(pin)
	defer c.changes.begin(name)()
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return c.changePins(func() { delete(c.pins.hand, pin) }), nil
}

// changePins makes a change, and returns what has to be worked out for it to show.
func (c *Cache) changePins(change func()) (wanted int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.repin()
	return c.pins.wanted
}

// workedOut waits until so much shows in what is held.
func (c *Cache) workedOut(ctx context.Context, wanted int) error {
	c.mu.Lock()
	for c.pins.known < wanted {
		worked := c.pins.worked
		c.mu.Unlock()
		select {
		case <-worked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.mu.Lock()
	}
	c.mu.Unlock()
	return nil
}

// Pins lists what is pinned by hand, in order.
func (c *Cache) Pins() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.pins.hand))
}

// Pinned says whether a tag or digest of a repository is pinned: by hand, or by
// what Config.Pinned says.
func (c *Cache) Pinned(repository, reference string) (byHand, bySetting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pins.hand[pinOf(repository, reference)], c.cfg.Pinned != nil && c.cfg.Pinned(repository, reference)
}

// isPinned needs mu.
func (c *Cache) isPinned(repository, reference string) bool {
	return c.cfg.Pinned != nil && c.cfg.Pinned(repository, reference) ||
		len(c.pins.hand) > 0 && c.pins.hand[pinOf(repository, reference)]
}

// pinMoved is called when a tag, or a right, has come, moved or gone. Needs mu.
func (c *Cache) pinMoved(repository, reference string) {
	if c.isPinned(repository, reference) {
		c.repin()
	}
}

// repin has it worked out anew what is held. Needs mu.
func (c *Cache) repin() {
	c.pins.wanted++
	select {
	case c.repins <- struct{}{}:
	default: // it will be
	}
}

// keepPins works out what is held whenever that may have changed, until ctx is
// done.
func (c *Cache) keepPins(ctx context.Context) {
	for {
		select {
		case <-c.repins:
		case <-ctx.Done():
			return
		}
		c.workOutPins()
		select {
		case <-time.After(pinPause):
		case <-ctx.Done():
			return
		}
	}
}

// workOutPins finds out what is held: all that pinned references lead to.
func (c *Cache) workOutPins() {
	c.mu.Lock()
	wanted, roots := c.pins.wanted, c.pinRoots()
	c.mu.Unlock()
	manifests, blobs := make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	for _, d := range roots {
		if manifests[d] {
			continue // as part of another
		}
		tree := c.Tree(d)
		for _, m := range slices.Concat(tree.Manifests, tree.Absent) {
			manifests[m] = true
		}
		for _, b := range tree.Blobs {
			blobs[b] = true
		}
	}
	if c.cfg.Hold != nil {
		c.cfg.Hold(blobs)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	released := c.pins.held
	c.pins.held, c.pins.known = manifests, wanted
	for d := range released {
		if e := c.manifests.Get(d); e != nil && !manifests[d] {
			c.schedule(e, e.used.Time())
		}
	}
	close(c.pins.worked)
	c.pins.worked = make(chan struct{})
}

// pinRoots are the manifests that are pinned themselves. Needs mu.
func (c *Cache) pinRoots() (roots []digest.Digest) {
	if c.cfg.Pinned == nil && len(c.pins.hand) == 0 {
		return nil
	}
	for _, repo := range c.repositories {
		name := repo.called()
		for tag, t := range repo.tags {
			if c.isPinned(name, tag) {
				roots = append(roots, t.manifest.Digest())
			}
		}
		for v := range repo.rights.All() {
			d := v.manifest.Digest()
			if c.isPinned(name, string(d)) {
				roots = append(roots, d)
			}
		}
	}
	return roots
}

// PinnedIn is a pinned image that would go with a plan, or "".
func (c *Cache) PinnedIn(p *Plan) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range p.Tags {
		if c.isPinned(t.Repository, t.Name) {
			return pinOf(t.Repository, t.Name)
		}
	}
	for r := range p.removal.rights {
		if repo := c.repositories[r.repository]; repo != nil && c.isPinned(repo.called(), string(r.digest)) {
			return pinOf(repo.called(), string(r.digest))
		}
	}
	for _, m := range p.Manifests {
		if c.pins.held[m.Digest] {
			return string(m.Digest)
		}
	}
	return ""
}
