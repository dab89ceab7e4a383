package handler_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

func TestBlobRanges(t *testing.T) {
	const size = 200_000
	data := random(t, 1, size)
	d := digest.FromBytes(data)
	etag := `"` + d.String() + `"`
	tests := map[string]struct {
		headers []string
		status  int
		first   int // of a 206 or 200; the body goes to last
		last    int
	}{
		"all":                    {[]string{"Range: bytes=0-"}, 206, 0, size - 1},
		"from":                   {[]string{"Range: bytes=150000-"}, 206, 150_000, size - 1},
		"from to":                {[]string{"Range: bytes=5-9"}, 206, 5, 9},
		"first byte":             {[]string{"Range: bytes=0-0"}, 206, 0, 0},
		"last byte":              {[]string{"Range: bytes=199999-"}, 206, size - 1, size - 1},
		"beyond the end":         {[]string{"Range: bytes=199990-900000"}, 206, 199_990, size - 1},
		"suffix":                 {[]string{"Range: bytes=-10"}, 206, size - 10, size - 1},
		"suffix of more":         {[]string{"Range: bytes=-900000"}, 206, 0, size - 1},
		"spaces":                 {[]string{"Range: bytes= 5-9"}, 206, 5, 9},
		"at the end":             {[]string{"Range: bytes=200000-"}, 416, 0, 0},
		"behind the end":         {[]string{"Range: bytes=900000-900001"}, 416, 0, 0},
		"beyond all numbers":     {[]string{"Range: bytes=99999999999999999999-"}, 416, 0, 0},
		"suffix of nothing":      {[]string{"Range: bytes=-0"}, 416, 0, 0},
		"suffix of 00":           {[]string{"Range: bytes=-00"}, 416, 0, 0},
		"backwards":              {[]string{"Range: bytes=9-5"}, 416, 0, 0},
		"no numbers":             {[]string{"Range: bytes=a-b"}, 416, 0, 0},
		"nothing":                {[]string{"Range: bytes="}, 416, 0, 0},
		"a dash":                 {[]string{"Range: bytes=-"}, 416, 0, 0},
		"minus":                  {[]string{"Range: bytes=--5"}, 416, 0, 0},
		"plus":                   {[]string{"Range: bytes=+5-9"}, 416, 0, 0},
		"five":                   {[]string{"Range: bytes=5"}, 416, 0, 0},
		"space in a number":      {[]string{"Range: bytes=5 -9"}, 416, 0, 0},
		"hexadecimal":            {[]string{"Range: bytes=0x5-0x9"}, 416, 0, 0},
		"not ASCII":              {[]string{"Range: bytes=٥-٩"}, 416, 0, 0},
		"two dashes":             {[]string{"Range: bytes=5-9-"}, 416, 0, 0},
		"semicolon":              {[]string{"Range: bytes=0-1;2-3"}, 416, 0, 0},
		"zeros before":           {[]string{"Range: bytes=0005-00009"}, 206, 5, 9},
		"to beyond all numbers":  {[]string{"Range: bytes=5-99999999999999999999"}, 206, 5, size - 1},
		"suffix beyond numbers":  {[]string{"Range: bytes=-99999999999999999999"}, 206, 0, size - 1},
		"greatest number":        {[]string{"Range: bytes=9223372036854775807-9223372036854775807"}, 416, 0, 0},
		"shouted":                {[]string{"Range: BYTES=5-9"}, 206, 5, 9},
		"list of one":            {[]string{"Range: bytes=, 5-9 ,\t,"}, 206, 5, 9},
		"one of a list is there": {[]string{"Range: bytes=900000-, 5-9, -0"}, 206, 5, 9},
		"none of a list":         {[]string{"Range: bytes=900000-,200000-200001,-0"}, 416, 0, 0},
		"one of a list is wrong": {[]string{"Range: bytes=0-1,9-5"}, 416, 0, 0},
		"empty list":             {[]string{"Range: bytes=,,"}, 416, 0, 0},
		"too many":               {[]string{"Range: bytes=" + strings.Repeat("0-0,", 257)}, 416, 0, 0},
		"more than all":          {[]string{"Range: bytes=0-,0-"}, 200, 0, size - 1}, // RFC 9110, section 17.15
		"another unit":           {[]string{"Range: lines=1-2"}, 200, 0, size - 1},   // is ignored
		"no unit":                {[]string{"Range: 5-9"}, 200, 0, size - 1},
		"unit and a space":       {[]string{"Range: bytes =5-9"}, 200, 0, size - 1},
		"two headers":            {[]string{"Range: bytes=5-9", "Range: bytes=15-19"}, 200, 0, size - 1},
		"empty header":           {[]string{"Range:"}, 200, 0, size - 1},
		"if the same":            {[]string{"Range: bytes=5-9", "If-Range: " + etag}, 206, 5, 9},
		"if another":             {[]string{"Range: bytes=5-9", `If-Range: "x"`}, 200, 0, size - 1},
		"if weak":                {[]string{"Range: bytes=5-9", "If-Range: W/" + etag}, 200, 0, size - 1},
		"if a date":              {[]string{"Range: bytes=5-9", "If-Range: Mon, 02 Jan 2006 15:04:05 GMT"}, 200, 0, size - 1},
		"unsatisfiable if other": {[]string{"Range: bytes=-0", `If-Range: "x"`}, 200, 0, size - 1},
		"backwards if other":     {[]string{"Range: bytes=9-5", `If-Range: "x"`}, 200, 0, size - 1},
		"unsatisfiable if same":  {[]string{"Range: bytes=-0", "If-Range: " + etag}, 416, 0, 0},
		"match":                  {[]string{"Range: bytes=5-9", "If-Match: " + etag}, 206, 5, 9},
		"no match":               {[]string{"Range: bytes=5-9", `If-Match: "x"`}, 412, 0, 0},
		"match, suffix of 0":     {[]string{"Range: bytes=-0", "If-Match: " + etag}, 416, 0, 0},
		"match any, no number":   {[]string{"Range: bytes=a-b", "If-Match: *"}, 416, 0, 0},
		"no match, suffix of 0":  {[]string{"Range: bytes=-0", `If-Match: "x"`}, 412, 0, 0},
		"no match, list":         {[]string{"Range: bytes=900000-,-0", `If-Match: "x"`}, 412, 0, 0},
		"modified, list":         {[]string{"Range: bytes=900000-,-0", `If-None-Match: "x"`}, 416, 0, 0},
		"modified":               {[]string{"Range: bytes=5-9", `If-None-Match: "x"`}, 206, 5, 9},
		"not modified, wrong":    {[]string{"Range: bytes=9-5", "If-None-Match: *"}, 304, 0, 0},
		"not modified":           {[]string{"Range: bytes=900000-", "If-None-Match: " + etag}, 304, 0, 0},
	}
	check := func(t *testing.T, l *larder) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				a := l.ask(t, "GET", blobPath("a/b", d), test.headers...)
				switch test.status {
				case 416:
					a.wantError(t, 416, "UNSUPPORTED")
					a.want(t, "Content-Range", "bytes */200000")
				case 304, 412:
					if a.StatusCode != test.status || len(a.body) > 0 {
						t.Errorf("status %d with %d bytes, want %d", a.StatusCode, len(a.body), test.status)
					}
				case 206:
					a.want(t, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", test.first, test.last, size))
					fallthrough
				default:
					a.wantBody(t, test.status, data[test.first:test.last+1])
					a.want(t, "ETag", etag)
				}
			})
		}
		t.Run("several", func(t *testing.T) {
			wantParts(t, l.ask(t, "GET", blobPath("a/b", d), "Range: bytes=0-9,-10"), data[:10], data[size-10:])
			wantParts(t, l.ask(t, "GET", blobPath("a/b", d), "Range: bytes=-10 , 900000-, 5-5,, 5-6"), data[size-10:], data[5:6], data[5:7])
		})
	}
	t.Run("complete", func(t *testing.T) {
		l := newLarder(t, setup{})
		l.hub.AddBlob("a/b", data)
		l.ask(t, "GET", blobPath("a/b", d))
		l.settle(t)
		check(t, l)
	})
	t.Run("arriving", func(t *testing.T) {
		// All but the last byte, which is held back anyway, can be read.
		l := newLarder(t, setup{})
		l.hub.AddBlob("a/b", data)
		gate := make(chan struct{})
		l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/blobs/"}, upstreamtest.GateAfter(100_000, gate))
		conn := l.dial(t)
		send(t, conn, "GET", blobPath("a/b", d))
		await(t, "the first byte", func() bool { return l.blobs.Stats().Misses == 1 })
		early := l.ask(t, "GET", blobPath("a/b", d), "Range: bytes=50000-99998")
		early.wantBody(t, 206, data[50_000:99_999])
		early.want(t, "Content-Range", "bytes 50000-99998/200000")
		l.ask(t, "GET", blobPath("a/b", d), "Range: bytes=200000-").wantError(t, 416, "UNSUPPORTED")
		late := l.dial(t)
		send(t, late, "GET", blobPath("a/b", d), "Range: bytes=-10")
		close(gate)
		read(t, late, "GET").wantBody(t, 206, data[size-10:])
		wantBlob(t, read(t, conn, "GET"), data, "miss")
		check(t, l)
		l.settle(t)
		if n := l.blobs.Stats().Fetched; n != size {
			t.Errorf("%d bytes came from upstream, want %d", n, size)
		}
	})
}

