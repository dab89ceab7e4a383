// Package htpasswd checks the credentials clients show to larder against an
// Apache password file with bcrypt hashes.
package htpasswd

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tg123/go-htpasswd"
)

// checkEvery is how often Verify looks whether the file was changed.
const checkEvery = time.Second

// File is a password file. Its methods may be called concurrently.
type File struct {
	path  string
	key   [32]byte      // of the HMACs of verified passwords; this process's own
	slots chan struct{} // one for each bcrypt that may run at once
	match func(hash htpasswd.EncodedPasswd, password string) bool

	users atomic.Pointer[users]

	mu      sync.Mutex // guards the fields below
	checked time.Time
	seen    os.FileInfo // what was read last, good or bad; nil: nothing could be
	err     error
}

// Open reads the password file at path. The error names the line of every bad
// entry; a file with no entries is an error too.
func Open(path string) (*File, error) {
	f := &File{
		path: path,
		// Half of the processors at most: whoever sends wrong passwords must
		// not slow down the pulls of those who know theirs.
		slots: make(chan struct{}, (runtime.GOMAXPROCS(0)+1)/2),
		match: htpasswd.EncodedPasswd.MatchesPassword,
	}
	rand.Read(f.key[:]) // never fails
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Verify reports whether the file has username with password. An unknown user
// takes as long as a wrong password. A changed file is seen within a second or
// so; if it is bad, what was read before it stays in force.
func (f *File) Verify(username, password string) bool {
	f.reloadIfChanged()
	return f.users.Load().verify(f, username, password)
}

// Reload reads the file now. If that fails, what was read before stays in
// force and Err returns the error, too.
func (f *File) Reload() error {
	u, seen, err := read(f.path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.users.Store(u)
	}
	f.checked, f.seen, f.err = time.Now(), seen, err
	return err
}

// Err returns why the file as it is now is not in force; nil if it is.
func (f *File) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *File) reloadIfChanged() {
	f.mu.Lock()
	due := time.Since(f.checked) >= checkEvery
	if due {
		f.checked = time.Now() // so that only one caller looks
	}
	seen := f.seen
	f.mu.Unlock()
	if !due {
		return
	}
	now, err := os.Stat(f.path)
	// Without an error a bad file that did not change is not read again.
	if err == nil && seen != nil && same(seen, now) {
		return
	}
	f.Reload() // Err keeps the error
}

// same also compares identity: a new hash is as long as the old one, and two
// files can be written within one tick of the file system's clock.
func same(a, b os.FileInfo) bool {
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
