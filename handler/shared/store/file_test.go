package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/store"
)

// openDir returns the store in a directory of its own.
func openDir(t *testing.T) (s store.Store, dir string) {
	t.Helper()
	dir = t.TempDir()
	return open(t, "file://"+dir, store.Credentials{}), dir
}

func putString(t *testing.T, s store.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content), store.Label{Digest: digest.FromString(content), Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
}

func getString(t *testing.T, s store.Store, key string) (string, store.Info) {
	t.Helper()
	body, info, err := s.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatalf("Get %s: %v", key, err)
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("Get %s: %v", key, err)
	}
	return string(content), info
}

// tree are the files below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestFileDamaged shows that what was cut off or overwritten in the directory is not
// said to be what was put there.
func TestFileDamaged(t *testing.T) {
	content := strings.Repeat("content", 100)
	tests := map[string]func(whole []byte) []byte{
		"cut off":         func(whole []byte) []byte { return whole[:len(whole)/2] },
		"without its end": func(whole []byte) []byte { return whole[:len(whole)-1] },
		"longer":          func(whole []byte) []byte { return append(whole, 'x') },
		"middle missing":  func(whole []byte) []byte { return slices.Delete(whole, 100, 110) },
		"by hand":         func([]byte) []byte { return []byte("by hand") },
		"empty":           func([]byte) []byte { return nil },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			s, dir := openDir(t)
			putString(t, s, "a/b", content)
			file := filepath.Join(dir, "objects/a/b")
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			damaged := damage(whole)
			if err := os.WriteFile(file, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			got, info := getString(t, s, "a/b")
			if got != string(damaged) || info.Size != int64(len(damaged)) || info.Length != -1 || info.Digest != "" || info.Version == "" {
				t.Errorf("got %d bytes of %d, %+v", len(got), len(damaged), info)
			}
			putString(t, s, "a/b", "new")
			if got, info := getString(t, s, "a/b"); got != "new" || info.Length != 3 {
				t.Errorf("after it was put again: %q, %+v", got, info)
			}
		})
	}
}

// TestFileCutOffWhileItIsRead shows that less than was promised never looks like all.
func TestFileCutOffWhileItIsRead(t *testing.T) {
	s, dir := openDir(t)
	putString(t, s, "key", strings.Repeat("x", 1<<20))
	body, _, err := s.Get(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "objects/key"), 700_000); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ended with %v", err)
	}
}

