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
	"sync"
	"time"

	"go.uber.org/zap"

	"larder/ttl"
)

// Clients choose what is listed and how: n and last, the subject, the type. These
// bound what is kept of it; the list that was not used for longest goes.
const (
	maxLists     = 1024     // of one repository
	maxListBytes = 64 << 20 // of all, in whole blocks: of empty ones there are 16,384
	listBlock    = 4 << 10
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

// lists are the files with lists, by name.
type lists struct {
	mu       sync.Mutex // guards what follows
	used     map[string]*listEntry
	bytes    int64          // of all
	siblings map[string]int // how many by directory, which is the repository
}

type listEntry struct {
	name  string
	bytes int64 // on disk, in whole blocks
	at    time.Time
	place ttl.Place // in Cache.due
}

// Place implements ttl.Placed.
func (e *listEntry) Place() *ttl.Place { return &e.place }

func (e *listEntry) file() string        { return e.name }
func (e *listEntry) known(c *Cache) bool { return c.lists.known(e) }

func (e *listEntry) lifeEnds(c *Cache) (end time.Time, held bool) {
	return c.lists.lastUse(e).Add(c.cfg.TTL), false
}

func (e *listEntry) gone(c *Cache) {
	c.dropList(e.name)
	_ = c.root.Remove(path.Dir(e.name)) // unless there are others
}

func newLists() lists {
	return lists{used: make(map[string]*listEntry), siblings: make(map[string]int)}
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

// use notes that a file, whose size is given, is used, and returns it if it is new.
func (s *lists) use(file string, size int64, at time.Time) (added *listEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.used[file]
	if e == nil {
		e = &listEntry{name: file}
		s.used[file], added = e, e
		s.siblings[path.Dir(file)]++
	}
	bytes := (size + listBlock - 1) / listBlock * listBlock
	s.bytes += bytes - e.bytes
	e.bytes = bytes
	if at.After(e.at) {
		e.at = at
	}
	return added
}

// excess is what has to go first if there are too many now that a file is used, or nil.
func (s *lists) excess(file string) *listEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.used) > 1 && (s.bytes > maxListBytes || s.siblings[path.Dir(file)] > maxLists) {
		return s.oldest(file, s.bytes <= maxListBytes)
	}
	return nil
}

// oldest is the list but for the file that was not used for longest, of the same
// repository or of all. Needs mu.
func (s *lists) oldest(file string, sibling bool) (oldest *listEntry) {
	for other, e := range s.used {
		if other == file || sibling && path.Dir(other) != path.Dir(file) {
			continue
		}
		if oldest == nil || e.at.Before(oldest.at) {
			oldest = e
		}
	}
	return oldest
}

// forget returns what was known of a file, or nil.
func (s *lists) forget(file string) *listEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.used[file]
	if e != nil {
		s.drop(e)
	}
	return e
}

// drop needs mu.
func (s *lists) drop(e *listEntry) {
	delete(s.used, e.name)
	s.bytes -= e.bytes
	if dir := path.Dir(e.name); s.siblings[dir] > 1 {
		s.siblings[dir]--
	} else {
		delete(s.siblings, dir)
	}
}

// known reports whether this is what is known of a file.
func (s *lists) known(e *listEntry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used[e.name] == e
}

func (s *lists) lastUse(e *listEntry) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.at
}

// in lists the files of a directory.
func (s *lists) in(dir string) (files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for file := range s.used {
		if path.Dir(file) == dir {
			files = append(files, file)
		}
	}
	return files
}

// stats are how many lists there are and what they take on disk.
func (s *lists) stats() (n, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.used)), s.bytes
}
