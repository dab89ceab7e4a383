package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"larder/blobcache/durable"
)

const (
	// placeTries is how often in a row others may remove a directory before something
	// is in it: what is far more than they do is no such race.
	placeTries = 100

	lockAgain = 5 * time.Millisecond
)

// Put implements Store.
func (f *files) Put(ctx context.Context, key string, content io.ReadSeeker, label Label) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: "put", Key: key, Err: err}
	}
	start, err := content.Seek(0, io.SeekCurrent)
	if err != nil {
		return f.failed("put", key, err)
	}
	src, err := newSource(ctx, content, start, label.Size)
	if err != nil {
		return f.failed("put", key, err)
	}
	defer src.stop()
	return f.write(ctx, "put", key, label, func(_ *os.Root, file *os.File) (int64, error) {
		return io.CopyBuffer(struct{ io.Writer }{file}, src, make([]byte, pieceSize))
	})
}

// Compose implements Store.
func (f *files) Compose(ctx context.Context, key string, parts []string, label Label) error {
	if err := CheckParts(key, parts); err != nil {
		return &Error{Op: "compose", Key: key, Err: err}
	}
	return f.write(ctx, "compose", key, label, func(root *os.Root, file *os.File) (size int64, err error) {
		for _, part := range parts {
			n, err := appendObject(ctx, root, file, part)
			if err != nil {
				return 0, err
			}
			size += n
		}
		return size, nil
	})
}

// appendObject writes the content of an object to file, without its bytes coming here
// if the file system can copy them.
func appendObject(ctx context.Context, root *os.Root, file *os.File, key string) (int64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	from, info, err := find(root, key)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	n, err := io.Copy(file, io.LimitReader(from, info.Size)) // copy_file_range
	if err == nil && n < info.Size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// write makes or replaces an object of what fill writes.
func (f *files) write(ctx context.Context, op, key string, label Label, fill func(root *os.Root, file *os.File) (size int64, err error)) error {
	_, err := inDirectory(ctx, f, op, key, func(root *os.Root) (struct{}, error) {
		tmp, _, err := prepare(root, label, fill)
		if err != nil {
			return struct{}{}, err
		}
		defer root.Remove(tmp) // unless it was renamed
		err = locked(ctx, root, key, func() error { return place(root, key, tmp, root.Rename) })
		if err == ErrUnsupported { // then there is no Replace that it could meet
			err = place(root, key, tmp, root.Rename)
		}
		return struct{}{}, err
	})
	return err
}

// Create implements Store.
func (f *files) Create(ctx context.Context, key string, content []byte) (version string, err error) {
	return f.change(ctx, "create", key, content, func(root *os.Root, tmp string) error {
		err := place(root, key, tmp, root.Link)
		if errors.Is(err, fs.ErrExist) && !linked(root, tmp) {
			return ErrChanged
		}
		if errors.Is(err, syscall.EPERM) || errors.Is(err, errors.ErrUnsupported) { // vfat has no links
			return ErrUnsupported
		}
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	})
}

// linked reports whether tmp has another name: the answer that it has been given one
// may get lost on the way from a file server, which then says that the name is taken.
func linked(root *os.Root, tmp string) bool {
	fi, err := root.Lstat(tmp)
	if err != nil {
		return false
	}
	stat, ok := fi.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink > 1
}

// Replace implements Store.
func (f *files) Replace(ctx context.Context, key string, content []byte, version string) (newVersion string, err error) {
	return f.change(ctx, "replace", key, content, func(root *os.Root, tmp string) error {
		return locked(ctx, root, key, func() error {
			file, info, err := find(root, key)
			if errors.Is(err, fs.ErrNotExist) || err == ErrNotExist {
				return ErrChanged
			}
			if err != nil {
				return err
			}
			file.Close()
			if info.Version != version {
				return ErrChanged
			}
			return place(root, key, tmp, root.Rename)
		})
	})
}

// change writes a small object, for name to give it its name.
func (f *files) change(ctx context.Context, op, key string, content []byte, name func(root *os.Root, tmp string) error) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", &Error{Op: op, Key: key, Err: err}
	}
	content = bytes.Clone(content) // the call may outlive this one
	return inDirectory(ctx, f, op, key, func(root *os.Root) (string, error) {
		tmp, version, err := prepare(root, Label{Size: -1}, func(_ *os.Root, file *os.File) (int64, error) {
			n, err := file.Write(content)
			return int64(n), err
		})
		if err != nil {
			return "", err
		}
		defer root.Remove(tmp)
		if err := name(root, tmp); err != nil {
			return "", err
		}
		return version, nil
	})
}

// Delete implements Store. Directories that are empty then go as well.
func (f *files) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: "delete", Key: key, Err: err}
	}
	_, err := inDirectory(ctx, f, "delete", key, func(root *os.Root) (struct{}, error) {
		remove := func() error { return root.Remove(objectName(key)) }
		err := locked(ctx, root, key, remove)
		if err == ErrUnsupported {
			err = remove()
		}
		if err == nil {
			for dir := path.Dir(objectName(key)); dir != objectsDir && root.Remove(dir) == nil; dir = path.Dir(dir) {
			}
		}
		return struct{}{}, err
	})
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// prepare writes what fill writes to a file without a name that anybody knows.
func prepare(root *os.Root, label Label, fill func(root *os.Root, file *os.File) (size int64, err error)) (tmp, version string, err error) {
	tmp, version = path.Join(durable.Temp, rand.Text()+durable.Unfinished), rand.Text()
	file, err := durable.CreateTemp(root, tmp)
	if err != nil {
		return "", "", err
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if err != nil {
			_ = root.Remove(tmp) // or it is found by removeLeftovers
		}
	}()
	size, err := fill(root, file)
	if err == nil {
		_, err = file.Write(trailer(size, version, label))
	}
	if err == nil {
		err = file.Sync()
	}
	return tmp, version, err
}

// place gives tmp the name of an object, making directories that are missing; one that
// was made may be gone again at once, if somebody removes those that are empty.
func place(root *os.Root, key, tmp string, name func(from, to string) error) (err error) {
	for range placeTries {
		if err = name(tmp, objectName(key)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Both of these are of that race.
		if err := root.MkdirAll(path.Dir(objectName(key)), 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return err
}

// locked calls change while nobody else, here or on another machine, changes an object
// that is there, or one of those that share its lock.
func locked(ctx context.Context, root *os.Root, key string, change func() error) error {
	sum := sha256.Sum256([]byte(key))
	name := path.Join(locksDir, fmt.Sprintf("%02x", sum[0])) // never removed: that would let two have it
	file, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(locksDir, 0o700); err != nil {
			return err
		}
		file, err = root.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	defer file.Close() // which unlocks
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return change()
		case errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS):
			return ErrUnsupported
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return fmt.Errorf("lock: %w", err)
		}
		select {
		case <-time.After(lockAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