func wantParts(t *testing.T, a answer, parts ...[]byte) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if a.StatusCode != 206 || kind != "multipart/byteranges" || err != nil {
		t.Fatalf("got %d %q, want 206 multipart/byteranges", a.StatusCode, a.Header.Get("Content-Type"))
	}
	r := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, want := range parts {
		part, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got a part of %d bytes (%v), want the right one of %d", len(got), err, len(want))
		}
	}
	if _, err := r.NextPart(); err != io.EOF {
		t.Errorf("another part, or %v", err)
	}
}

// All of an empty blob is what there is of any part of it.
func TestRangesOfAnEmptyBlob(t *testing.T) {
	l := newLarder(t, setup{})
	d := l.hub.AddBlob("a/b", nil)
	for rng, status := range map[string]int{"bytes=0-": 200, "bytes=0-5": 200, "bytes=5-": 200, "bytes=-5": 200, "bytes=-0": 200, "bytes=0-,-5": 200, "bytes=x": 416} {
		if a := l.ask(t, "GET", blobPath("a/b", d), "Range: "+rng); a.StatusCode != status {
			t.Errorf("%s: got %d, want %d", rng, a.StatusCode, status)
		}
	}
}

func TestPartOfABlobOfUnknownSizeIsAnsweredWithAllOfIt(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 77, 300<<10)
	d := l.hub.AddBlob("a/b", data)
	l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.IgnoreRange(), upstreamtest.NoContentLength(), upstreamtest.Rate(2<<20))
	for _, part := range []string{"bytes=1000-", "bytes=200000-200009", "bytes=-5"} {
		a := l.ask(t, "GET", blobPath("a/b", d), "Range: "+part)
		if a.StatusCode == http.StatusOK && (a.err != nil || !bytes.Equal(a.body, data)) {
			t.Errorf("%s is answered with 200 and %d bytes that are not the blob, %v", part, len(a.body), a.err)
		} else if a.StatusCode != http.StatusOK && a.StatusCode != http.StatusPartialContent { // once it is cached
			t.Errorf("%s is answered with %d", part, a.StatusCode)
		}
	}
}
