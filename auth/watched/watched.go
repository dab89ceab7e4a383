// Package watched reads configuration files again when they change.
package watched

import (
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Interval is how often files are looked at, at most.
const Interval = time.Second

// Files is what was read of some files. They are read again when they change, as
// cert-manager and certbot expect. Its methods may be called concurrently.
type Files[T any] struct {
	what  string
	paths []string
	read  func() (T, error)
	log   *zap.Logger

	mu      sync.Mutex // guards the fields below
	current T
	seen    []os.FileInfo // what the files were when they were read last, good or bad; nil: not there
	checked time.Time
}

// Open reads the files at paths, all of them, with read. log is told of changes
// to what.
func Open[T any](what string, log *zap.Logger, read func() (T, error), paths ...string) (*Files[T], error) {
	f := &Files[T]{what: what, paths: paths, read: read, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// load reads the files. If that fails, what was read before stays.
func (f *Files[T]) load() error {
	seen := f.look() // before reading: a change in between is noticed next time
	value, err := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen, f.checked = seen, time.Now()
	if err == nil {
		f.current = value
	}
	return err
}

// Get returns what is in force. A change is seen within a second or so; if it is
// bad, that is logged once, and what was read before it stays.
func (f *Files[T]) Get() T {
	f.mu.Lock()
	due, seen := time.Since(f.checked) >= Interval, f.seen
	if due {
		f.checked = time.Now() // so that only one caller looks
	}
	f.mu.Unlock()
	if due && !slices.EqualFunc(f.look(), seen, same) { // an older file may have been put back
		if err := f.load(); err != nil { // half of a new pair, perhaps
			f.log.Error(f.what+" changed and can't be used; going on with the old", zap.Error(err))
		} else {
			f.log.Info(f.what + " read again")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

func (f *Files[T]) look() []os.FileInfo {
	seen := make([]os.FileInfo, len(f.paths))
	for i, path := range f.paths {
		if fi, err := os.Stat(path); err == nil {
			seen[i] = fi
		}
	}
	return seen
}

// same also compares identity: a new hash is as long as the old one, and two
// files can be written within one tick of the file system's clock.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
