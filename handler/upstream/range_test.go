package upstream_test

import (
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1234", "bytes 0-0/*", "bytes */5", "bytes */*", "bytes 5-4/9", "bytes 9223372036854775807-9223372036854775807/*", "bytes +1-2/3", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := upstream.ParseContentRange(s)
		none := ok && last == -1 && first == 0
		switch {
		case !ok:
			return
		case total < -1:
			t.Errorf("%q: total %d", s, total)
		case !none && (first < 0 || last < first || total >= 0 && last >= total):
			t.Errorf("%q: %d-%d/%d", s, first, last, total)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	type result struct {
		first, last, total int64
		ok                 bool
	}
	const most = 1<<63 - 1
	tests := map[string]result{
		"bytes 0-99/1234":                  {0, 99, 1234, true},
		"bytes 0-0/1":                      {0, 0, 1, true},
		"bytes 5-9/*":                      {5, 9, -1, true},
		"bytes */1234":                     {0, -1, 1234, true},
		"bytes */*":                        {0, -1, -1, true},
		"bytes 0-9223372036854775806/*":    {0, most - 1, -1, true},
		"bytes 0-99/99":                    {},
		"bytes 9-5/99":                     {},
		"bytes 0-9223372036854775808/*":    {},
		"bytes 0-1/9223372036854775808":    {},
		"bytes -1-2/9":                     {},
		"bytes +1-2/9":                     {},
		"bytes 1-+2/9":                     {},
		"bytes 1-/9":                       {},
		"bytes -5/9":                       {},
		"bytes 1/9":                        {},
		"bytes 1-2":                        {},
		"bytes 1-2/":                       {},
		"bytes 1-2/-3":                     {},
		"bytes 0x1-2/9":                    {},
		"bytes 1_0-20/90":                  {},
		"bytes 1-2/9/9":                    {},
		"bytes=0-99/1234":                  {},
		"0-99/1234":                        {},
		"bytes 0-99/1234, bytes 0-99/1234": {},
		"":                                 {},
	}
	for s, want := range tests {
		var got result
		if got.first, got.last, got.total, got.ok = upstream.ParseContentRange(s); got.ok != want.ok || want.ok && got != want {
			t.Errorf("%q: got %+v, want %+v", s, got, want)
		}
	}
}

func TestWrongRangeIsRefused(t *testing.T) {
	status := func(code int, contentRange string) upstreamtest.Fault {
		h := http.Header{"X": {"x"}}
		if contentRange != "" {
			h.Set("Content-Range", contentRange)
		}
		return upstreamtest.Status(code, h)
	}
	tests := map[string]struct {
		fault          upstreamtest.Fault
		offset, length int64
	}{
		"a byte further on":    {upstreamtest.WrongContentRange(), 10, -1},
		"a byte further on, n": {upstreamtest.WrongContentRange(), 10, 3},
		"from the start":       {upstreamtest.SetHeader("Content-Range", "bytes 0-25/36"), 10, -1},
		"longer than asked":    {upstreamtest.SetHeader("Content-Range", "bytes 10-13/36"), 10, 3},
		"longer, no length":    {chain(upstreamtest.SetHeader("Content-Range", "bytes 10-13/36"), partial(206, "abcd")), 10, 3},
		"not what it says":     {upstreamtest.SetHeader("Content-Range", "bytes 10-11/36"), 10, 3},
		"no Content-Range":     {upstreamtest.DropHeader("Content-Range"), 10, 3},
		"other unit":           {upstreamtest.SetHeader("Content-Range", "lines 10-12/36"), 10, 3},
		"backwards":            {upstreamtest.SetHeader("Content-Range", "bytes 10-9/36"), 10, 3},
		"over its end":         {upstreamtest.SetHeader("Content-Range", "bytes 10-12/12"), 10, 3},
		"none":                 {upstreamtest.SetHeader("Content-Range", "bytes */36"), 10, 3},
		"416 inside":           {status(416, "bytes */36"), 10, -1},
		"416 at the start":     {status(416, "bytes */36"), 0, 1},
		"416, total unknown":   {status(416, "bytes */*"), 10, -1},
		"416, nothing said":    {status(416, ""), 10, -1},
		"gzip":                 {upstreamtest.SetHeader("Content-Encoding", "gzip"), 0, -1},
		"gzip, range":          {upstreamtest.SetHeader("Content-Encoding", "gzip"), 10, 3},
		"zstd":                 {upstreamtest.SetHeader("Content-Encoding", "zstd"), 0, -1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				remove := reg.Fault(upstreamtest.Match{Path: "/blobs/"}, test.fault)
				body, _, err := r.OpenBlob(t.Context(), digest.FromBytes(blobData), test.offset, test.length)
				if body != nil {
					t.Error("got a body")
				}
				wantError(t, err, 0)
				wantUnreachable(t, err, true)
				remove()
				ask(t, r, "get blob")
			})
		})
	}
}
