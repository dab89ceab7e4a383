//go:build azblob

package store

import (
	"net/url"

	_ "gocloud.dev/blob/azureblob" // knows azblob://
)

func openAzure(u *url.URL) (Store, error) {
	return openCloud(u, "storage_account", "domain", "protocol", "cdn", "localemu")
}
