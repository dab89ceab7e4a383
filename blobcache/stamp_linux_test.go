package blobcache

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// statted is a file of which only what the kernel says counts.
type statted struct {
	fs.FileInfo
	stat syscall.Stat_t
}

func (s statted) Size() int64 { return s.stat.Size }
func (s statted) Sys() any    { return &s.stat }

func TestStampTellsFilesApart(t *testing.T) {
	was := syscall.Stat_t{Ino: 1, Size: 2, Ctim: syscall.Timespec{Sec: 3, Nsec: 4}}
	for name, change := range map[string]func(*syscall.Stat_t){
		"another file":         func(s *syscall.Stat_t) { s.Ino++ },
		"another size":         func(s *syscall.Stat_t) { s.Size++ },
		"a second later":       func(s *syscall.Stat_t) { s.Ctim.Sec++ },
		"a nanosecond earlier": func(s *syscall.Stat_t) { s.Ctim.Nsec-- },
	} {
		is := was
		if stampOf(statted{stat: was}) != stampOf(statted{stat: is}) {
			t.Fatal("the same file has two stamps")
		}
		if change(&is); stampOf(statted{stat: was}) == stampOf(statted{stat: is}) {
			t.Errorf("%s: the same stamp", name)
		}
	}
}

func TestUnlinkedFileIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, want := range []bool{false, true} {
		if fi, err := f.Stat(); err != nil || unlinked(fi) != want {
			t.Errorf("unlinked: %v, %v; want %v", !want, err, want)
		}
		_ = os.Remove(path)
	}
}
