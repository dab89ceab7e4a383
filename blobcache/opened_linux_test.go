package blobcache_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
	"larder/blobcache/memory"
)

// large is the size of a blob that is never in memory.
const large = 1 << 20

// left is a cache of a stored blob whose file is open, and read by nobody. It says
// which file that is.
func left(t *testing.T, dir string, cfg blobcache.Config) (*blobcache.Cache, *source, *os.File) {
	t.Helper()
	c, _ := running(t, dir, cfg)
	s := newSource(large)
	store(t, c, s, "", blobcache.Miss)
	store(t, c, s, "", blobcache.Hit) // a use that is written to disk: files are not dated by the test's clock
	b := get(t, c, s)
	file := b.File()
	wantBlob(t, b, s.data, blobcache.Hit)
	if n := c.Idle(); n != 1 {
		t.Fatalf("%d files are open that nobody reads, want 1", n)
	}
	return c, s, file
}

// wantClosed fails the test if a file of dir is open, by whatever name.
func wantClosed(t *testing.T, c *blobcache.Cache, dir string) {
	t.Helper()
	if n := c.Idle(); n != 0 {
		t.Errorf("%d files are open that nobody reads", n)
	}
	for _, path := range openFiles(t) {
		if strings.HasPrefix(path, dir+"/sha256/") {
			t.Errorf("%s is open", path)
		}
	}
}

// openFiles are the files that this process has open; " (deleted)" is behind what
// has no name any more.
func openFiles(t *testing.T) (paths []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil { // not the one that lists them
			paths = append(paths, path)
		}
	}
	return paths
}

func TestFileIsReadOnByTheNextReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, file := left(t, t.TempDir(), blobcache.Config{})
		for range 3 {
			b := get(t, c, s)
			if b.File() != file {
				t.Error("the file was opened again")
			}
			if n := c.Idle(); n != 0 {
				t.Errorf("a file that is read is to be had by others: %d", n)
			}
			if _, err := b.Content.Seek(-100, io.SeekEnd); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, s.data[large-100:]) {
				t.Errorf("at the end: read %d bytes, %v", len(got), err)
			}
			b.Content.Close()
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit) // from its start
		}
	})
}

func TestContentThatIsClosedReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, file := left(t, t.TempDir(), blobcache.Config{})
		b := get(t, c, s)
		for range 2 {
			if err := b.Content.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := c.Idle(); n != 1 {
			t.Errorf("closed twice, a file is there for %d readers", n)
		}
		next := get(t, c, s)
		if next.File() != file {
			t.Fatal("the file was opened again")
		}
		if n, err := b.Content.Read(make([]byte, 10)); n > 0 || err == nil {
			t.Errorf("read %d bytes of another reader's file", n)
		}
		if n, err := sendTo(b.Content, io.Discard, 10); n > 0 || err == nil {
			t.Errorf("sent %d bytes of another reader's file", n)
		}
		wantBlob(t, next, s.data, blobcache.Hit)
	})
}

func sendTo(content io.Reader, w io.Writer, n int64) (int64, error) {
	return content.(interface {
		SendTo(w io.Writer, n int64) (int64, error)
	}).SendTo(w, n)
}

func TestReadersOfOneBlobHaveTheirOwnPlaces(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(large)
	drain(t, c, s)
	waitIdle(t, c)
	var readers sync.WaitGroup
	for i := range 8 {
		readers.Go(func() {
			for j := range 200 {
				offset := int64(i*97_003+j*4099) % (large - 5000)
				b, err := c.Get(t.Context(), s.digest, s.fetch)
				if err != nil {
					t.Error(err)
					return
				}
				var sent bytes.Buffer
				_, seekErr := b.Content.Seek(offset, io.SeekStart)
				n, err := sendTo(b.Content, &sent, 2000)
				rest := make([]byte, 3000)
				_, readErr := io.ReadFull(b.Content, rest)
				b.Content.Close()
				if err := errors.Join(seekErr, err, readErr); err != nil || n != 2000 {
					t.Errorf("sent %d bytes, %v", n, err)
				}
				if !bytes.Equal(append(sent.Bytes(), rest...), s.data[offset:offset+5000]) {
					t.Error("got other bytes than are there")
				}
			}
		})
	}
	readers.Wait()
	if n := c.Idle(); n < 1 || n > 8 {
		t.Errorf("8 readers have left %d files", n)
	}
}

func TestOpenFileThatIsNoLongerTheBlobsIsNotUsed(t *testing.T) {
	changes := map[string]func(path string, data []byte) error{
		"removed": func(path string, _ []byte) error { return os.Remove(path) },
		"replaced": func(path string, data []byte) error {
			return errors.Join(os.WriteFile(path+"~", data, 0o600), os.Rename(path+"~", path))
		},
		"moved away":        func(path string, _ []byte) error { return os.Rename(path, path+"~") },
		"made a named pipe": func(path string, _ []byte) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
		"directory removed": func(path string, _ []byte) error { return os.RemoveAll(filepath.Dir(path)) },
	}
	maps.Copy(changes, damages)
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				c, s, file := left(t, dir, blobcache.Config{})
				path := blobPath(dir, s.digest)
				if err := change(path, s.data); err != nil {
					t.Fatal(err)
				}
				b := get(t, c, s)
				got, err := io.ReadAll(b.Content)
				b.Content.Close()
				if err == nil && !bytes.Equal(got, s.data) {
					t.Errorf("%v: all %d bytes of a wrong blob", b.Outcome, len(got))
				}
				if _, err := file.Stat(); !errors.Is(err, fs.ErrClosed) {
					t.Errorf("the file is still open: %v", err)
				}
				synctest.Wait()
				b = get(t, c, s)
				wantBlob(t, b, s.data, b.Outcome)
				synctest.Wait()
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.data) {
					t.Errorf("the file is not healed: %d bytes, %v", len(got), err)
				}
			})
		})
	}
}

