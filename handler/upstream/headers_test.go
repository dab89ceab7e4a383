package upstream_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"larder/handler/upstream"
)

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "120", "-1", "1e9", "18446744073709551616", "Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := upstream.RetryAfter(http.Header{"Retry-After": {s}}); got < time.Second || got > time.Hour {
			t.Errorf("%q: got %v, want between a second and an hour", s, got)
		}
	})
}

func FuzzParseQuota(f *testing.F) {
	for _, s := range []string{"", "100;w=21600", "0", "100; w=60", "100;w=;w=5", ";w=1", "-1", "99999999999", "1;comment=\"a;b\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, window, ok := upstream.ParseQuota(s)
		if n < 0 || window < 0 || !ok && (n != 0 || window != 0) {
			t.Errorf("%q: got %d, %v, %v", s, n, window, ok)
		}
	})
}

// Whatever a client says, what goes upstream is larders' names and nothing else.
func FuzzVia(f *testing.F) {
	for _, s := range []string{"", "1.1 " + hop, "1.1 a, 1.0 " + hop + " (comment)", "1.1 " + hop + "\r\nX: y", hop, "1.1 " + strings.ToLower(hop)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, name := range upstream.Hops([]string{s}) {
			if len(name) != len(hop) || !strings.HasPrefix(name, "larder-") || strings.ContainsAny(name, " ,()\r\n") || !strings.Contains(s, name) {
				t.Errorf("%q: got %q", s, name)
			}
		}
	})
}
