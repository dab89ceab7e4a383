// Package htpasswd checks the credentials clients show to larder against an
// Apache password file with bcrypt hashes.
package htpasswd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tg123/go-htpasswd"
	"go.uber.org/zap"
)

const (
	// checkEvery is how often Verify looks whether the file was changed.
	checkEvery = time.Second

	// maxWaiting is how many passwords wait to be checked, beside those that
	// are: one or two seconds' worth.
	maxWaiting = 32
)

// ErrBusy says that so many passwords are being checked that this one is not.
var ErrBusy = errors.New("too many passwords are being checked")

// File is a password file. Its methods may be called concurrently.
type File struct {
	path   string
	log    *zap.Logger
	key    [32]byte      // of the HMACs of verified passwords; this process's own
	slots  chan struct{} // one for each bcrypt that may run at once
	places chan struct{} // one for each that may run or wait to
	match  func(hash htpasswd.EncodedPasswd, password string) bool
	users  atomic.Pointer[users]

	mu      sync.Mutex // guards the fields below
	checked time.Time
	seen    os.FileInfo // what was read last, good or bad; nil: nothing could be
	err     error       // why it is not in force
}

// Open reads the password file at path. The error names the line of every bad
// entry; a file with no entries is an error too. log is told of changes.
func Open(path string, log *zap.Logger) (*File, error) {
	// Half of the processors at most: whoever sends wrong passwords must not
	// slow down the pulls of those who know theirs.
	slots := (runtime.GOMAXPROCS(0) + 1) / 2
	f := &File{
		path: path, log: log, slots: make(chan struct{}, slots), places: make(chan struct{}, slots+maxWaiting),
		match: htpasswd.EncodedPasswd.MatchesPassword,
	}
	rand.Read(f.key[:]) // never fails
	u, seen, err := read(f.path)
	if err != nil {
		return nil, err
	}
	f.users.Store(u)
	f.checked, f.seen = time.Now(), seen
	return f, nil
}

// Verify reports whether the file has username with password. An unknown user
// takes as long as a wrong password. A changed file is seen within a second or
// so; if it is bad, what was read before it stays in force. The error is ErrBusy
// or the context's.
func (f *File) Verify(ctx context.Context, username, password string) (bool, error) {
	f.reloadIfChanged()
	return f.users.Load().verify(ctx, f, username, password)
}

func (f *File) reloadIfChanged() {
	f.mu.Lock()
	due := time.Since(f.checked) >= checkEvery
	if due {
		f.checked = time.Now() // so that only one caller looks
	}
	before := f.seen
	f.mu.Unlock()
	if !due {
		return
	}
	now, err := os.Stat(f.path)
	// Without an error a bad file that did not change is not read again.
	if err == nil && before != nil && same(before, now) {
		return
	}
	u, seen, err := read(f.path)
	f.mu.Lock()
	news := f.err == nil || err == nil || !same(before, seen)
	f.seen, f.err = seen, err
	f.mu.Unlock()
	switch {
	case err == nil:
		f.users.Store(u)
		f.log.Info("password file read again")
	case news:
		f.log.Error("password file changed and can't be used; going on with the old", zap.Error(err))
	}
}

// same also compares identity: a new hash is as long as the old one, and two
// files can be written within one tick of the file system's clock.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// read reads the file at path. seen describes it even if it is bad.
func read(path string) (u *users, seen os.FileInfo, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	// Before reading: a change in between is then noticed at the next check.
	seen, err = file.Stat()
	if err != nil {
		return nil, nil, err
	}
	u, err = parse(file)
	if err != nil {
		return nil, seen, fmt.Errorf("%s: %w", path, err)
	}
	return u, seen, nil
}
