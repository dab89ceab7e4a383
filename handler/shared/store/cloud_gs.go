//go:build gs

package store

import (
	"net/url"

	_ "gocloud.dev/blob/gcsblob" // knows gs://
)

func openGS(u *url.URL) (Store, error) { return openCloud(u) }
