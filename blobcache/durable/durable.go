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

// Temp is the directory in which WriteFile prepares files. What a crash leaves
// there is worthless; see Clean.
const Temp = "tmp"

const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Commit makes f, which was written as tmp, durable and visible as name,
// replacing what had that name before. It makes missing parent directories. f
// stays open; on an error tmp is left where it was.
func Commit(root *os.Root, f *os.File, tmp, name string) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("commit %s: %w", name, err)
	}
	err := root.Rename(tmp, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(path.Dir(name), dirMode); err != nil {
			return fmt.Errorf("commit %s: %w", name, err)
		}
		err = root.Rename(tmp, name)
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", name, err)
	}
	return nil
}

// WriteFile makes name hold data, durably, by way of a file in Temp: whoever
// reads name at any time finds the old content or the new.
func WriteFile(root *os.Root, name string, data []byte) (err error) {
	tmp := path.Join(Temp, rand.Text())
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(Temp, dirMode); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		f, err = root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	}
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
	return Commit(root, f, tmp, name)
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