func TestFilesAreClosedWhenTheirBlobGoes(t *testing.T) {
	tests := map[string]struct {
		cfg  blobcache.Config
		does func(t *testing.T, dir string, c *blobcache.Cache, s *source)
	}{
		"expired": {blobcache.Config{TTL: 3 * time.Second}, func(*testing.T, string, *blobcache.Cache, *source) {
			time.Sleep(5 * time.Second)
		}},
		"evicted": {keep(large), func(t *testing.T, _ string, c *blobcache.Cache, _ *source) {
			store(t, c, newSource(large-1), "", blobcache.Miss)
		}},
		"removed": {blobcache.Config{}, func(t *testing.T, _ string, c *blobcache.Cache, s *source) {
			if _, err := c.Remove(s.digest); err != nil {
				t.Error(err)
			}
		}},
		"in doubt": {blobcache.Config{}, func(_ *testing.T, _ string, c *blobcache.Cache, s *source) {
			c.Doubt(s.digest)
		}},
		"unused": {blobcache.Config{}, func(t *testing.T, dir string, _ *blobcache.Cache, s *source) {
			if err := os.Remove(blobPath(dir, s.digest)); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Second)
		}},
		"closed": {blobcache.Config{}, func(t *testing.T, _ string, c *blobcache.Cache, _ *source) {
			c.Close()
		}},
	}
	for name, test := range tests {
		for _, when := range []string{"idle", "read"} {
			if name == "unused" && when == "read" {
				continue
			}
			t.Run(name+" while "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dir := t.TempDir()
					c, s, _ := left(t, dir, test.cfg)
					var reader *blobcache.Blob
					if when == "read" {
						reader = get(t, c, s)
					}
					test.does(t, dir, c, s)
					synctest.Wait()
					if reader != nil {
						wantBlob(t, reader, s.data, blobcache.Hit) // it goes on
					}
					wantClosed(t, c, dir)
				})
			})
		}
	}
}

func TestFileThatIsAskedForStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, file := left(t, t.TempDir(), blobcache.Config{})
		other := newSource(large - 1)
		store(t, c, other, "", blobcache.Miss)
		store(t, c, other, "", blobcache.Hit)
		for range 5 {
			time.Sleep(6 * time.Second)
			b := get(t, c, s)
			if b.File() != file {
				t.Error("the file was opened again")
			}
			b.Content.Close()
		}
		if n := c.Idle(); n != 1 {
			t.Errorf("%d files are open, want that of the one blob that is asked for", n)
		}
	})
}

// A use is written to disk once in a while, which changes what a file looks like.
func TestFileStaysOpenWhenItsUseIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, s, file := left(t, dir, blobcache.Config{TTL: 20 * time.Second})
		before, err := os.Stat(blobPath(dir, s.digest))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		for range 3 {
			b := get(t, c, s)
			if !b.Stored() || b.File() != file {
				t.Error("the file was opened again, or verified")
			}
			wantBlob(t, b, s.data, blobcache.Hit)
		}
		if after, err := os.Stat(blobPath(dir, s.digest)); err != nil || after.ModTime().Equal(before.ModTime()) {
			t.Errorf("no use is recorded: %v", err)
		}
	})
}

// No new file can be opened, but for those that nobody reads.
func TestIdleFilesMakeWay(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	wanted := newSource(large)
	drain(t, c, wanted)
	for i := range 5 { // more than a path has directories
		s := newSource(large + 1 + i)
		drain(t, c, s)
		waitIdle(t, c)
		wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
	}
	exhaustFiles(t)
	b, err := c.Get(t.Context(), wanted.digest, noFetch(t))
	if err != nil {
		t.Fatal(err)
	}
	wantBlob(t, b, wanted.data, blobcache.Hit)
}

// exhaustFiles opens all files that this process may have open, of which it makes
// few, until the test ends.
func exhaustFiles(t *testing.T) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = 200
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
	}
}

func TestIdleFilesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{Memory: memory.New(1 << 20)})
		c.KeepIdle(3)
		var sources []*source
		for i := range 5 {
			s := newSource(large + i)
			sources = append(sources, s)
			store(t, c, s, "", blobcache.Miss)
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
		}
		var open []string
		for _, path := range openFiles(t) {
			if strings.HasPrefix(path, dir+"/sha256/") {
				open = append(open, path)
			}
		}
		if len(open) != 3 {
			t.Errorf("%d files are open, want 3", len(open))
		}
		for _, s := range sources[2:] { // those that were used last
			before := c.Idle()
			b := get(t, c, s)
			if c.Idle() != before-1 {
				t.Errorf("the blob of %d bytes was opened anew", len(s.data))
			}
			b.Content.Close()
		}
	})
}

func TestIdleFilesOfOneBlobAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := left(t, t.TempDir(), blobcache.Config{})
		var blobs []*blobcache.Blob
		for range 40 {
			blobs = append(blobs, get(t, c, s))
		}
		for _, b := range blobs {
			b.Content.Close()
		}
		if n := c.Idle(); n != 16 {
			t.Errorf("40 readers have left %d open files, want 16", n)
		}
	})
}
