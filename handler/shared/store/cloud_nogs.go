//go:build !gs

package store

import (
	"errors"
	"net/url"
)

func openGS(*url.URL) (Store, error) {
	return nil, errors.New("gs:// is only in a larder that was built with -tags gs")
}
