package blobcache

import (
	"os"
	"syscall"
)

// diskSpace is the size of the file system that dir is on, and what is free of
// it for us, in bytes.
func diskSpace(dir *os.File) (total, free int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstatfs", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
