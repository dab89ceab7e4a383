package upstream

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// placeBody makes sure that body, of res, gives the bytes from offset, and ends
// with the part that was asked for. All of a blob is taken for a part at its
// start. size is that of the whole blob (-1: not known).
func placeBody(body io.Reader, res *http.Response, offset, length int64) (_ io.Reader, size int64, err error) {
	switch res.StatusCode {
	case http.StatusPartialContent:
		first, last, total, ok := parseContentRange(res.Header.Get("Content-Range"))
		if !ok || first != offset || (length >= 0 && last >= offset+length) ||
			(res.ContentLength >= 0 && res.ContentLength != last-first+1) {
			return nil, 0, fmt.Errorf("%w: wanted it from %d, got %q", ErrNoRange, offset, res.Header.Get("Content-Range"))
		}
		return io.LimitReader(body, last-first+1), total, nil
	case http.StatusRequestedRangeNotSatisfiable:
		_, _, total, ok := parseContentRange(res.Header.Get("Content-Range"))
		if !ok || total < 0 || offset < total {
			return nil, 0, fmt.Errorf("%w: wanted it from %d, got none", ErrNoRange, offset)
		}
		return strings.NewReader(""), total, nil // nothing there is just what is at the end
	}
	if offset > 0 {
		return nil, 0, fmt.Errorf("%w: wanted it from %d, got all", ErrNoRange, offset)
	}
	return body, res.ContentLength, nil
}

// parseContentRange reads "bytes 0-99/1234", with "*" for a total that is not
// known (-1) or for a range that there is none of. RFC 9110, section 14.4.
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, isBytes := strings.CutPrefix(s, "bytes ")
	rng, size, cut := strings.Cut(s, "/")
	if !isBytes || !cut {
		return 0, 0, 0, false
	}
	if total = -1; size != "*" {
		if total, ok = parseNumber(size); !ok {
			return 0, 0, 0, false
		}
	}
	if rng == "*" {
		return 0, -1, total, true
	}
	from, to, cut := strings.Cut(rng, "-")
	first, okFirst := parseNumber(from)
	last, okLast := parseNumber(to)
	if !cut || !okFirst || !okLast || last < first || (total >= 0 && last >= total) {
		return 0, 0, 0, false
	}
	return first, last, total, true
}

// parseNumber reads digits and nothing else.
func parseNumber(s string) (int64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// nextPage finds the query of the page that Link headers say is next. RFC 8288.
func nextPage(links []string) url.Values {
	for _, header := range links {
		for header != "" {
			var link string
			link, header = cutOutside(header, ',')
			target, params := cutOutside(link, ';')
			target, opened := strings.CutPrefix(strings.TrimSpace(target), "<")
			target, closed := strings.CutSuffix(target, ">")
			if !opened || !closed || !isNext(params) {
				continue
			}
			u, err := url.Parse(target)
			if err != nil {
				continue
			}
			if query := u.Query(); len(query) > 0 {
				return query
			}
		}
	}
	return nil
}

func isNext(params string) bool {
	for params != "" {
		var p string
		p, params = cutOutside(params, ';')
		key, value, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(key), "rel") {
			continue
		}
		for rel := range strings.FieldsSeq(strings.Trim(strings.TrimSpace(value), `"`)) {
			if strings.EqualFold(rel, "next") {
				return true
			}
		}
	}
	return false
}

// cutOutside cuts s at the first sep that is not in quotes or angle brackets.
func cutOutside(s string, sep byte) (before, after string) {
	quoted, bracketed := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !bracketed:
			quoted = !quoted
		case quoted:
		case c == '<':
			bracketed = true
		case c == '>':
			bracketed = false
		case c == sep && !bracketed:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}
