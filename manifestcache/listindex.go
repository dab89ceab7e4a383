package manifestcache

import (
	"path"
	"sync"
	"time"

	"larder/ttl"
)

// Clients choose what is listed and how: n and last, the subject, the type. These
// bound what is kept of it; the list that was not used for longest goes.
const (
	maxLists     = 1024     // of one repository
	maxListBytes = 64 << 20 // of all, in whole blocks: of empty ones there are 16,384
	listBlock    = 4 << 10
)

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
