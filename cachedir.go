package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"

	"larder/blobcache/durable"
)

// layout is the content of the version file of a cache directory that this
// larder can use.
const layout = "larder 1\n"

// cacheDir is the cache directory, held by this process alone.
type cacheDir struct {
	root *os.Root
	lock *flock.Flock
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
	version, err := d.root.ReadFile("version")
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
	d.lock = flock.New(filepath.Join(path, "lock"), flock.SetPermissions(0o600))
	ok, err := d.lock.TryLock()
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("another larder is using it")
	}
	if version == nil {
		return durable.WriteFile(d.root, "version", []byte(layout))
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
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}
