// Package store keeps objects where several machines find them: in a bucket of an
// S3-compatible object store, or in a directory that they share.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

var (
	// ErrNotExist says that there is no such object.
	ErrNotExist = errors.New("no such object")

	// ErrChanged says that a condition was not met: the object is there already, or
	// is not the one any more that was to be replaced.
	ErrChanged = errors.New("the object is another one")

	// ErrUnsupported says that the store can't do this at all.
	ErrUnsupported = errors.New("not supported by the store")

	// ErrRange says that an object ends before the offset that was asked for.
	ErrRange = errors.New("no such range")
)

// Info is what a store says of an object.
type Info struct {
	Size     int64
	Modified time.Time     // by the store's clock
	Version  string        // an ETag, which changes with the content; opaque
	Digest   digest.Digest // as given to Put or Compose; "" if not known
	Length   int64         // the size that was given to Put or Compose; -1 if not known
}

// Item is an object in a listing.
type Item struct {
	Key string
	Info
}

// Label is kept with an object: what its content should be.
type Label struct {
	Digest digest.Digest // "": not said
	Size   int64
}

// Store is a place for objects. Its methods may be called by several goroutines.
// Keys are what CheckKey says, and none is another's prefix up to a slash. Errors are
// those above or, wrapped in an *Error, what has gone wrong.
type Store interface {
	// Get opens an object at offset, for length bytes (-1: to the end), or as many as
	// there are. Info is that of the whole object. The body, which ends with ctx, ends
	// with an error if it breaks off.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error)

	// Head says what there is.
	Head(ctx context.Context, key string) (Info, error)

	// Put makes or replaces an object, which is seen whole or not at all. The content is
	// read from where it stands, label.Size bytes, perhaps more than once.
	Put(ctx context.Context, key string, content io.ReadSeeker, label Label) error

	// Create makes a small object if there is none, or else is ErrChanged.
	Create(ctx context.Context, key string, content []byte) (version string, err error)

	// Replace replaces the version of a small object, or is ErrChanged (which it also is
	// if there is none). Of several that come at once, one wins; but if the answer got
	// lost, an error may stand for what was done.
	Replace(ctx context.Context, key string, content []byte, version string) (newVersion string, err error)

	// Compose makes an object of others, end to end, without their bytes coming here if
	// the store can do that. All but the last have at least MinPart bytes.
	Compose(ctx context.Context, key string, parts []string, label Label) error

	// Delete removes an object, if it is there.
	Delete(ctx context.Context, key string) error

	// List goes through the objects whose keys begin with prefix, a path that ends in a
	// slash or "", in no order. Labels and versions are there if they cost nothing.
	List(ctx context.Context, prefix string) iter.Seq2[Item, error]

	// SignedURL is where a client without credentials gets an object for as long as
	// valid, or ErrUnsupported.
	SignedURL(ctx context.Context, key string, valid time.Duration) (string, error)

	// String is where the store is, without secrets.
	String() string

	// Close ends all that is still on its way.
	Close() error
}

// MinPart is the least size of a part but the last of Compose, as S3 has it.
const MinPart = 5 << 20

// Error is why a store has not done something.
type Error struct {
	Op   string // as in "get"
	Key  string
	Code string // the store's word for it, as in AccessDenied; "" if it had none
	Hint string // what an operator should look at; "" if that is not known
	Err  error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Op + " " + e.Key + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap is for errors.Is and As.
func (e *Error) Unwrap() error { return e.Err }
