//go:build !linux

package doctor

import "errors"

// fileSystem is how much there is of one, and how much of that is free for us.
type fileSystem struct {
	total, free        int64
	inodes, freeInodes uint64
}

// statfs does not know here.
func statfs(string) (fileSystem, error) { return fileSystem{}, errors.ErrUnsupported }
