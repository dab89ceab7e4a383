package store

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"larder/blobcache/durable"
)

// Where things are in the directory of a file store: objects by key, and locks; what
// is being written is in durable.Temp.
const (
	objectsDir = "objects"
	locksDir   = "locks"
)

var errRoot = errors.New("the directory can't be opened")

// files is a Store in a directory, which may be on a file server that several machines
// have mounted. It asks of that server what NFS gives:
//
//   - rename(2) replaces a file at once, so that an object is whole or not there;
//   - link(2) fails if the name is taken, so that one of those that create wins;
//   - flock(2), which Linux makes a lock at the server, is let go when its process or
//     machine dies, so that one of those that replace wins. Where locks are kept on each
//     machine alone (NFS 3 mounted with nolock), two machines may win.
//
// Names that a machine has not found it may not find again for as long as it caches
// that; see lookupcache and actimeo in nfs(5). All that happens in the directory
// happens while it is waited for no longer than the context says; see pending.
type files struct {
	dir     string
	pending *pending

	mu   sync.Mutex // guards root
	root *os.Root   // nil: to be opened
}

func openFiles(u *url.URL) (Store, error) {
	dir, err := parseFile(u)
	if err != nil {
		return nil, err
	}
	return &files{dir: dir, pending: newPending()}, nil
}

// String implements Store.
func (f *files) String() string { return "file://" + f.dir }

// Close implements Store.
func (f *files) Close() error {
	err := f.pending.close()
	f.mu.Lock()
	root := f.root
	f.root = nil
	f.mu.Unlock()
	if root != nil {
		err = errors.Join(err, root.Close())
	}
	return err
}

// open returns the directory, which may be mounted only later or anew.
func (f *files) open() (*os.Root, error) {
	f.mu.Lock()
	root := f.root
	f.mu.Unlock()
	if root != nil {
		return root, nil
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, &Error{Code: durable.Kind(err), Hint: "the directory has to be there, mounted and this user's", Err: errors.Join(errRoot, errors.New(err.Error()))}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root != nil {
		root.Close()
	} else {
		f.root = root
	}
	return f.root, nil
}

// forget has the directory opened again.
func (f *files) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root != nil {
		f.root.Close()
		f.root = nil
	}
}

// inDirectory calls something that may take long with the directory, and makes its
// error what a Store returns.
func inDirectory[T any](ctx context.Context, f *files, op, key string, call func(root *os.Root) (T, error)) (T, error) {
	value, err := await(ctx, f.pending, func() (T, error) {
		root, err := f.open()
		if err != nil {
			var none T
			return none, err
		}
		return call(root)
	})
	return value, f.failed(op, key, err)
}

// failed makes err what a Store returns.
func (f *files) failed(op, key string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Op: op, Key: key, Code: e.Code, Hint: e.Hint, Err: e.Err}
	}
	for _, is := range []error{nil, ErrNotExist, ErrChanged, ErrUnsupported, ErrRange} {
		if err == is {
			return is
		}
	}
	if errors.Is(err, syscall.ESTALE) {
		f.forget()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotExist
	}
	code := durable.Kind(err)
	hints := map[string]string{
		"ENOSPC": "the file system is full", "EDQUOT": "the quota is used up", "EROFS": "the file system is read-only",
		"EACCES": "all machines have to use the directory as the same user",
	}
	return &Error{Op: op, Key: key, Code: code, Hint: hints[code], Err: err}
}

// objectName is the file of an object.
func objectName(key string) string { return path.Join(objectsDir, key) }

// find opens an object. What else has the name is none.
func find(root *os.Root, key string) (*os.File, Info, error) {
	file, fi, err := durable.Open(root, objectName(key))
	switch {
	case errors.Is(err, durable.ErrNotFile), errors.Is(err, syscall.ENOTDIR):
		return nil, Info{}, ErrNotExist
	case err != nil:
		return nil, Info{}, err
	}
	info, err := readInfo(file, fi)
	if err != nil {
		file.Close()
		return nil, Info{}, err
	}
	return file, info, nil
}

// found is an object that has been opened.
type found struct {
	*os.File
	info Info
}

// Get implements Store.
func (f *files) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error) {
	if err := cmp.Or(CheckKey(key), CheckRange(offset, length)); err != nil {
		return nil, Info{}, &Error{Op: "get", Key: key, Err: err}
	}
	o, err := inDirectory(ctx, f, "get", key, func(root *os.Root) (found, error) {
		file, info, err := find(root, key)
		return found{file, info}, err
	})
	if err != nil {
		return nil, Info{}, err
	}
	end := o.info.Size
	if offset >= end && (offset > 0 || length > 0) {
		o.Close()
		return nil, Info{}, ErrRange
	}
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	return &fileBody{ctx: ctx, files: f, key: key, file: o.File, at: offset, end: end}, o.info, nil
}

// Head implements Store.
func (f *files) Head(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, &Error{Op: "head", Key: key, Err: err}
	}
	return inDirectory(ctx, f, "head", key, func(root *os.Root) (Info, error) {
		file, info, err := find(root, key)
		if err == nil {
			file.Close()
		}
		return info, err
	})
}

// SignedURL implements Store.
func (f *files) SignedURL(context.Context, string, time.Duration) (string, error) {
	return "", ErrUnsupported
}

// fileBody is the content of an object, read in pieces.
type fileBody struct {
	ctx     context.Context // that of Get
	files   *files
	key     string
	file    *os.File
	at, end int64

	piece  []byte // not touched any more after an error: it may still be written to
	unread []byte // of piece
	err    error
}

const pieceSize = 256 << 10

// Read implements io.Reader.
func (b *fileBody) Read(p []byte) (int, error) {
	if len(b.unread) == 0 && b.err == nil {
		b.unread, b.err = b.next()
	}
	if len(b.unread) == 0 {
		return 0, b.err
	}
	n := copy(p, b.unread)
	b.unread = b.unread[n:]
	return n, nil
}

func (b *fileBody) next() ([]byte, error) {
	if b.at == b.end {
		return nil, io.EOF
	}
	size := min(pieceSize, b.end-b.at)
	if b.piece == nil {
		b.piece = make([]byte, size)
	}
	n, err := await(b.ctx, b.files.pending, func() (int, error) { return b.file.ReadAt(b.piece[:size], b.at) })
	if err == nil || int64(n) == size {
		b.at += int64(n)
		return b.piece[:n], nil
	}
	if err == io.EOF { // it was cut off meanwhile
		err = io.ErrUnexpectedEOF
	}
	return nil, b.files.failed("get", b.key, err)
}

// Close implements io.Closer.
func (b *fileBody) Close() error { return b.file.Close() }
