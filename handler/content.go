package handler

import (
	"io"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
)

// contentHeader describes content by its digest.
func contentHeader(header http.Header, mediaType string, d digest.Digest) {
	values := []string{mediaType, d.String(), `"` + d.String() + `"`, "nosniff"} // one allocation for all
	for i, name := range []string{"Content-Type", "Docker-Content-Digest", "Etag", "X-Content-Type-Options"} {
		header[name] = values[i : i+1 : i+1]
	}
}

// serveContent is http.ServeContent, but that the Range is larder's to read: one
// that can't be had is an OCI error, a list may have empty elements, a unit may
// be BYTES, and a HEAD has none (RFC 9110, section 14).
func serveContent(w http.ResponseWriter, r *http.Request, content io.ReadSeeker, size int64) error {
	if !conditional(r) {
		if part, partial, ok := onePart(r, size); ok {
			if partial {
				w.Header()["Content-Range"] = []string{contentRange(part, size)}
			}
			return sendPart(w, r, content, part, partial)
		}
	}
	if r.Header["Range"] == nil {
		http.ServeContent(w, r, "", time.Time{}, content)
		return nil
	}
	ranges, err := parseRange(r)
	if err == nil && ranges != nil && size > 0 {
		if ranges = resolve(ranges, size); ranges == nil {
			err = errNoSuchRange
		}
	}
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	switch {
	case err != nil && wantsRange(w.Header(), r):
		return &errcode.Error{
			Status: http.StatusRequestedRangeNotSatisfiable, Code: errcode.Unsupported, Message: err.Error(),
			Header: http.Header{"Content-Range": {"bytes */" + strconv.FormatInt(size, 10)}},
		}
	case err == nil && ranges != nil && size > 0: // of nothing all is sent, which is nothing
		r.Header.Set("Range", formatRange(ranges))
	}
	http.ServeContent(w, r, "", time.Time{}, content)
	return nil
}

// conditional reports whether it depends on what the client has what it gets (RFC
// 9110, section 13.1).
func conditional(r *http.Request) bool {
	for _, name := range []string{"If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"} {
		if r.Header[name] != nil {
			return true
		}
	}
	return false
}

// onePart is what nearly all requests are for: all of something of this size, or one
// range of it that is there, which makes it partial.
func onePart(r *http.Request, size int64) (part byteRange, partial, ok bool) {
	all := byteRange{first: 0, last: size - 1}
	if r.Header["Range"] == nil {
		return all, false, true
	}
	ranges, err := parseRange(r)
	switch {
	case err != nil, len(ranges) > 1:
		return part, false, false
	case ranges == nil, size == 0: // of nothing all is sent, which is nothing
		return all, false, true
	}
	there := resolve(ranges, size)
	if there == nil || there[0].first > there[0].last {
		return part, false, false
	}
	return there[0], true, true
}

func contentRange(part byteRange, size int64) string {
	var buf [64]byte
	b := strconv.AppendInt(append(buf[:0], "bytes "...), part.first, 10)
	b = strconv.AppendInt(append(b, '-'), part.last, 10)
	b = strconv.AppendInt(append(b, '/'), size, 10)
	return string(b)
}

// sendPart is what http.ServeContent does in the end, at a tenth of the cost.
func sendPart(w http.ResponseWriter, r *http.Request, content io.ReadSeeker, part byteRange, partial bool) error {
	if _, err := content.Seek(part.first, io.SeekStart); err != nil {
		return err
	}
	length, status, header := part.last-part.first+1, http.StatusOK, w.Header()
	values := []string{"bytes", strconv.FormatInt(length, 10)}
	header["Accept-Ranges"], header["Content-Length"] = values[:1:1], values[1:]
	if partial {
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.CopyN(w, content, length) // what is missing is seen by the middleware
	}
	return nil
}

// wantsRange reports whether the request's conditions let its range count: it
// is neither 304 nor 412 whatever the range, and not all that is wanted (RFC
// 9110, section 13.2.2). net/http knows, and is asked with a range that is there.
func wantsRange(header http.Header, r *http.Request) bool {
	probe := r.Clone(r.Context())
	probe.Method = http.MethodHead
	probe.Header.Set("Range", "bytes=0-0")
	w := &statusWriter{header: maps.Clone(header)}
	http.ServeContent(w, probe, "", time.Time{}, io.NewSectionReader(nil, 0, 1))
	return w.status == http.StatusPartialContent
}

// statusWriter keeps an answer's status and nothing else.
type statusWriter struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (w *statusWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) { w.status = status }

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) { return len(p), nil }

// firstRange is where a request for a blob begins and how much it wants from
// there (-1: all): what has to be fetched first. It is a guess where that depends
// on the blob's size, and of a list it is the first.
func firstRange(r *http.Request) (offset, length int64) {
	ranges, err := parseRange(r)
	if err != nil || ranges == nil || r.Header.Get("If-Range") != "" {
		return 0, -1
	}
	switch first := ranges[0]; {
	case first.suffix:
		return 0, 1 // from the end: any byte tells where that is
	case first.last == endless:
		return first.first, -1
	default:
		return first.first, first.last - first.first + 1
	}
}
