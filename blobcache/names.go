package blobcache

import (
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// partialDir holds the files of fills, under names that blobName can't make.
const partialDir = "tmp"

// blobName is the name of the file with the blob d, which must be valid.
func blobName(d digest.Digest) string {
	hex := d.Encoded()
	return path.Join(string(d.Algorithm()), hex[:2], hex)
}

// partialName is the name of the file that is filled with the blob d.
func partialName(d digest.Digest) string {
	return path.Join(partialDir, string(d.Algorithm())+"-"+d.Encoded())
}

// extentsSuffix is what the name of a partial file's extents ends with.
const extentsSuffix = ".extents"

// parseBlobName is the opposite of blobName; ok is false for anything else.
func parseBlobName(name string) (d digest.Digest, ok bool) {
	dir, hex := path.Split(name)
	algorithm, _, _ := strings.Cut(dir, "/")
	return validDigest(algorithm+":"+hex, func(d digest.Digest) bool { return blobName(d) == name })
}

// parsePartialName is the opposite of partialName; ok is false for anything else.
func parsePartialName(name string) (d digest.Digest, ok bool) {
	s := strings.Replace(path.Base(name), "-", ":", 1)
	return validDigest(s, func(d digest.Digest) bool { return partialName(d) == name })
}

func validDigest(s string, same func(digest.Digest) bool) (digest.Digest, bool) {
	d, err := digest.Parse(s)
	if err != nil || !same(d) {
		return "", false
	}
	return d, true
}
