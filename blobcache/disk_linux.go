package blobcache

import (
	"os"
	"syscall"
)

// diskSpace is the size of the file system that root is on, and what is free of
// it for us, in bytes.
func diskSpace(root *os.Root) (total, free int64, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstatfs", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
