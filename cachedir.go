package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/gofrs/flock"

	"larder/blobcache/durable"
)

// layout is the content of the version file of a cache directory that this
// larder can use.
const layout = "larder 1\n"

// maxVersion bounds what is read of such a file.
const maxVersion = 4 << 10

// cacheDir is the cache directory, held by this process alone.
type cacheDir struct {
	root  *os.Root
	locks []*flock.Flock
}

// openCacheDir makes or takes the directory. One that is not empty and not
// larder's is left untouched.
func openCacheDir(path string) (*cacheDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cache directory (LARDER_CACHE_DIR): %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("cache directory (LARDER_CACHE_DIR): %w", err)
	}
	dir := &cacheDir{root: root}
	if err := dir.take(path); err != nil {
		dir.close()
		return nil, fmt.Errorf("cache directory %s (LARDER_CACHE_DIR): %w", path, err)
	}
	return dir, nil
}

func (d *cacheDir) take(path string) error {
	version, _, err := durable.ReadFile(d.root, "version", maxVersion)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.checkEmpty(); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(version) != layout:
		return fmt.Errorf("was made by another version of larder (%q); use another directory, or empty this one", strings.TrimSpace(string(version)))
	}
	if err := d.lock(path); err != nil {
		return err
	}
	if version == nil {
		return durable.WriteFile(d.root, "version", []byte(layout))
	}
	return nil
}

// lock keeps others away for the life of the process. A lock file can be removed
// meanwhile, so the directory itself is locked too, where its file system can
// do that.
func (d *cacheDir) lock(path string) error {
	flag := os.O_CREATE | os.O_RDONLY | syscall.O_NONBLOCK // a named pipe would be waited for
	file := flock.New(filepath.Join(path, "lock"), flock.SetFlag(flag), flock.SetPermissions(0o600))
	dir := flock.New(path, flock.SetFlag(os.O_RDONLY))
	for _, l := range []*flock.Flock{file, dir} {
		ok, err := l.TryLock()
		switch {
		case err != nil && l == file:
			return err
		case err == nil && !ok:
			return errors.New("another larder is using it")
		}
		d.locks = append(d.locks, l)
	}
	return nil
}

// checkEmpty refuses a directory in which somebody else keeps something. What
// larder itself makes first may be there, from a start that was cut short.
func (d *cacheDir) checkEmpty() error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case "lock", durable.Temp, "lost+found":
		default:
			return fmt.Errorf("is not larder's: it has no file called version, but %s; use an empty one", e.Name())
		}
	}
	return nil
}

// sub opens a directory in the cache directory, making it if need be.
func (d *cacheDir) sub(name string) (*os.Root, error) {
	if err := d.root.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("cache directory (LARDER_CACHE_DIR): %w", err)
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("cache directory (LARDER_CACHE_DIR): %w", err)
	}
	return root, nil
}

// usable reports why the directory can't be used now, if it can't.
func (d *cacheDir) usable() error {
	if _, err := d.root.Stat("version"); err != nil {
		return fmt.Errorf("cache directory: %w", err)
	}
	return nil
}

func (d *cacheDir) close() error {
	err := d.root.Close()
	for _, l := range d.locks {
		err = errors.Join(err, l.Close())
	}
	return err
}
