//go:build !linux

package blobcache

import "io/fs"

// openLimit is not known here. Then no file is kept open.
func openLimit() int { return 0 }

// unlinked can't be told here.
func unlinked(fs.FileInfo) bool { return true }
