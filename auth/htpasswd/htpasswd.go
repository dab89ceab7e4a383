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

	"github.com/tg123/go-htpasswd"
	"go.uber.org/zap"

	"larder/auth/watched"
)

// maxWaiting is how many passwords wait to be checked, beside those that are: one
// or two seconds' worth.
const maxWaiting = 32

// ErrBusy says that so many passwords are being checked that this one is not.
var ErrBusy = errors.New("too many passwords are being checked")

// File is a password file. Its methods may be called concurrently.
type File struct {
	key    [32]byte      // of the HMACs of verified passwords; this process's own
	slots  chan struct{} // one for each bcrypt that may run at once
	places chan struct{} // one for each that may run or wait to
	match  func(hash htpasswd.EncodedPasswd, password string) bool
	users  *watched.Files[*users]
}

// Open reads the password file at path. The error names the line of every bad
// entry; a file with no entries is an error too. log is told of changes.
func Open(path string, log *zap.Logger) (*File, error) {
	// Half of the processors at most: whoever sends wrong passwords must not
	// slow down the pulls of those who know theirs.
	slots := (runtime.GOMAXPROCS(0) + 1) / 2
	f := &File{
		slots: make(chan struct{}, slots), places: make(chan struct{}, slots+maxWaiting), match: htpasswd.EncodedPasswd.MatchesPassword,
	}
	rand.Read(f.key[:]) // never fails
	var err error
	f.users, err = watched.Open("password file", log, func() (*users, error) { return read(path) }, path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Verify reports whether the file has username with password. An unknown user
// takes as long as a wrong password. A changed file is seen within a second or
// so; if it is bad, what was read before it stays in force. The error is ErrBusy
// or the context's.
func (f *File) Verify(ctx context.Context, username, password string) (bool, error) {
	return f.users.Get().verify(ctx, f, username, password)
}

func read(path string) (*users, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	u, err := parse(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return u, nil
}
