package token

import (
	"errors"
	"slices"
	"strings"
)

const (
	repositoryType = "repository"
	pull           = "pull"

	// maxScopes is how many repositories a token may be asked for.
	maxScopes = 16

	// maxName is the length of the longest repository name with a host before
	// it; none that is longer exists.
	maxName = 255 + 1 + 255
)

// ErrScopes says that a token is asked for more than it can hold.
var ErrScopes = errors.New("too many scopes for one token")

// Scope is what a client must ask a token for to pull from a repository.
func Scope(repository string) string {
	return repositoryType + ":" + repository + ":" + pull
}

// Repositories reads scope parameters, of which each may be a list with spaces:
// it is what they ask to pull from. All else that they may ask for is left out,
// as larder has nothing of it to give.
func Repositories(scopes []string) ([]string, error) {
	var names []string
	for _, list := range scopes {
		for scope := range strings.FieldsSeq(list) {
			name, ok := repositoryOf(scope)
			if !ok || slices.Contains(names, name) {
				continue
			}
			if len(names) == maxScopes {
				return nil, ErrScopes
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// repositoryOf reads repository:NAME:ACTIONS. The name may begin with a host and
// its port, so that the colons that count are the outer ones. A type may have a
// class, as in repository(plugin).
func repositoryOf(scope string) (name string, ok bool) {
	kind, rest, _ := strings.Cut(scope, ":")
	kind, _, _ = strings.Cut(kind, "(")
	last := strings.LastIndexByte(rest, ':')
	if kind != repositoryType || last <= 0 || last > maxName {
		return "", false
	}
	return rest[:last], slices.Contains(strings.Split(rest[last+1:], ","), pull)
}
