package htpasswd

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"
)

const hash = "$2y$04$abcdefghijklmnopqrstuuGIfxXfSNxH6LIVlrpfLA3hT0hjbVhBW"

func TestOpenNamesEachBadLine(t *testing.T) {
	tests := map[string]struct {
		content string
		want    string // after the path
	}{
		"no colon":             {"s3cret\n", ": line 1: no colon"},
		"no user":              {":" + hash, ": line 1: no user name"},
		"plain text":           {"alice:s3cret\n", ": line 1: password is not a bcrypt hash (htpasswd -B makes them)"},
		"MD5":                  {"alice:$apr1$s3cret$abcdefghijklmnopqrstuv\n", ": line 1: password is not a bcrypt hash (htpasswd -B makes them)"},
		"SHA":                  {"alice:{SHA}s3cret\n", ": line 1: password is not a bcrypt hash (htpasswd -B makes them)"},
		"cut off":              {"alice:" + hash[:59], ": line 1: password is not a bcrypt hash (htpasswd -B makes them)"},
		"too long":             {"alice:" + hash + "x", ": line 1: password is not a bcrypt hash (htpasswd -B makes them)"},
		"cost too low":         {"alice:$2y$03" + hash[6:], ": line 1: cost of bcrypt is not between 4 and 16"},
		"cost too high":        {"alice:$2y$17" + hash[6:], ": line 1: cost of bcrypt is not between 4 and 16"},
		"byte order mark":      {"\ufeffalice:" + hash, ": line 1: unprintable character in user name"},
		"twice":                {"alice:" + hash + "\nalice:" + hash, ": line 2: user is there twice"},
		"several":              {"# s3cret\r\n\r\ns3cret\r\nalice:" + hash + "\r\n:s3cret", ": line 3: no colon; line 5: no user name"},
		"empty":                {"", ": no users"},
		"comments only":        {"#alice:" + hash + "\n", ": no users"},
		"a bad one among good": {"alice:" + hash + "\nbob:s3cret\ncarol:" + hash, ": line 2: password is not a bcrypt hash (htpasswd -B makes them)"},
		"too large":            {strings.Repeat("#", maxSize+1), ": larger than 16777216 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "htpasswd")
			write(t, path, test.content)
			_, err := Open(path, zap.NewNop())
			if err == nil {
				t.Fatal("no error")
			}
			if got := strings.TrimPrefix(err.Error(), path); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestOpenOfNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := Open(path, zap.NewNop()); !os.IsNotExist(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want that %s does not exist", err, path)
	}
}

// FuzzParse also shows that errors have nothing of the file in them: they are
// made of known words alone. Seeds are in testdata.
func FuzzParse(f *testing.F) {
	known := regexp.MustCompile(`^(no users|(line \d+: (no colon|no user name|unprintable character in user name|user is there twice|` +
		`password is not a bcrypt hash \(htpasswd -B makes them\)|cost of bcrypt is not between 4 and 16)(; |$))+)$`)
	f.Fuzz(func(t *testing.T, content []byte) {
		u, err := parse(bytes.NewReader(content))
		if err != nil {
			if u != nil || !known.MatchString(err.Error()) {
				t.Errorf("got %v and error %q", u, err)
			}
			return
		}
		if len(u.hashes) == 0 || u.decoy.EncodedPasswd == nil {
			t.Errorf("no error, but %d users and decoy %v", len(u.hashes), u.decoy)
		}
		for username, hash := range u.hashes {
			if username == "" || strings.Contains(username, ":") || hash.EncodedPasswd == nil {
				t.Errorf("user %q with hash %v", username, hash)
			}
		}
	})
}
