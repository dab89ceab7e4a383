package handler

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

const (
	// maxRanges bounds the parts of one answer: each costs more than its bytes.
	// Lazy-pulling snapshotters ask for some dozens.
	maxRanges = 256

	// endless is the last byte of a range without an end, or one beyond all
	// numbers.
	endless = math.MaxInt64 - 1
)

var (
	errInvalidRange  = errors.New("invalid range")
	errNoSuchRange   = errors.New("no such range")
	errTooManyRanges = fmt.Errorf("more than %d ranges", maxRanges)
)

// byteRange is one element of a Range header: the bytes from first to last, both
// included, or the last ones, as many as last says.
type byteRange struct {
	first, last int64
	suffix      bool
}

// parseRange reads the ranges that a request is for, nil if it is for all: it
// may well be, and a Range that says nothing larder knows must be ignored. RFC
// 9110, section 14.1.
func parseRange(r *http.Request) ([]byteRange, error) {
	headers := r.Header["Range"]
	if len(headers) != 1 || r.Method != http.MethodGet {
		return nil, nil
	}
	unit, list, ok := strings.Cut(headers[0], "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return nil, nil
	}
	var ranges []byteRange
	for element := range strings.SplitSeq(list, ",") {
		if element = strings.Trim(element, " \t"); element == "" {
			continue
		}
		b, ok := parseByteRange(element)
		if !ok {
			return nil, errInvalidRange
		}
		if ranges = append(ranges, b); len(ranges) > maxRanges {
			return nil, errTooManyRanges
		}
	}
	if ranges == nil {
		return nil, errInvalidRange
	}
	return ranges, nil
}

func parseByteRange(s string) (b byteRange, ok bool) {
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return b, false
	}
	b.last = endless
	if to != "" {
		if b.last, ok = parsePosition(to); !ok {
			return b, false
		}
	}
	if from == "" {
		b.suffix = true
		return b, to != ""
	}
	b.first, ok = parsePosition(from)
	return b, ok && b.first <= b.last
}

// parsePosition reads digits. Numbers have no bound.
func parsePosition(s string) (int64, bool) {
	if strings.Trim(s, "0123456789") != "" || s == "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return endless, true
	}
	return min(n, endless), true
}

// resolve says what the ranges are in something of this size, without those that
// are not there. RFC 9110, section 14.1.2.
func resolve(ranges []byteRange, size int64) (there []byteRange) {
	for _, b := range ranges {
		if b.suffix {
			b = byteRange{first: max(size-b.last, 0), last: size - 1}
		}
		if b.first < size {
			b.last = min(b.last, size-1)
			there = append(there, b)
		}
	}
	return there
}

// formatRange writes resolved ranges.
func formatRange(ranges []byteRange) string {
	var s strings.Builder
	s.WriteString("bytes=")
	for i, b := range ranges {
		if i > 0 {
			s.WriteByte(',')
		}
		s.WriteString(strconv.FormatInt(b.first, 10) + "-" + strconv.FormatInt(b.last, 10))
	}
	return s.String()
}
