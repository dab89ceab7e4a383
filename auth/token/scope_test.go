package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestRepositories(t *testing.T) {
	tests := map[string]struct {
		scopes []string
		want   []string
	}{
		"none":               {nil, nil},
		"empty":              {[]string{"", " "}, nil},
		"one":                {[]string{"repository:library/alpine:pull"}, []string{"library/alpine"}},
		"repeated parameter": {[]string{"repository:a/b:pull", "repository:c/d:pull"}, []string{"a/b", "c/d"}},
		"list with spaces":   {[]string{"repository:a/b:pull repository:c/d:pull,push"}, []string{"a/b", "c/d"}},
		"twice":              {[]string{"repository:a/b:pull", "repository:a/b:push,pull"}, []string{"a/b"}},
		"host with port":     {[]string{"repository:registry.example:5000/a/b:pull"}, []string{"registry.example:5000/a/b"}},
		"IPv6":               {[]string{"repository:[::1]:5000/a/b:pull"}, []string{"[::1]:5000/a/b"}},
		"plugin":             {[]string{"repository(plugin):a/b:pull"}, []string{"a/b"}},
		"push alone":         {[]string{"repository:a/b:push"}, nil},
		"all":                {[]string{"repository:a/b:*"}, nil},
		"delete and pull":    {[]string{"repository:a/b:delete,pull"}, []string{"a/b"}},
		"no action":          {[]string{"repository:a/b:", "repository:a/b"}, nil},
		"no name":            {[]string{"repository::pull", "repository:pull"}, nil},
		"catalog":            {[]string{"registry:catalog:*"}, nil},
		"other type":         {[]string{"repositories:a/b:pull", "Repository:a/b:pull", ":a/b:pull", "pull"}, nil},
		"like pull":          {[]string{"repository:a/b:pulls,Pull, pull"}, nil},
		"far too long":       {[]string{Scope(strings.Repeat("a", maxName+1))}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Repositories(test.scopes)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestScopesAreBounded(t *testing.T) {
	var scopes []string
	for i := range maxScopes {
		scopes = append(scopes, Scope(fmt.Sprint("a/", i)), Scope("a/0"), "registry:catalog:*")
	}
	if names, err := Repositories(scopes); err != nil || len(names) != maxScopes {
		t.Errorf("%d names, %v; want %d", len(names), err, maxScopes)
	}
	if _, err := Repositories(append(scopes, Scope("a/more"))); !errors.Is(err, ErrScopes) {
		t.Errorf("one more: got %v, want %v", err, ErrScopes)
	}
}

func FuzzRepositories(f *testing.F) {
	for _, seed := range []string{
		"repository:library/alpine:pull", "repository:a:5000/b:pull,push repository(plugin):c:pull", "registry:catalog:*", "repository::pull", ": : :", "repository:\x00:pull",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, scopes string) {
		names, err := Repositories([]string{scopes})
		if err != nil {
			return
		}
		for _, name := range names {
			if name == "" || len(name) > maxName || strings.ContainsAny(name, " \t\n") || !strings.Contains(scopes, ":"+name+":") {
				t.Errorf("got name %q of %q", name, scopes)
			}
			// What the challenge says and what is asked for then are the same.
			if again, err := Repositories([]string{Scope(name)}); err != nil || len(again) != 1 || again[0] != name {
				t.Errorf("the scope of %q is for %q (%v)", name, again, err)
			}
		}
	})
}
