package blobcache

import (
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

// ownerDir holds a file for each blob that counts against a quota: whose it is.
const ownerDir = "owners"

func ownerName(d digest.Digest) string {
	return path.Join(ownerDir, flatName(d))
}

// recordOwner writes down whose the blob is, for after a restart.
func (c *Cache) recordOwner(d digest.Digest, a *account) {
	err := c.root.MkdirAll(ownerDir, 0o700)
	if err == nil {
		err = c.root.WriteFile(ownerName(d), []byte(a.owner), 0o600)
	}
	if err != nil {
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
	files, err := fs.ReadDir(c.root.FS(), ownerDir)
	if err != nil { // there is none, or it is junk: then the blobs are nobody's
		return accounts
	}
	for _, de := range files {
		d, ok := parseFlatName(de.Name())
		if !ok || !de.Type().IsRegular() {
			continue
		}
		if owner, err := c.root.ReadFile(path.Join(ownerDir, de.Name())); err == nil {
			accounts[d] = c.account(string(owner)) // nil if its quota is gone
		}
	}
	return accounts
}
