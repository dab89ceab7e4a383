package blobcache

import (
	"io/fs"
	"syscall"
)

// openLimit is how many files this process may have open.
func openLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Cur, 1<<20))
}

// unlinked reports whether the file of fi has no name any more.
func unlinked(fi fs.FileInfo) bool { return fi.Sys().(*syscall.Stat_t).Nlink == 0 }
