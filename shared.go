package main

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"larder/handler/admin"
	"larder/handler/shared"
	"larder/handler/shared/store"
)

// openStore is the fleet's store. Nobody is contacted.
func (c *config) openStore() (store.Store, error) {
	return store.Open(c.Shared, store.Credentials{AccessKey: c.SharedAccessKey, SecretKey: c.SharedSecretKey})
}

// openShared makes what is shared with other larders, if anything is.
func (p *program) openShared(metrics *admin.Metrics) error {
	if p.cfg.Shared == "" {
		return nil
	}
	s, err := p.cfg.openStore()
	if err != nil {
		return err
	}
	cfg := shared.Config{
		Store: s, Timeout: p.cfg.SharedTimeout, Wait: p.cfg.SharedWait, Rate: int64(p.cfg.SharedRate),
		TagTTL: p.cfg.TagTTL, ManifestTTL: p.cfg.ManifestTTL, Open: p.followBlob,
		Name: p.upstreams.Name(), Logger: p.log.Named("shared"), Observe: metrics.Shared,
	}
	if p.cfg.shared != nil {
		cfg.Covers = p.cfg.shared.Match
	}
	p.shared = shared.New(cfg)
	return nil
}

// followBlob opens a blob that is here or on its way, for others to have.
func (p *program) followBlob(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	blob, err := p.blobs.Follow(ctx, d)
	if err == nil && blob == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, err
	}
	return blob.Content, blob.Size, nil
}

// runShared writes to the store until ctx is done.
func (p *program) runShared(ctx context.Context) {
	if err := p.shared.Run(ctx); err != nil && !errors.Is(err, context.Cause(ctx)) {
		p.log.Error("nothing is written to the shared store any more")
	}
}
