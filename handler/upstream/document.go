package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// errDocument says that an answer is not what was asked for, whatever its status: a
// login page, say, or a document that is two things at once.
var errDocument = errors.New("answer is not the document that was asked for")

const (
	// maxMediaType is what RFC 6838 allows.
	maxMediaType = 255

	// signedManifest is Docker's schema 1 with signatures. Its digest is that of
	// what was signed.
	signedManifest = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// DocumentType is the media type of a manifest: what upstream says it is, or what
// the document says of itself if upstream says nothing. What a client does with
// a manifest depends on the type, which no digest covers: a document that
// contradicts it, or that has the marks of an image and of an index, is refused
// (CVE-2021-41190). Types that are not known pass, and need not be JSON.
func DocumentType(contentType string, body []byte) (string, error) {
	mediaType := mediaType(contentType)
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
	}
	err := json.Unmarshal(body, &doc)
	if contentType == "" && doc.MediaType != "" {
		mediaType = doc.MediaType
	}
	switch {
	case len(mediaType) > maxMediaType:
		return "", fmt.Errorf("%w: its media type is too long", errDocument)
	case err != nil && isOther(mediaType, body):
		return mediaType, nil
	case err != nil:
		return "", fmt.Errorf("%w: not a JSON object", errDocument)
	case strings.HasPrefix(mediaType, "text/"):
		return "", fmt.Errorf("%w: it is text", errDocument)
	case doc.MediaType != "" && doc.MediaType != mediaType:
		return "", fmt.Errorf("%w: it says of itself that it is of another media type", errDocument)
	case doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil):
		return "", fmt.Errorf("%w: it is an index and an image", errDocument)
	}
	return mediaType, nil
}

// isOther reports whether a document that is not JSON was not meant to be: a
// vendor has a type for it, as for no page of somebody in between, and nobody will
// read the beginning of it as an object.
func isOther(mediaType string, body []byte) bool {
	isJSON := strings.HasSuffix(mediaType, "json") || strings.HasSuffix(mediaType, "jws")
	return strings.HasPrefix(mediaType, "application/vnd.") && !isJSON && !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{"))
}
