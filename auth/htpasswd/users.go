package htpasswd

import (
	"context"
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
)

const (
	maxSize = 16 << 20 // of the file: some 200,000 users
	maxCost = 16       // takes seconds; each step doubles it, and nobody can cancel a bcrypt
)

// bcryptHash is stricter than the parser of the library, which looks at the
// first four characters: a damaged hash would lock its user out silently.
var bcryptHash = regexp.MustCompile(`^\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}$`)

type mac [sha256.Size]byte

// hashed is a user's password.
type hashed struct {
	htpasswd.EncodedPasswd
	cost int
}

// users is one version of the file and what was learnt about it. Nothing of
// that outlives the version, or a password just revoked would still be taken.
type users struct {
	hashes map[string]hashed
	decoy  hashed // the dearest of hashes, for users that are not there
	// padding has a hash for each cost up to that of decoy: wrong passwords of
	// users with cheaper hashes must not be refused sooner.
	padding []htpasswd.EncodedPasswd

	mu sync.Mutex // guards the fields below
	// verified has the password that each user showed last and that was right:
	// a pull sends it dozens of times, and bcrypt takes 50 ms. It is bounded by
	// the number of users; right passwords are not, as bcrypt looks at the
	// first 72 bytes only.
	verified map[string]mac
	checks   map[mac]*check // those that run or wait to
}

// check is one password being checked, for all who show it at the same time.
type check struct {
	done  chan struct{} // closed when the fields below are set
	right bool
	err   error
}

// verify costs one bcrypt, unless the password was verified before.
func (u *users) verify(ctx context.Context, f *File, username, password string) (bool, error) {
	shown := f.macOf(username, password)
	for {
		u.mu.Lock()
		if known, ok := u.verified[username]; ok && hmac.Equal(known[:], shown[:]) {
			u.mu.Unlock()
			return true, nil
		}
		c := u.checks[shown]
		if c == nil {
			c = &check{done: make(chan struct{})}
			u.checks[shown] = c
			u.mu.Unlock()
			u.run(ctx, f, c, username, password, shown)
			return c.right, c.err
		}
		u.mu.Unlock()
		select {
		case <-c.done:
			if c.err == nil || errors.Is(c.err, ErrBusy) {
				return c.right, c.err
			} // who was to check it has left
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// run is a check from its beginning to its end.
func (u *users) run(ctx context.Context, f *File, c *check, username, password string, shown mac) {
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if c.right {
			u.verified[username] = shown
		}
		delete(u.checks, shown)
		close(c.done)
	}()
	c.right, c.err = u.compare(ctx, f, username, password)
}

// compare waits for its turn, but not in a long queue.
func (u *users) compare(ctx context.Context, f *File, username, password string) (bool, error) {
	select {
	case f.places <- struct{}{}:
		defer func() { <-f.places }()
	default:
		return false, ErrBusy
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	hash, known := u.hashes[username]
	if !known {
		hash = u.decoy
	}
	if right := f.match(hash.EncodedPasswd, password); right && known {
		return true, nil
	}
	// Each step doubles the cost: 2^n and 2^n and 2^(n+1) … make the dearest.
	for cost := hash.cost; cost < u.decoy.cost; cost++ {
		f.match(u.padding[cost], password)
	}
	return false, nil
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
	u := &users{hashes: make(map[string]hashed), verified: make(map[string]mac), checks: make(map[mac]*check)}
	var bad []string
	var dearest string
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		username, hash, found := strings.Cut(line, ":")
		if !found {
			bad = append(bad, fmt.Sprintf("line %d: no colon", number))
			continue
		}
		if err := u.add(username, hash); err != nil {
			bad = append(bad, fmt.Sprintf("line %d: %v", number, err))
			continue
		}
		if u.hashes[username].cost > u.decoy.cost {
			u.decoy, dearest = u.hashes[username], hash
		}
	}
	if bad != nil {
		return nil, errors.New(strings.Join(bad, "; "))
	}
	if len(u.hashes) == 0 {
		return nil, errors.New("no users")
	}
	return u, u.pad(dearest)
}

// add adds the user of one line.
func (u *users) add(username, hash string) error {
	switch {
	case username == "":
		return errors.New("no user name")
	case strings.ContainsFunc(username, func(r rune) bool { return !unicode.IsPrint(r) }): // such as a byte order mark
		return errors.New("unprintable character in user name")
	case u.hashes[username].EncodedPasswd != nil:
		return errors.New("user is there twice")
	case !bcryptHash.MatchString(hash):
		return errors.New("password is not a bcrypt hash (htpasswd -B makes them)")
	}
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || cost < bcrypt.MinCost || cost > maxCost {
		return fmt.Errorf("cost of bcrypt is not between %d and %d", bcrypt.MinCost, maxCost)
	}
	encoded, err := htpasswd.AcceptBcrypt(hash)
	u.hashes[username] = hashed{encoded, cost}
	return err
}

// pad makes the padding of a hash that is like $2y$10$….
func (u *users) pad(hash string) error {
	u.padding = make([]htpasswd.EncodedPasswd, u.decoy.cost)
	for cost := bcrypt.MinCost; cost < u.decoy.cost; cost++ {
		var err error
		if u.padding[cost], err = htpasswd.AcceptBcrypt(fmt.Sprintf("%s%02d%s", hash[:4], cost, hash[6:])); err != nil {
			return err
		}
	}
	return nil
}