// TestFileReadWhileItIsReplaced shows that a reader keeps the object that it opened.
func TestFileReadWhileItIsReplaced(t *testing.T) {
	s, _ := openDir(t)
	before := strings.Repeat("before", 100_000)
	putString(t, s, "key", before)
	body, _, err := s.Get(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	putString(t, s, "key", "after")
	if got, err := io.ReadAll(body); err != nil || string(got) != before {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// TestFileLeavesNothing shows that what fails, and what is deleted, is gone with the
// directories that it needed.
func TestFileLeavesNothing(t *testing.T) {
	s, dir := openDir(t)
	putString(t, s, "parts/sha256/ab/1", "one")
	putString(t, s, "parts/sha256/ab/2", "two")
	if err := s.Put(t.Context(), "short", strings.NewReader("x"), store.Label{Size: 2}); err == nil {
		t.Error("a short content was taken")
	}
	if _, err := s.Create(t.Context(), "parts/sha256/ab/1", nil); err != store.ErrChanged {
		t.Errorf("Create: %v", err)
	}
	if err := s.Compose(t.Context(), "whole", []string{"parts/sha256/ab/1", "absent"}, store.Label{}); err != store.ErrNotExist {
		t.Errorf("Compose: %v", err)
	}
	for _, key := range []string{"parts/sha256/ab/1", "parts/sha256/ab/2"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	for _, file := range tree(t, dir) {
		if !strings.HasPrefix(file, "locks/") {
			t.Errorf("%s is left", file)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "objects")); err != nil || len(entries) > 0 {
		t.Errorf("in objects: %v, %v", entries, err)
	}
}

// TestFileRemovesLeftovers shows that a listing removes what a writer that was killed
// has left, and nothing that may still be written.
func TestFileRemovesLeftovers(t *testing.T) {
	s, dir := openDir(t)
	putString(t, s, "key", "content")
	for name, age := range map[string]time.Duration{"old~": 25 * time.Hour, "young~": 23 * time.Hour, "new~": 0} {
		file := filepath.Join(dir, "tmp", name)
		if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(file, then, then); err != nil {
			t.Fatal(err)
		}
	}
	listed := 0
	for item, err := range s.List(t.Context(), "") {
		if listed++; err != nil || item.Key != "key" || item.Digest != digest.FromString("content") || item.Length != 7 {
			t.Errorf("listed %+v, %v", item, err)
		}
	}
	if listed != 1 {
		t.Errorf("%d objects", listed)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(entries) != 2 {
		t.Errorf("in tmp: %v, %v", entries, err)
	}
}

// TestFileStaysInside shows that links do not lead out, and that only files are objects.
func TestFileStaysInside(t *testing.T) {
	s, dir := openDir(t)
	putString(t, s, "a/key", "content")
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	objects := filepath.Join(dir, "objects")
	for name, target := range map[string]string{"link": secret, "directory": outside} {
		if err := os.Symlink(target, filepath.Join(objects, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Head(t.Context(), "a"); err != store.ErrNotExist {
		t.Errorf("Head of a directory: %v", err)
	}
	for _, key := range []string{"link", "directory/secret"} {
		if _, _, err := s.Get(t.Context(), key, 0, -1); err == nil {
			t.Errorf("Get %s: opened", key)
		}
	}
	if err := s.Put(t.Context(), "directory/new", strings.NewReader("x"), store.Label{Size: 1}); err == nil {
		t.Error("Put through a link")
	}
	if err := s.Put(t.Context(), "a", strings.NewReader("x"), store.Label{Size: 1}); err == nil {
		t.Error("Put in place of a directory")
	}
	putString(t, s, "link", "in place of the link")
	if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
		t.Errorf("outside: %q, %v", got, err)
	}
	for item, err := range s.List(t.Context(), "") {
		if err != nil || item.Key != "a/key" && item.Key != "link" {
			t.Errorf("listed %+v, %v", item, err)
		}
	}
	if got, _ := getString(t, s, "a/key"); got != "content" {
		t.Errorf("got %q", got)
	}
	if files := tree(t, outside); !slices.Equal(files, []string{"secret"}) {
		t.Errorf("outside: %v", files)
	}
}

// TestFileDirectoryThatIsNotThere shows that it is not made, as it may be mounted
// later, and is used then.
func TestFileDirectoryThatIsNotThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mounted", "later")
	s := open(t, "file://"+dir, store.Credentials{})
	_, err := s.Head(t.Context(), "key")
	if e, ok := errors.AsType[*store.Error](err); !ok || errors.Is(err, fs.ErrNotExist) || !strings.Contains(e.Hint, "mounted") {
		t.Errorf("Head: %v", err)
	}
	if err := s.Put(t.Context(), "key", strings.NewReader("x"), store.Label{Size: 1}); err == nil {
		t.Error("Put made the directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	putString(t, s, "key", "content")
	if got, _ := getString(t, s, "key"); got != "content" {
		t.Errorf("got %q", got)
	}
}

// TestFileLockOfAProcessThatWasKilled shows that another process which holds the locks
// is waited for, and that its death lets them go.
func TestFileLockOfAProcessThatWasKilled(t *testing.T) {
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Skip("flock is not installed")
	}
	s, dir := openDir(t)
	version, err := s.Create(t.Context(), "key", []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	if version, err = s.Replace(t.Context(), "key", []byte("second"), version); err != nil {
		t.Fatal(err)
	}
	locks := tree(t, filepath.Join(dir, "locks"))
	if len(locks) != 1 {
		t.Fatalf("locks: %v", locks)
	}
	holder := exec.CommandContext(t.Context(), flock, "--no-fork", filepath.Join(dir, "locks", locks[0]), "sh", "-c", "echo held; exec sleep 60")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Replace(ctx, "key", []byte("third"), version); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Replace under another's lock: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // killed
	if _, err := s.Replace(t.Context(), "key", []byte("third"), version); err != nil {
		t.Error(err)
	}
}

func TestFileComposesWithoutReading(t *testing.T) {
	s, _ := openDir(t)
	part := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	parts := []string{"parts/0", "parts/1", "parts/2", "parts/3"}
	for _, key := range parts {
		putString(t, s, key, string(part))
	}
	whole := bytes.Repeat(part, len(parts))
	label := store.Label{Digest: digest.FromBytes(whole), Size: int64(len(whole))}
	if err := s.Compose(t.Context(), "whole", parts, label); err != nil {
		t.Fatal(err)
	}
	if got, info := getString(t, s, "whole"); got != string(whole) || info.Digest != label.Digest {
		t.Errorf("got %d bytes, %+v", len(got), info)
	}
}
