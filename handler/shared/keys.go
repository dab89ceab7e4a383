package shared

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What is in a tier. All names are made here, of valid digests or of hashes.
const (
	versionKey         = "version"
	blobsPrefix        = "blobs/"
	partsPrefix        = "parts/"
	manifestsPrefix    = "manifests/"
	repositoriesPrefix = "repositories/"
	leasesPrefix       = "leases/"
)

// content is what is in the object version of every tier that this larder knows.
const content = "larder 1\n"

// blobKey is where the bytes of the blob d are.
func blobKey(d digest.Digest) string { return blobsPrefix + digestPath(d) }

// partKey is where the part of the given number is of a blob that is on its way.
func partKey(d digest.Digest, number int64) string {
	return partsPrefix + digestPath(d) + fmt.Sprintf("/%08d", number)
}

// manifestKey is where the manifest d is, with its media type.
func manifestKey(d digest.Digest) string { return manifestsPrefix + digestPath(d) }

// rightKey is where it says that the repository has the manifest d.
func rightKey(repository string, d digest.Digest) string {
	return repositoriesPrefix + hash(repository) + "/rights/" + d.Algorithm().String() + "-" + d.Encoded()
}

// tagKey is where it says what the tag points at.
func tagKey(repository, tag string) string {
	return repositoriesPrefix + hash(repository) + "/tags/" + hash(tag)
}

// leaseKey is where it says who has leased what.
func leaseKey(what string) string { return leasesPrefix + hash(what) }

func digestPath(d digest.Digest) string {
	return d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded()
}

func hash(s string) string { return digest.SHA256.FromString(s).Encoded() }

// kindOf is what an object is, by its key: the first element, or for what is kept of
// repositories "rights" or "tags".
func kindOf(key string) string {
	elements := strings.Split(key, "/")
	if elements[0]+"/" == repositoriesPrefix && len(elements) == 4 {
		return elements[2]
	}
	return elements[0]
}
