package watched_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"larder/auth/watched"
)

// TestManyReadersOfAChangedFile is for the race detector as well.
func TestManyReadersOfAChangedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		reads := 0 // by one at a time, or the race detector says so
		write := func(content string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("old")
		f, err := watched.Open("file", zap.NewNop(), func() (string, error) {
			reads++
			content, err := os.ReadFile(path)
			return string(content), err
		}, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, content := range []string{"longer", "and longer"} {
			write(content)
			time.Sleep(watched.Interval)
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() { f.Get() })
			}
			wg.Wait()
			if got := f.Get(); got != content {
				t.Errorf("got %q, want %q", got, content)
			}
		}
		if reads != 3 {
			t.Errorf("read %d times, want once and for each change", reads)
		}
	})
}

func TestOpenFailsWithTheReadersError(t *testing.T) {
	bad := errors.New("bad")
	if _, err := watched.Open("file", zap.NewNop(), func() (int, error) { return 0, bad }, "/none"); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
}
