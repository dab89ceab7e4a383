package doctor

import (
	"os"
	"syscall"
)

// fileSystem is how much there is of one, and how much of that is free for us.
type fileSystem struct {
	total, free        int64  // bytes
	inodes, freeInodes uint64 // 0: it does not count them
}

func statfs(dir string) (fileSystem, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fileSystem{}, os.NewSyscallError("statfs", err)
	}
	return fileSystem{int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, st.Files, st.Ffree}, nil
}
