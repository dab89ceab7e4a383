package handler

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"larder/handler/errcode"
)

// serveContent is http.ServeContent, but that a range which can't be had is an
// OCI error, and that a HEAD, or a unit that is not known, has no range (RFC
// 9110, section 14.2).
func serveContent(w http.ResponseWriter, r *http.Request, content io.ReadSeeker, size int64) error {
	if rng := r.Header.Get("Range"); rng != "" {
		conditional := r.Header.Get("If-Range") != "" || r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != ""
		switch {
		case r.Method == http.MethodHead, !strings.HasPrefix(rng, "bytes="):
			r = r.Clone(r.Context())
			r.Header.Del("Range")
		case !conditional && !satisfiable(rng, size):
			return &errcode.Error{
				Status: http.StatusRequestedRangeNotSatisfiable, Code: errcode.Unsupported, Message: "no such range",
				Header: http.Header{"Content-Range": {"bytes */" + strconv.FormatInt(size, 10)}},
			}
		}
	}
	http.ServeContent(w, r, "", time.Time{}, content)
	return nil
}

// firstRange is where a request for a blob begins and how much it wants from
// there (-1: all): what has to be fetched first. It is a guess where that depends
// on the blob's size, and of a list it is the first.
func firstRange(r *http.Request) (offset, length int64) {
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || r.Header.Get("If-Range") != "" {
		return 0, -1
	}
	spec, _, _ = strings.Cut(spec, ",")
	from, to, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if ok && from == "" {
		return 0, 1 // from the end: any byte tells where that is
	}
	first, err := strconv.ParseUint(from, 10, 62)
	if !ok || err != nil {
		return 0, -1
	}
	last, err := strconv.ParseUint(to, 10, 62)
	if err != nil || last < first {
		return int64(first), -1
	}
	return int64(first), int64(last-first) + 1
}

// satisfiable reports whether some of the bytes that a Range header asks for
// are there. It takes a suffix of no bytes for what it is (RFC 9110, section
// 14.1.2), which http.ServeContent answers with a 206. Lists of ranges are left
// to that.
func satisfiable(rng string, size int64) bool {
	spec, ok := strings.CutPrefix(rng, "bytes=")
	if !ok {
		return false
	}
	if strings.Contains(spec, ",") {
		return true
	}
	from, to, ok := strings.Cut(spec, "-")
	first, err := strconv.ParseUint(strings.TrimSpace(from), 10, 63)
	last, err2 := strconv.ParseUint(strings.TrimSpace(to), 10, 63)
	switch {
	case !ok:
		return false
	case from == "":
		return err2 == nil && last > 0 && size > 0
	case to != "" && (err2 != nil || last < first):
		return false
	default:
		return err == nil && (first < uint64(size) || size == 0) // all of an empty blob is nothing
	}
}
