package shared

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"larder/handler/shared/store"
)

const (
	// leftover is how old a part or a lease is that nobody needs any more.
	leftover = time.Hour

	// pruneRate is how many objects a second are removed at most.
	pruneRate = 200

	// pagePatience is how long a store may take for a page of a listing.
	pagePatience = time.Minute
)

// Pruned is what a prune has removed, or would, by kind: blobs, manifests, rights,
// tags, parts, leases.
type Pruned map[string]Removed

// Removed are objects that are gone.
type Removed struct{ Objects, Bytes int64 }

// Prune removes what was last written before the given time (zero: nothing), by the
// store's clock, and what is left of blobs that were fetched long ago. Unless really,
// it only says what that is. What it has removed before an error is said as well.
func (t *Tier) Prune(ctx context.Context, before time.Time, really bool) (Pruned, error) {
	pruned, pace := make(Pruned), rate.NewLimiter(pruneRate, 1)
	if really {
		defer t.known.forget()
	}
	for _, prefix := range []string{blobsPrefix, manifestsPrefix, repositoriesPrefix, partsPrefix, leasesPrefix} {
		err := t.list(ctx, prefix, func(item store.Item) error {
			kind, due := kindOf(item.Key), before
			if prefix == partsPrefix || prefix == leasesPrefix {
				due = time.Now().Add(-leftover)
			}
			if !item.Modified.Before(due) {
				return nil
			}
			if really {
				if err := pace.Wait(ctx); err != nil {
					return err
				}
				if err := t.remove(ctx, item.Key); err != nil {
					return err
				}
			}
			sum := pruned[kind]
			pruned[kind] = Removed{sum.Objects + 1, sum.Bytes + item.Size}
			return nil
		})
		if err != nil {
			return pruned, err
		}
	}
	return pruned, nil
}

// list goes through the objects whose keys begin with prefix, until one of them can't
// be dealt with.
func (t *Tier) list(ctx context.Context, prefix string, each func(store.Item) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var stopped error
	err := t.ask(ctx, "list", 0, func(ctx context.Context) error {
		late := time.AfterFunc(pagePatience, func() { cancel(errSlow) })
		defer late.Stop()
		for item, err := range t.store.List(ctx, prefix) {
			if err != nil {
				return err
			}
			late.Stop()
			if stopped = each(item); stopped != nil {
				return nil
			}
			late.Reset(pagePatience)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return stopped
}
