// Package durable makes files that are wholly there after a crash or not at all.
//
// A good commit makes these system calls, in this order:
//
//	fsync(f)               the bytes are on the disk
//	rename(tmp, name)      the name is theirs
//
// The directory is not synced. A crash may therefore lose the name, which
// costs a cache one miss; it can't leave the name over wrong or missing bytes,
// which would poison it. A disk that lies about fsync still can: readers that
// must not be fooled have to check what they read.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// Temp is the directory in which WriteFile prepares files, under names that end
// with Unfinished. What a crash leaves of these is worthless; see Clean.
const (
	Temp       = "tmp"
	Unfinished = "~"
)

// ErrNotFile says that what has the name of a file is something else.
var ErrNotFile = errors.New("not a regular file")

const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Open opens the regular file name to be read. Whatever else has the name is
// ErrNotFile and never waited for, as a named pipe would have to be.
func Open(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	return open(root, name, os.O_RDONLY)
}

func open(root *os.Root, name string, flag int) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, flag|syscall.O_NONBLOCK, fileMode) // which means nothing to a regular file
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, ErrNotFile)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// ReadFile reads the regular file name. One of more than limit bytes is
// ErrNotFile too.
func ReadFile(root *os.Root, name string, limit int64) ([]byte, fs.FileInfo, error) {
	f, fi, err := Open(root, name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if fi.Size() > limit {
		return nil, nil, fmt.Errorf("%s of %d bytes: %w", name, fi.Size(), ErrNotFile)
	}
	data := make([]byte, fi.Size())
	if n, err := f.ReadAt(data, 0); n < len(data) {
		return nil, nil, err
	}
	return data, fi, nil
}

// OpenTemp opens the regular file name, which has to be in Temp, to be read and
// written, making it if there is none. Temp is for such files alone: it is made
// again if it is gone, and what else has the name is removed.
func OpenTemp(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	fi, err := root.Lstat(name)
	switch {
	case err == nil && !fi.Mode().IsRegular(): // a link would be followed
		err = root.RemoveAll(name)
	case err != nil:
		err = MakeTemp(root)
	}
	if err != nil {
		return nil, nil, err
	}
	return open(root, name, os.O_RDWR|os.O_CREATE)
}

// CreateTemp makes the file name, which has to be in Temp, in place of whatever has
// the name.
func CreateTemp(root *os.Root, name string) (*os.File, error) {
	const flag = os.O_RDWR | os.O_CREATE | os.O_EXCL // a link is not followed
	f, err := root.OpenFile(name, flag, fileMode)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = MakeTemp(root)
	case errors.Is(err, fs.ErrExist):
		err = root.RemoveAll(name)
	default:
		return f, err
	}
	if err != nil {
		return nil, err
	}
	return root.OpenFile(name, flag, fileMode)
}

// MakeTemp makes Temp if it is not there, and removes what is there instead.
func MakeTemp(root *os.Root) error {
	if fi, err := root.Lstat(Temp); err == nil && !fi.IsDir() { // a link would lead elsewhere
		if err := root.Remove(Temp); err != nil {
			return err
		}
	}
	return root.MkdirAll(Temp, dirMode)
}

// Commit makes f, which was written as tmp, durable and visible as name,
// replacing what had that name before. It makes missing parent directories. f
// stays open; on an error tmp is left where it was.
func Commit(root *os.Root, f *os.File, tmp, name string) error {
	err := f.Sync()
	if err == nil {
		err = rename(root, tmp, name)
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", name, err)
	}
	return nil
}

// CommitSoon is Commit without waiting for the disk, for what can be checked or
// done without: after a power failure, name may hold anything.
func CommitSoon(root *os.Root, tmp, name string) error {
	if err := rename(root, tmp, name); err != nil {
		return fmt.Errorf("commit %s: %w", name, err)
	}
	return nil
}

// rename makes tmp visible as name, whatever has that name and whether or not
// there is a directory for it. One that was made may be gone again at once, if
// somebody removes those that are empty.
func rename(root *os.Root, tmp, name string) (err error) {
	for range 5 {
		if err = root.Rename(tmp, name); err == nil {
			return nil
		}
		if fi, statErr := root.Lstat(name); statErr == nil && fi.IsDir() {
			err = root.RemoveAll(name)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = root.MkdirAll(path.Dir(name), dirMode)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) { // which are of that race
			return err
		}
	}
	return root.Rename(tmp, name)
}

// WriteFile makes name hold data, durably, by way of a file in Temp: whoever
// reads name at any time finds the old content or the new.
func WriteFile(root *os.Root, name string, data []byte) error {
	return write(root, name, data, Commit)
}

// WriteSoon is to WriteFile what CommitSoon is to Commit.
func WriteSoon(root *os.Root, name string, data []byte) error {
	return write(root, name, data, func(root *os.Root, _ *os.File, tmp, name string) error {
		return CommitSoon(root, tmp, name)
	})
}

func write(root *os.Root, name string, data []byte, commit func(root *os.Root, f *os.File, tmp, name string) error) (err error) {
	tmp := path.Join(Temp, rand.Text()+Unfinished)
	f, err := CreateTemp(root, tmp)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = root.Remove(tmp) // gone already if it was renamed
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return commit(root, f, tmp, name)
}

// Kind names what is wrong with the disk, for those who count: the system's name
// of the error, of those that an operator can do something about, or "other".
func Kind(err error) string {
	for errno, name := range map[syscall.Errno]string{
		syscall.ENOSPC: "ENOSPC", syscall.EDQUOT: "EDQUOT", syscall.EROFS: "EROFS",
		syscall.EIO: "EIO", syscall.EACCES: "EACCES", syscall.EMFILE: "EMFILE",
	} {
		if errors.Is(err, errno) {
			return name
		}
	}
	return "other"
}

// Clean removes what unfinished calls of WriteFile have left in Temp. It must
// not run beside them.
func Clean(root *os.Root) error {
	if err := root.RemoveAll(Temp); err != nil {
		return fmt.Errorf("clean %s: %w", Temp, err)
	}
	return nil
}
