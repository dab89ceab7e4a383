package handler

import (
	"bytes"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// wanted is what RFC 9110, section 14.1, says of a list of ranges, in numbers
// without a bound. nil is for what is invalid, empty for what is not there.
func wanted(list string, data []byte) [][]byte {
	parts := [][]byte{}
	size := big.NewInt(int64(len(data)))
	number := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 10); return n }
	count, huge := 0, big.NewInt(endless)
	for element := range strings.SplitSeq(list, ",") {
		m := regexp.MustCompile(`^[ \t]*(?:([0-9]*)-([0-9]*))?[ \t]*$`).FindStringSubmatch(element)
		if m == nil || m[1] == "" && m[2] == "" && strings.Contains(element, "-") {
			return nil
		}
		if m[1] == "" && m[2] == "" {
			continue
		}
		count++
		first, last := number(m[1]), number(m[2])
		switch {
		case first == nil:
			first, last = new(big.Int).Sub(size, last), size
			if first.Sign() < 0 {
				first = new(big.Int)
			}
		case last == nil:
			last = size
		case last.Cmp(first) < 0 && !(first.Cmp(huge) >= 0 && last.Cmp(huge) >= 0): // beyond all numbers, they are one
			return nil
		}
		if first.Cmp(size) >= 0 {
			continue
		}
		end := len(data)
		if last.Cmp(size) < 0 {
			end = int(last.Int64()) + 1
		}
		parts = append(parts, data[first.Int64():end])
	}
	if count == 0 || count > maxRanges {
		return nil
	}
	return parts
}

// got are the parts of an answer with status 206.
func got(t *testing.T, res *http.Response) (parts [][]byte) {
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return [][]byte{body}
	}
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := r.NextPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, data)
	}
}

func FuzzRange(f *testing.F) {
	for _, list := range []string{
		"0-", "0-0", "5-9", "-5", "-0", "99-", "9-5", "a-b", "", ",", "0-1,2-3", "0-1, ,-1,99-", "0-,0-", "-", "--5", "5-9-", "+5-9", " 5-9\t", "5 -9",
		"0-99999999999999999999", "99999999999999999999-", "-99999999999999999999", "9223372036854775807-9223372036854775807", "9223372036854775806-",
		"00-01", "0x1-2", "1_0-20", strings.Repeat("0-0,", maxRanges), strings.Repeat("0-0,", maxRanges+1), "-99999999999999999999,0-9223372036854775807",
		"9227000000000000000-9223700000000000000",
	} {
		f.Add(list, byte(10))
		f.Add(list, byte(0))
	}
	f.Fuzz(func(t *testing.T, list string, size byte) {
		data := []byte(strings.Repeat("0123456789", 26)[:size])
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Range", "bytes="+list)
		if offset, length := firstRange(r); offset < 0 || length < -1 || length == 0 || length > 0 && offset+length < 0 {
			t.Errorf("%q begins at %d with %d", list, offset, length)
		}
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/octet-stream")
		err := serveContent(w, r, bytes.NewReader(data), int64(size))
		want, total := wanted(list, data), 0
		for _, part := range want {
			total += len(part)
		}
		switch {
		case want == nil || len(want) == 0 && size > 0:
			if err == nil {
				t.Errorf("%q of %d: %d, want it refused", list, size, w.Code)
			}
		case err != nil:
			t.Errorf("%q of %d: %v, want %q", list, size, err, want)
		case size == 0 || total > len(data):
			if w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), data) {
				t.Errorf("%q of %d: %d with %q, want all", list, size, w.Code, w.Body)
			}
		default:
			if parts := got(t, w.Result()); w.Code != http.StatusPartialContent || !bytes.Equal(bytes.Join(parts, []byte("|")), bytes.Join(want, []byte("|"))) {
				t.Errorf("%q of %d: %d with %q, want %q", list, size, w.Code, parts, want)
			}
		}
	})
}
