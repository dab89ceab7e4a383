package htpasswd

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/tg123/go-htpasswd"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/singleflight"
)

const (
	maxSize = 16 << 20 // of the file: some 200,000 users
	maxCost = 16       // takes seconds; each step doubles it, and nobody can cancel a bcrypt
)

// bcryptHash is stricter than the parser of the library, which looks at the
// first four characters: a damaged hash would lock its user out silently.
var bcryptHash = regexp.MustCompile(`^\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}$`)

type mac [sha256.Size]byte

// users is one version of the file and what was learnt about it. Nothing of
// that outlives the version, or a password just revoked would still be taken.
type users struct {
	hashes map[string]htpasswd.EncodedPasswd
	decoy  htpasswd.EncodedPasswd // the dearest of hashes, for users that are not there

	runs singleflight.Group // of bcrypt

	mu sync.Mutex // guards verified
	// verified has the password that each user showed last and that was right:
	// a pull sends it dozens of times, and bcrypt takes 50 ms. It is bounded by
	// the number of users; right passwords are not, as bcrypt looks at the
	// first 72 bytes only.
	verified map[string]mac
}

// verify costs one bcrypt, unless the password was verified before.
func (u *users) verify(f *File, username, password string) bool {
	shown := f.macOf(username, password)
	u.mu.Lock()
	known, ok := u.verified[username]
	u.mu.Unlock()
	if ok && hmac.Equal(known[:], shown[:]) {
		return true
	}
	right, _, _ := u.runs.Do(string(shown[:]), func() (any, error) {
		return u.run(f, username, password, shown), nil
	})
	return right.(bool)
}

func (u *users) run(f *File, username, password string, shown mac) bool {
	hash, known := u.hashes[username]
	if !known {
		hash = u.decoy
	}
	f.slots <- struct{}{}
	right := f.match(hash, password)
	<-f.slots
	if !known || !right {
		return false
	}
	u.mu.Lock()
	u.verified[username] = shown
	u.mu.Unlock()
	return true
}

// macOf is what is remembered of a password instead of itself. The length
// keeps ("a:b", "c") and ("a", "b:c") apart.
func (f *File) macOf(username, password string) mac {
	h := hmac.New(sha256.New, f.key[:])
	fmt.Fprintf(h, "%d:%s:%s", len(username), username, password)
	return mac(h.Sum(nil))
}

// parse reads user:hash lines; empty ones and those that start with # do not
// count. Its errors have line numbers and nothing of what is in the lines.
func parse(r io.Reader) (*users, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxSize {
		return nil, fmt.Errorf("larger than %d bytes", maxSize)
	}
	u := &users{hashes: make(map[string]htpasswd.EncodedPasswd), verified: make(map[string]mac)}
	dearest := -1
	var bad []string
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		cost, err := u.add(line)
		if err != nil {
			bad = append(bad, fmt.Sprintf("line %d: %v", number, err))
			continue
		}
		if cost > dearest {
			dearest = cost
			username, _, _ := strings.Cut(line, ":")
			u.decoy = u.hashes[username]
		}
	}
	if bad != nil {
		return nil, errors.New(strings.Join(bad, "; "))
	}
	if len(u.hashes) == 0 {
		return nil, errors.New("no users")
	}
	return u, nil
}

// add adds the user of one line and returns the cost of its hash.
func (u *users) add(line string) (cost int, err error) {
	username, hash, found := strings.Cut(line, ":")
	switch {
	case !found:
		return 0, errors.New("no colon")
	case username == "":
		return 0, errors.New("no user name")
	case strings.ContainsFunc(username, func(r rune) bool { return !unicode.IsPrint(r) }): // such as a byte order mark
		return 0, errors.New("unprintable character in user name")
	case u.hashes[username] != nil:
		return 0, errors.New("user is there twice")
	case !bcryptHash.MatchString(hash):
		return 0, errors.New("password is not a bcrypt hash (htpasswd -B makes them)")
	}
	cost, err = bcrypt.Cost([]byte(hash))
	if err != nil || cost < bcrypt.MinCost || cost > maxCost {
		return 0, fmt.Errorf("cost of bcrypt is not between %d and %d", bcrypt.MinCost, maxCost)
	}
	u.hashes[username], err = htpasswd.AcceptBcrypt(hash)
	return cost, err
}
