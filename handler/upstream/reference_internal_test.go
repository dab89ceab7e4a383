package upstream

import (
	"regexp"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzValidName compares the grammar by hand with the one that the spec prints.
func FuzzValidName(f *testing.F) {
	spec := regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	for _, s := range []string{
		"a", "library/alpine", "a.b", "a..b", "a_b", "a__b", "a___b", "a-b", "a----b", "a-_b", "a.-b", "-a", "a-", "a/", "/a", "a//b", "", "A", "a/b.c/d_e", "a\n", "é", "a._b", "a/-b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := validName(s), spec.MatchString(s); got != want {
			t.Errorf("validName(%q) = %v, want %v", s, got, want)
		}
	})
}

// FuzzValidDigest compares it with the library's.
func FuzzValidDigest(f *testing.F) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		d := a.FromString("")
		f.Add(string(d))
		f.Add(string(d[:len(d)-1]))
		f.Add(string(d[:len(d)-1]) + "G")
		f.Add(string(d[:len(d)-1]) + "F")
		f.Add(string(d) + "0")
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := digest.Digest(s)
		want := d.Validate() == nil && supported(d)
		if got := ValidDigest(d); got != want {
			t.Errorf("ValidDigest(%q) = %v, want %v", s, got, want)
		}
	})
}
