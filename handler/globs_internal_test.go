package handler

import (
	"testing"

	"larder/handler/upstream"
)

// matches is what globs mean, slowly.
func matches(glob, name string) bool {
	switch {
	case glob == "":
		return name == ""
	case len(glob) > 1 && glob[:2] == "**":
		return matches(glob[2:], name) || name != "" && matches(glob, name[1:])
	case glob[0] == '*':
		return matches(glob[1:], name) || name != "" && name[0] != '/' && matches(glob, name[1:])
	default:
		return name != "" && glob[0] == name[0] && matches(glob[1:], name[1:])
	}
}

func FuzzGlobs(f *testing.F) {
	for _, seed := range [][2]string{
		{"docker.io/library/*", "docker.io/library/alpine"},
		{"docker.io/library/*", "docker.io/library/a/b"},
		{"ghcr.io/org/**", "ghcr.io/org/a/b"},
		{"ghcr.io/org/**", "ghcr.io/org"},
		{"**", "ghcr.io/a"},
		{"*.io/**/b*c", "ghcr.io/a/bc"},
		{"[::1]:5000/a.b", "[::1]:5000/a.b"},
		{"ghcr.io/a.c", "ghcr.io/abc"},
		{"ghcr.io/a,docker.io/**", "docker.io/x/y"},
		{"ghcr.io/(a|b)+$", "ghcr.io/a"},
		{"ghcr.io/***", "ghcr.io/a"},
		{"*/*/*", "docker.io/a/b"},
		{"ghcr.io/*a*a*a*a*a*b", "ghcr.io/aaaaaaaaaaaaaaaa"},
	} {
		f.Add(seed[0], seed[1])
	}
	registries, err := upstream.ParseList("docker.io,ghcr.io,[::1]:5000")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, glob, name string) {
		globs, err := ParseGlobs(glob, registries)
		if err != nil {
			if err := checkGlob(glob, registries); err == nil {
				t.Errorf("%q is refused in a list of one", glob)
			}
			return
		}
		if len(globs) != 1 || checkGlob(glob, registries) != nil || len(glob)+len(name) > 40 { // matches is slow
			return
		}
		if got, want := globs.Match(name), matches(glob, name); got != want {
			t.Errorf("%q matches %q: %t, want %t", glob, name, got, want)
		}
		if !globs.Match(glob) {
			t.Errorf("%q does not match itself", glob)
		}
	})
}
