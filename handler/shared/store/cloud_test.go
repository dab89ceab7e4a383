//go:build gs || azblob

package store_test

import (
	"context"
	"testing"

	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestCloudConforms(t *testing.T) {
	memory := memblob.OpenBucket(nil)
	dial := func(context.Context) (*blob.Bucket, error) { return memory, nil }
	a, b := store.OpenBlob(dial, "a/prefix/"), store.OpenBlob(dial, "a/prefix/")
	storetest.Conform(t, a, b, "replace", "one replacer wins")
	if _, err := a.Replace(t.Context(), "key", nil, "version"); err != store.ErrUnsupported {
		t.Errorf("Replace: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
