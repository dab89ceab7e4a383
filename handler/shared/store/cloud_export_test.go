//go:build gs || azblob

package store

import (
	"context"

	"gocloud.dev/blob"
)

// OpenBlob returns the store in what dial returns.
func OpenBlob(dial func(ctx context.Context) (*blob.Bucket, error), prefix string) Store {
	return &cloud{name: "test://" + prefix, dial: dial, prefix: prefix}
}
