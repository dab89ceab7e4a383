//go:build !gs && !azblob

package store_test

import (
	"strings"
	"testing"

	"larder/handler/shared/store"
)

func TestOpenSaysWhichBuildHasIt(t *testing.T) {
	for _, tag := range []string{"gs", "azblob"} {
		_, err := store.Open(tag+"://bucket/prefix", store.Credentials{})
		if err == nil || !strings.Contains(err.Error(), "-tags "+tag) {
			t.Errorf("%s: %v", tag, err)
		}
	}
}
