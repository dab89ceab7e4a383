package blobcache

import (
	"io/fs"
	"syscall"
)

// stamp tells whether a file is still what it was: any write to it, any change
// of its times and any other file in its place change it. The zero stamp is no
// file's.
type stamp struct {
	inode      uint64
	size       int64
	sec, nanos int64 // of the last change of content or attributes
}

func stampOf(fi fs.FileInfo) stamp {
	st := fi.Sys().(*syscall.Stat_t)
	return stamp{inode: st.Ino, size: fi.Size(), sec: int64(st.Ctim.Sec), nanos: int64(st.Ctim.Nsec)}
}
