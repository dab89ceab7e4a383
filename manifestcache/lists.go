package manifestcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"go.uber.org/zap"
)

// List is a page of what upstream lists of a repository: its tags, say.
type List struct {
	ContentType string
	Filters     string // that upstream has applied; "": none
	Next        string // the query that gets the next page; "": this is the last
	Body        []byte // as upstream sent it; shared, and not for who asks the cache
	Relayed     string // for Question

	// For who asks the cache. Content is to be closed.
	Size    int64
	Content io.ReadSeekCloser
	Outcome Outcome       // of what fetch gets, Stale if another cache has kept it and upstream could not be asked
	Age     time.Duration // since upstream sent it; of what fetch gets, 0 unless another cache has kept it
	Asked   *Question     // what that took; nil: upstream was not asked
	Joined  bool          // somebody else was asking already

	validated time.Time
}

// List returns the list of a repository that name, a path with a query, stands
// for. fetch gets it from upstream, which is asked unless it was within ListTTL;
// many who ask at the same time are one question.
func (c *Cache) List(ctx context.Context, repository, name string, fetch func(context.Context) (*List, error)) (*List, error) {
	l, err := c.list(ctx, repository, name, fetch)
	switch {
	case err != nil:
		return nil, err
	case l.Body == nil && l.Size > 0:
		return c.openList(repository, name, l)
	}
	content, err := c.inMemory(l.Body)
	if err != nil {
		return nil, err
	}
	l.Content = content
	return l, nil
}

// list is List without Content. A large one's Body stays in its file: hundreds of
// clients may be slow to read it.
func (c *Cache) list(ctx context.Context, repository, name string, fetch func(context.Context) (*List, error)) (*List, error) {
	if l := c.freshList(repository, name); l != nil {
		return l, nil
	}
	l, joined, err := once(ctx, c, "list "+listKey(repository, name), func(ctx context.Context) (*List, error) {
		// Who comes when another question has just been answered finds the answer.
		if l := c.freshList(repository, name); l != nil {
			return l, nil
		}
		return c.fetchList(ctx, repository, name, fetch)
	})
	if err == nil {
		l.Joined = joined
	}
	return l, err
}

// freshList is the list, if upstream need not be asked for it, or nil.
func (c *Cache) freshList(repository, name string) *List {
	if c.cfg.ListTTL == 0 {
		return nil
	}
	l := c.readList(repository, name)
	if l == nil || !within(c.cfg.ListTTL, l.validated) {
		return nil
	}
	l.Outcome = Hit
	return l
}

// fetchList asks upstream. As with a tag, no answer leaves the list as it was, and
// a no ends it.
func (c *Cache) fetchList(ctx context.Context, repository, name string, fetch func(context.Context) (*List, error)) (*List, error) {
	began := time.Now()
	l, err := fetch(ctx)
	asked := &Question{Took: time.Since(began), Err: err}
	if err == nil {
		if l.Outcome != Stale {
			l.Outcome = Miss
		}
		l.Size, l.Asked, asked.Relayed = int64(len(l.Body)), asked, l.Relayed
		if asked.Known, asked.Stored = c.storeList(repository, name, l); asked.Stored && l.Size > maxBody {
			l.Body = nil
		}
		c.trimLists(listName(repository, name))
		return l, nil
	}
	if c.cfg.GoneIf(err) {
		c.removeList(listName(repository, name))
		return nil, err
	}
	if !c.cfg.StaleIf(err) {
		return nil, err
	}
	old := c.readList(repository, name)
	if old == nil {
		return nil, err
	}
	c.log.Warn("upstream can't list; answering with what it last said",
		zap.String("repository", repository), zap.String("list", withoutQuery(name)), zap.Duration("age", old.Age), zap.Error(err))
	old.Outcome, old.Asked = Stale, asked
	return old, nil
}

// readList reads a list from disk, once for all who need it at the same time, and
// notes the use, or returns nil.
func (c *Cache) readList(repository, name string) *List {
	read, _, _ := c.loads.Do(listKey(repository, name), func() (any, error) { return c.readListFile(repository, name), nil })
	l := read.(*List)
	if l == nil {
		return nil
	}
	own := *l
	return &own
}

