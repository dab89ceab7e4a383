// Package errcode is the error vocabulary of the OCI distribution spec, and the
// one place where an error answer is written.
package errcode

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
)

// Code is an error code of the OCI distribution spec, section "Error codes", or
// of Docker's registry API where that has more.
type Code string

// The codes that larder answers with.
const (
	BlobUnknown     Code = "BLOB_UNKNOWN"
	Denied          Code = "DENIED"
	DigestInvalid   Code = "DIGEST_INVALID"
	ManifestInvalid Code = "MANIFEST_INVALID"
	ManifestUnknown Code = "MANIFEST_UNKNOWN"
	NameInvalid     Code = "NAME_INVALID"
	NameUnknown     Code = "NAME_UNKNOWN"
	TagInvalid      Code = "TAG_INVALID"
	TooManyRequests Code = "TOOMANYREQUESTS"
	Unauthorized    Code = "UNAUTHORIZED"
	Unavailable     Code = "UNAVAILABLE"
	Unknown         Code = "UNKNOWN"
	Unsupported     Code = "UNSUPPORTED"
)

// Error is an answer that is an error.
type Error struct {
	Status  int
	Code    Code
	Message string      // for the client: no URL, no secret
	Header  http.Header // sent along
	Err     error       // for the log only
}

// Error returns what the log needs.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns what the client is not told.
func (e *Error) Unwrap() error { return e.Err }

type document struct {
	Errors []detail `json:"errors"`
}

type detail struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Write answers r with e: headers, length, status, and a JSON body unless r is
// a HEAD.
func Write(w http.ResponseWriter, r *http.Request, e *Error) {
	body, err := json.Marshal(document{Errors: []detail{{Code: e.Code, Message: e.Message}}})
	if err != nil {
		panic(err) // two strings
	}
	body = append(body, '\n') // for who reads it on a terminal
	h := w.Header()
	for _, stale := range []string{"ETag", "Docker-Content-Digest", "Cache-Status", "Warning", "Content-Range", "Accept-Ranges"} {
		h.Del(stale)
	}
	maps.Copy(h, e.Header)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that has left needs no error
	}
}
