//go:build !linux

package blobcache

import "io/fs"

// stamp tells whether a file is still what it was, as far as size and time of
// modification can tell.
type stamp struct{ size, nanos int64 }

func stampOf(fi fs.FileInfo) stamp {
	return stamp{size: fi.Size(), nanos: fi.ModTime().UnixNano()}
}
