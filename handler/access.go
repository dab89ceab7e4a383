package handler

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"go.uber.org/zap"

	"larder/auth/watched"
	"larder/handler/upstream"
)

const (
	// maxAccessFile bounds the file of access rules.
	maxAccessFile = 1 << 20

	// anybody is in the place of a user for those who have signed in, anonymous
	// for everybody: who has signed in must not be worse off.
	anybody   = "*"
	anonymous = "anonymous"
)

// Access is who may pull what. Its methods may be called concurrently.
type Access struct {
	Allow Globs  // these repositories are served; nil: all
	Deny  Globs  // but for these
	Users *Users // and of them, to each user these; nil: to everybody all
}

// MayPull is the middlewares' Options.MayPull.
func (a Access) MayPull(user, repository string) bool {
	return (a.Allow == nil || a.Allow.Match(repository)) && !a.Deny.Match(repository) && a.Users.mayPull(user, repository)
}

// MayPullNamed reports whether the user may pull what clients ask for by this
// name from any of the upstreams: which one it is, only a request's ?ns= says.
func (a Access) MayPullNamed(upstreams *upstream.Client, user, name string) bool {
	may := func(ns string) bool {
		repo, err := upstreams.Repository(ns, name)
		return err == nil && a.MayPull(user, repo.String())
	}
	return may("") || slices.ContainsFunc(upstreams.Registries(), func(r upstream.Registry) bool { return may(r.Host) })
}

// Users is which user may pull what, by a file of lines like
// "alice ghcr.io/org/**".
type Users struct {
	rules *watched.Files[map[string]Globs]
}

// OpenUsers reads the access file at path. The error has every line that is
// wrong, by its number; a file without rules is an error too. It is read again
// when it changes; if it is bad then, what was read before stays in force. log is
// told.
func OpenUsers(path string, registries []upstream.Registry, log *zap.Logger) (*Users, error) {
	rules, err := watched.Open("access file", log, func() (map[string]Globs, error) { return readAccess(path, registries) }, path)
	if err != nil {
		return nil, err
	}
	return &Users{rules}, nil
}

// mayPull is for user "", nobody in particular, too.
func (u *Users) mayPull(user, repository string) bool {
	if u == nil {
		return true
	}
	rules := u.rules.Get()
	if rules[anonymous].Match(repository) {
		return true
	}
	return user != "" && (rules[user].Match(repository) || rules[anybody].Match(repository))
}

func readAccess(path string, registries []upstream.Registry) (map[string]Globs, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxAccessFile+1))
	if err != nil {
		return nil, err
	}
	rules, err := parseAccess(string(content), registries)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rules, nil
}

// parseAccess reads lines of a user and a glob; empty ones and those that start
// with # do not count.
func parseAccess(content string, registries []upstream.Registry) (map[string]Globs, error) {
	if len(content) > maxAccessFile {
		return nil, fmt.Errorf("larger than %d bytes", maxAccessFile)
	}
	rules := make(map[string]Globs)
	var bad []string
	number := 0
	for line := range strings.Lines(content) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		user, glob, err := parseRule(line, registries)
		if err != nil {
			bad = append(bad, fmt.Sprintf("line %d: %v", number, err))
			continue
		}
		rules[user] = append(rules[user], compileGlob(glob))
	}
	if bad != nil {
		return nil, errors.New(strings.Join(bad, "; "))
	}
	if len(rules) == 0 {
		return nil, errors.New("no rules")
	}
	return rules, nil
}

func parseRule(line string, registries []upstream.Registry) (user, glob string, err error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return "", "", errors.New("not a user and a repository")
	}
	user, glob = fields[0], fields[1]
	if strings.ContainsFunc(user, func(r rune) bool { return !unicode.IsPrint(r) }) { // such as a byte order mark
		return "", "", errors.New("unprintable character in user name")
	}
	return user, glob, checkGlob(glob, registries)
}
