package blobcache

import (
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/durable"
)

// partialDir holds the files of fills, under names that blobName can't make.
const partialDir = durable.Temp

// blobName is the name of the file with the blob d, which must be valid.
func blobName(d digest.Digest) string {
	hex := d.Encoded()
	return path.Join(string(d.Algorithm()), hex[:2], hex)
}

// partialName is the name of the file that is filled with the blob d.
func partialName(d digest.Digest) string {
	return path.Join(partialDir, flatName(d))
}

// flatName is the digest as the name of a file.
func flatName(d digest.Digest) string { return string(d.Algorithm()) + "-" + d.Encoded() }

// extentsSuffix is what the name of a partial file's extents ends with.
const extentsSuffix = ".extents"

// parseBlobName is the opposite of blobName; ok is false for anything else.
func parseBlobName(name string) (d digest.Digest, ok bool) {
	dir, hex := path.Split(name)
	algorithm, _, _ := strings.Cut(dir, "/")
	return validDigest(algorithm+":"+hex, func(d digest.Digest) bool { return blobName(d) == name })
}

// parseFlatName is the opposite of flatName; ok is false for anything else.
func parseFlatName(name string) (d digest.Digest, ok bool) {
	return validDigest(strings.Replace(name, "-", ":", 1), func(d digest.Digest) bool { return flatName(d) == name })
}

func validDigest(s string, same func(digest.Digest) bool) (digest.Digest, bool) {
	d, err := digest.Parse(s)
	if err != nil || !same(d) {
		return "", false
	}
	return d, true
}
