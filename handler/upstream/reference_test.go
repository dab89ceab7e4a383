package upstream_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
)

func TestSplitReference(t *testing.T) {
	d, long := digest.FromString("x").String(), digest.SHA512.FromString("x").String()
	tests := map[string][3]string{
		"alpine":                                {"alpine"},
		"alpine:3.20":                           {"alpine", "3.20"},
		"ghcr.io/org/app":                       {"ghcr.io/org/app"},
		"ghcr.io/org/app:v1_a-b.c":              {"ghcr.io/org/app", "v1_a-b.c"},
		"reg.example:5000/app":                  {"reg.example:5000/app"},
		"reg.example:5000/app:1":                {"reg.example:5000/app", "1"},
		"reg.example:5000/app@" + d:             {"reg.example:5000/app", "", d},
		"app:1@" + d:                            {"app", "1", d},
		"app@" + long:                           {"app", "", long},
		"docker://docker.io/library/alpine:1":   {"docker.io/library/alpine", "1"},
		"[::1]:5000/a:1":                        {"[::1]:5000/a", "1"},
		"app:" + strings.Repeat("a", 128):       {"app", strings.Repeat("a", 128)},
		"localhost:5000":                        {"localhost", "5000"}, // as docker reads it
		"docker://a/docker://b":                 {"a/docker://b"},      // whose name Repository refuses
		"https://registry-1.docker.io/v2/a:1":   {"https://registry-1.docker.io/v2/a", "1"},
		"ghcr.io/org/app@" + d + "@" + d:        {},
		"":                                      {},
		":1":                                    {},
		"@" + d:                                 {},
		"app:":                                  {},
		"app:.1":                                {},
		"app:a b":                               {},
		"app:" + strings.Repeat("a", 129):       {},
		"app@sha256:0":                          {},
		"app@latest":                            {},
		"app@":                                  {},
		"app@sha384:" + strings.Repeat("0", 96): {},
	}
	for in, want := range tests {
		name, tag, d, err := upstream.SplitReference(in)
		if want == [3]string{} {
			if !errors.Is(err, upstream.ErrReference) {
				t.Errorf("%q: got %q, %q, %q, %v; want ErrReference", in, name, tag, d, err)
			}
			continue
		}
		if got := [3]string{name, tag, d.String()}; got != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}
