package shared

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// urlValid is how long a client may take to begin with what it was sent to.
	urlValid = 15 * time.Minute

	// knownFor is how long a blob is believed to be in the tier after it was seen there:
	// what is removed from the tier is not told to anybody.
	knownFor = time.Minute
)

// URL is where a client gets a blob of the repository that is complete in the tier, from
// the store itself. The client has to verify it. It is asked for no longer than the tier
// may cost a request.
func (t *Tier) URL(ctx context.Context, repository string, d digest.Digest) (url string, ok bool) {
	if !t.covers(repository) {
		return "", false
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Timeout, errSlow)
	defer cancel()
	if !t.known.lately(d, knownFor) {
		if _, ok := t.complete(ctx, d); !ok {
			return "", false
		}
	}
	err := t.ask(ctx, "sign", t.limit(0), func(ctx context.Context) (err error) {
		url, err = t.store.SignedURL(ctx, blobKey(d), urlValid)
		return err
	})
	return url, err == nil
}

// Size is how large a blob of the repository is that is complete in the tier. It is
// asked for no longer than the tier may cost a request.
func (t *Tier) Size(ctx context.Context, repository string, d digest.Digest) (size int64, ok bool) {
	if !t.covers(repository) {
		return 0, false
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Timeout, errSlow)
	defer cancel()
	return t.complete(ctx, d)
}

// complete reports whether the tier has all of a blob, as far as can be seen without
// reading it.
func (t *Tier) complete(ctx context.Context, d digest.Digest) (size int64, ok bool) {
	f := &fill{tier: t, digest: d, size: -1}
	info, err := t.head(ctx, blobKey(d))
	if err != nil || !f.isGood(info) || info.Digest != d { // a fill would find out what it is, a client just fails
		return 0, false
	}
	t.known.add(d, info.Version)
	return info.Size, true
}
