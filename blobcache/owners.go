package blobcache

import (
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
)

// ownerDir holds a file for each blob that counts against a quota: whose it is.
const ownerDir = "owners"

// maxOwner bounds what is read of such a file.
const maxOwner = 4 << 10

func ownerName(d digest.Digest) string {
	return path.Join(ownerDir, flatName(d))
}

// recordOwner writes down whose the blob is, for after a restart.
func (c *Cache) recordOwner(d digest.Digest, a *account) {
	if err := durable.WriteSoon(c.root, ownerName(d), []byte(a.owner)); err != nil {
		c.complain("owner of a blob not recorded; it counts against no quota after a restart", err)
	}
}

// removeOwner removes what recordOwner has written, if it has.
func (c *Cache) removeOwner(d digest.Digest, a *account) {
	if a == nil {
		return
	}
	if err := remove(c.root, ownerName(d)); err != nil {
		c.log.Warn("owner of a blob not removed", zap.Stringer("digest", d), zap.Error(err))
	}
}

// readOwners reads whose the blobs on disk are, if that makes a difference.
func (c *Cache) readOwners() map[digest.Digest]*account {
	accounts := make(map[digest.Digest]*account)
	if fi, err := c.root.Lstat(ownerDir); err != nil || !fi.IsDir() { // there is none, or it is junk
		return accounts // then the blobs are nobody's
	}
	files, _ := fs.ReadDir(c.root.FS(), ownerDir)
	for _, de := range files {
		d, ok := parseFlatName(de.Name())
		if !ok || !de.Type().IsRegular() {
			continue
		}
		if owner, _, err := durable.ReadFile(c.root, path.Join(ownerDir, de.Name()), maxOwner); err == nil {
			accounts[d] = c.account(string(owner)) // nil if its quota is gone
		}
	}
	return accounts
}