func (c *Cache) readListFile(repository, name string) *List {
	file := listName(repository, name)
	defer c.changes.begin(file)()
	l, f, fi, err := c.openListFile(repository, name)
	if errors.Is(err, fs.ErrNotExist) {
		c.dropList(file)
		return nil
	}
	if saysNothing(err) {
		c.log.Error("list can't be read now", zap.String("repository", repository), zap.String("list", withoutQuery(name)), zap.Error(err))
		return nil
	}
	if err != nil {
		c.count.damaged.Add(1)
		c.log.Error("list file is damaged; asking upstream", zap.String("repository", repository), zap.String("list", withoutQuery(name)), zap.Error(err))
		c.unlinkList(file)
		return nil
	}
	f.Close()
	c.useList(file, fi.Size(), time.Now())
	l.validated, l.Age = fi.ModTime(), max(time.Since(fi.ModTime()), 0)
	return l
}

// openList opens the large list that found was about. It is what its file has now:
// another question may have been answered since.
func (c *Cache) openList(repository, name string, found *List) (*List, error) {
	l, f, fi, err := c.openListFile(repository, name)
	if err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", withoutQuery(name), repository, err)
	}
	l.Content = &inFile{io.NewSectionReader(f, fi.Size()-l.Size, l.Size), f}
	l.Outcome, l.Age, l.Asked, l.Joined = found.Outcome, found.Age, found.Asked, found.Joined
	return l, nil
}

// openListFile opens and checks the file of a list.
func (c *Cache) openListFile(repository, name string) (*List, *os.File, fs.FileInfo, error) {
	f, fi, err := c.openFile(listName(repository, name))
	if err != nil {
		return nil, nil, nil, err
	}
	l, err := decodeList(listKey(repository, name), f, fi.Size())
	if err != nil {
		f.Close()
		return nil, nil, nil, err
	}
	return l, f, fi, nil
}

// storeList writes to disk what upstream has just sent. If it is what is there
// already, and not large, only its time is new. It
// was known if there was something before.
func (c *Cache) storeList(repository, name string, l *List) (known, stored bool) {
	file := listName(repository, name)
	defer c.changes.begin(file)()
	now := time.Now().Add(-l.Age)
	data := encodeList(listKey(repository, name), l)
	old, _, err := c.readFile(file)
	known = err == nil
	if err != nil || !bytes.Equal(old, data) {
		err = c.write(file, data)
	}
	if err == nil {
		err = c.root.Chtimes(file, now, now)
	}
	if err != nil {
		c.complain("list not stored", err, zap.String("repository", repository), zap.String("list", withoutQuery(name)))
		c.unlinkList(file) // what it says is not true any more
		return known, false
	}
	c.useList(file, int64(len(data)), now)
	return known, true
}

// useList notes the use of a file. Needs the change of it.
func (c *Cache) useList(file string, size int64, at time.Time) {
	if added := c.lists.use(file, size, at); added != nil {
		c.schedule(added, at)
	}
}

// trimLists removes what is too much, now that a file is used.
func (c *Cache) trimLists(file string) {
	for {
		other := c.lists.excess(file)
		if other == nil {
			return
		}
		c.removeList(other.name)
	}
}

func (c *Cache) removeList(file string) {
	defer c.changes.begin(file)()
	c.unlinkList(file)
}

// unlinkList needs the change of the file.
func (c *Cache) unlinkList(file string) {
	c.dropList(file)
	if err := c.root.RemoveAll(file); err != nil {
		c.log.Error("list not removed", zap.String("path", file), zap.Error(err))
		return
	}
	_ = c.root.Remove(path.Dir(file)) // unless there are others
}

// dropList drops what is known of a list, whose file is gone or about to go. Needs the
// change of it.
func (c *Cache) dropList(file string) {
	if e := c.lists.forget(file); e != nil {
		c.due.Delete(e)
	}
}

// ForgetLists removes all lists of a repository: upstream says that there is none,
// or not for us.
func (c *Cache) ForgetLists(repository string) { c.removeListsOf(hashOf(repository)) }

// removeListsOf removes all lists of a repository.
func (c *Cache) removeListsOf(repository [sha256.Size]byte) {
	for _, file := range c.lists.in(listsOf(repository)) {
		c.removeList(file)
	}
}
