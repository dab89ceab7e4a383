package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
)

const (
	small = 4 << 10
	large = 16 << 20

	// slowDisk, in bytes a second, is where the disk begins to hold up pulls from
	// registries that are not slow themselves.
	slowDisk = 20 << 20

	// fewInodes is what a pull of a few images may take, with much to spare.
	fewInodes = 10_000
)

// disk looks at the cache directory.
func (cfg Config) disk(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	dir, made := existing(cfg.CacheDir)
	checks := []Check{permissions(cfg.CacheDir, dir, made)}
	if checks[0].Status == Failed {
		return checks
	}
	checks = append(checks, cfg.space(dir))
	for _, check := range []func() Check{func() Check { return speed(dir) }, func() Check { return content(ctx, cfg.CacheDir) }} {
		done := make(chan Check, 1)
		go func() { done <- check() }() // ends when the disk lets it; nobody can end it sooner
		select {
		case c := <-done:
			checks = append(checks, c)
		case <-ctx.Done():
			return append(checks, Check{
				Name: "cache disk", Status: Failed, Detail: fmt.Sprintf("no answer from %s in %v", dir, checkTimeout),
				Do: "Look at the disk (dmesg) or the server of the network file system, or put LARDER_CACHE_DIR elsewhere.",
			})
		}
	}
	return checks
}

// existing is a directory, or the first above it that there is: larder makes the
// rest when it starts.
func existing(dir string) (_ string, made bool) {
	for first := dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir, dir == first
		}
	}
}

// permissions tries whether a file can be made. Nothing of it is left, however this
// ends: it has no name any more when it is used.
func permissions(cacheDir, dir string, made bool) Check {
	c := Check{Name: "cache directory", Status: OK, Detail: cacheDir + " can be written"}
	f, err := scratch(dir)
	if err != nil {
		c.Status, c.Detail = Failed, err.Error()
		c.Do = fmt.Sprintf("Let the user that larder runs as (%d) write there (chown, or a mount that is not read-only), or set LARDER_CACHE_DIR to a directory where it can.", os.Geteuid())
		return c
	}
	f.Close()
	if !made {
		c.Detail = cacheDir + " is not there yet; larder can make it in " + dir
		return c
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		c.Status, c.Detail = Warning, fmt.Sprintf("%s is open to other users (%v)", cacheDir, info.Mode().Perm())
		c.Do = "Keep what may be private images to larder: chmod 700 " + cacheDir
	}
	return c
}

// scratch is a file without a name.
func scratch(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".larder-doctor-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// space is what is left of the file system.
func (cfg Config) space(dir string) Check {
	c := Check{Name: "cache space", Status: OK}
	s, err := statfs(dir)
	if err != nil {
		c.Status, c.Detail = Skipped, err.Error()
		return c
	}
	minFree := cfg.MinFree.Of(s.total)
	c.Detail = fmt.Sprintf("%s of %s are free; LARDER_MIN_FREE keeps %s for others", human(s.free), human(s.total), human(minFree))
	switch {
	case s.free <= minFree:
		c.Status, c.Do = Failed, "Make room on that file system, or lower LARDER_MIN_FREE: now larder keeps nothing without removing something else."
	case s.inodes > 0 && s.freeInodes < fewInodes:
		c.Status, c.Do = Warning, "Make room for more files on that file system: when none can be made, larder keeps nothing."
	}
	if s.inodes > 0 {
		c.Detail += fmt.Sprintf("; %d of %d inodes are free", s.freeInodes, s.inodes)
	}
	return c
}

// speed writes as larder does: and a write that is not on the disk is none.
func speed(dir string) Check {
	c := Check{Name: "cache disk", Status: OK}
	for _, file := range []struct {
		name string
		size int
	}{{"write 4 KiB", small}, {"write 16 MiB", large}} {
		began := time.Now()
		if err := write(dir, file.size); err != nil {
			c.Status, c.Detail = Failed, err.Error()
			c.Do = "Make room on that file system, or look at the disk (dmesg): larder passes on what it can't write, without keeping it."
			return c
		}
		took := time.Since(began)
		c.Steps = append(c.Steps, step(file.name, took))
		if file.size < large {
			continue
		}
		rate := float64(large) / took.Seconds()
		c.Detail = fmt.Sprintf("%s writes %s/s, with fsync", dir, human(int64(rate)))
		if rate < slowDisk {
			c.Status, c.Do = Warning, "Put LARDER_CACHE_DIR on a faster disk: this one is slower than most registries."
		}
	}
	return c
}

func write(dir string, length int) error {
	f, err := scratch(dir)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, length))
	return errors.Join(err, f.Sync(), f.Close())
}

// content counts what is kept. Files' times are those of their last use.
func content(ctx context.Context, cacheDir string) Check {
	c := Check{Name: "cache content", Status: OK}
	var files, bytes int64
	var oldest time.Time
	for _, part := range []string{"blobs/sha256", "blobs/sha512", "manifests/sha256", "manifests/sha512"} {
		err := filepath.WalkDir(filepath.Join(cacheDir, filepath.FromSlash(part)), func(_ string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // what expires meanwhile is none of it
				return nil
			}
			if err != nil || entry.IsDir() {
				return errors.Join(err, ctx.Err())
			}
			info, err := entry.Info()
			if err != nil {
				return nil // as above
			}
			files++
			bytes += info.Size()
			if oldest.IsZero() || info.ModTime().Before(oldest) {
				oldest = info.ModTime()
			}
			return nil
		})
		if err != nil {
			c.Status, c.Detail = Warning, err.Error()
			c.Do = "Let the user that larder runs as read all of LARDER_CACHE_DIR (chown -R), or empty it while larder is stopped."
			return c
		}
	}
	if c.Detail = "nothing is kept yet"; files > 0 {
		c.Detail = fmt.Sprintf("%d files, %s; the oldest was last used %s ago", files, human(bytes), strings.ToLower(units.HumanDuration(time.Since(oldest))))
	}
	return c
}

func human(bytes int64) string { return units.BytesSize(float64(bytes)) }
