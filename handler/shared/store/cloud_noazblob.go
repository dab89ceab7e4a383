//go:build !azblob

package store

import (
	"errors"
	"net/url"
)

func openAzure(*url.URL) (Store, error) {
	return nil, errors.New("azblob:// is only in a larder that was built with -tags azblob")
}
