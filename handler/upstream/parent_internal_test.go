package upstream

import (
	"strings"
	"testing"
)

// Whatever a parent says of itself, what is passed on of it is a list of caches still
// when larder's own word comes behind it.
func FuzzCacheStatus(f *testing.F) {
	for _, s := range []string{
		"", "larder; hit; detail=hit", "larder; fwd=uri-miss; fwd-status=404", `a; hit,\t"b \" c"; ttl=-90; key="x,y"`, "(a b); hit", "12", "a;", "a,", "a;hit=?1;b=:YQ==:;c=@1;d=%\"x\"", strings.Repeat("a,", 9) + "a",
	} {
		f.Add(s, "larder; hit")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		values := []string{one, two}
		forwarded(values, 404)
		list := cacheStatus(values)
		if list == nil {
			return
		}
		passed := strings.Join(values, ", ")
		if len(list) > maxHops || len(passed) > maxCacheStatus || strings.ContainsAny(passed, "\r\n\x00") {
			t.Errorf("%q is passed on", passed)
		}
		if again := cacheStatus([]string{passed, "x"}); len(list) < maxHops && len(passed)+5 < maxCacheStatus && len(again) != len(list)+1 {
			t.Errorf("%q is no list that goes on", passed)
		}
	})
}
