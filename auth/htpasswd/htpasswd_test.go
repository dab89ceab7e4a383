package htpasswd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tg123/go-htpasswd"
	"golang.org/x/crypto/bcrypt"
)

// entry is a line of a password file.
func entry(t testing.TB, username, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return username + ":" + string(hash) + "\n"
}

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// opened is a File of these lines, the path of it, and how often it ran bcrypt.
func opened(t *testing.T, lines ...string) (f *File, path string, runs *atomic.Int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "htpasswd")
	write(t, path, lines...)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	runs = new(atomic.Int64)
	match := f.match
	f.match = func(hash htpasswd.EncodedPasswd, password string) bool {
		runs.Add(1)
		return match(hash, password)
	}
	return f, path, runs
}

func TestVerify(t *testing.T) {
	long := strings.Repeat("x", 72)
	f, _, _ := opened(t, "# people\n", "\n", entry(t, "alice", "wonderland"), " "+strings.TrimSpace(entry(t, "bob", "p:q"))+"\r\n",
		entry(t, "long", long), strings.Replace(entry(t, "apache", "p"), "$2a$", "$2y$", 1), entry(t, "jürgen", "größe"))
	tests := map[string]struct {
		username, password string
		want               bool
	}{
		"right":                {"alice", "wonderland", true},
		"colon in password":    {"bob", "p:q", true},
		"72 bytes":             {"long", long, true},
		"as Apache writes it":  {"apache", "p", true},
		"not ASCII":            {"jürgen", "größe", true},
		"wrong password":       {"alice", "Wonderland", false},
		"other's password":     {"alice", "p:q", false},
		"no password":          {"alice", "", false},
		"unknown user":         {"mallory", "wonderland", false},
		"no user":              {"", "wonderland", false},
		"other case":           {"Alice", "wonderland", false},
		"decoy's password":     {"mallory", long, false},
		"colon moved to user":  {"bob:p", "q", false},
		"comment as user name": {"# people", "", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the second time from memory
				if got := f.Verify(test.username, test.password); got != test.want {
					t.Errorf("got %v, want %v", got, test.want)
				}
			}
		})
	}
}

func TestEachAnswerCostsOneBcryptUnlessItWasYesBefore(t *testing.T) {
	f, _, runs := opened(t, entry(t, "alice", "wonderland"), entry(t, "bob", "p"))
	steps := []struct {
		username, password string
		want               int64
	}{
		{"alice", "wonderland", 1},
		{"alice", "wonderland", 0},
		{"alice", "wrong", 1},
		{"alice", "wrong", 1},
		{"alice", "wonderland", 0}, // not forgotten over the wrong ones
		{"bob", "wonderland", 1},
		{"mallory", "wonderland", 1},
		{"mallory", "wonderland", 1},
		{"", "", 1},
	}
	for i, step := range steps {
		before := runs.Load()
		f.Verify(step.username, step.password)
		if got := runs.Load() - before; got != step.want {
			t.Errorf("step %d, %s with %q: got %d bcrypt runs, want %d", i, step.username, step.password, got, step.want)
		}
	}
}

func TestMemoryIsBoundedByUsers(t *testing.T) {
	long := strings.Repeat("x", 72) // bcrypt takes no notice of what follows
	f, _, _ := opened(t, entry(t, "alice", long))
	for i := range 10 {
		if !f.Verify("alice", long+fmt.Sprint(i)) {
			t.Fatalf("password %d is wrong; this test needs many that are right", i)
		}
	}
	if got := len(f.users.Load().verified); got != 1 {
		t.Errorf("got %d passwords remembered, want 1", got)
	}
}

func TestUnknownUsersAreComparedWithTheDearestHash(t *testing.T) {
	dear, err := bcrypt.GenerateFromPassword([]byte("p"), bcrypt.MinCost+1)
	if err != nil {
		t.Fatal(err)
	}
	f, _, _ := opened(t, entry(t, "alice", "p"), "bob:"+string(dear)+"\n", entry(t, "carol", "p"))
	u := f.users.Load()
	if u.decoy != u.hashes["bob"] {
		t.Error("the decoy is not the hash with the highest cost")
	}
}

func TestManyVerifiesOfOnePairRunOneBcrypt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, runs := opened(t, entry(t, "alice", "wonderland"))
		release := make(chan struct{})
		match := f.match
		f.match = func(hash htpasswd.EncodedPasswd, password string) bool {
			<-release
			return match(hash, password)
		}
		var right atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if f.Verify("alice", "wonderland") {
					right.Add(1)
				}
			})
		}
		synctest.Wait() // all wait for one
		close(release)
		wg.Wait()
		if got := right.Load(); got != 50 {
			t.Errorf("got %d of 50 verified", got)
		}
		if got := runs.Load(); got != 1 {
			t.Errorf("got %d bcrypt runs, want 1", got)
		}
	})
}

func TestWrongPasswordsRunFewBcryptsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := opened(t, entry(t, "alice", "wonderland"))
		f.slots = make(chan struct{}, 3)
		release := make(chan struct{})
		var running atomic.Int64
		f.match = func(htpasswd.EncodedPasswd, string) bool {
			running.Add(1)
			<-release
			running.Add(-1)
			return false
		}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() { f.Verify("mallory", fmt.Sprint(i)) })
		}
		for range 50 {
			synctest.Wait()
			if got := running.Load(); got > 3 {
				t.Fatalf("got %d at once, want at most 3", got)
			}
			release <- struct{}{}
		}
		wg.Wait()
	})
}

func TestChangedFileIsSeenWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, path, _ := opened(t, entry(t, "alice", "old"))
		f.Verify("alice", "old")
		next := path + ".next" // as long as before, and maybe within one tick: another file
		write(t, next, entry(t, "alice", "new"))
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		if !f.Verify("alice", "old") {
			t.Error("looked at the file again at once")
		}
		time.Sleep(checkEvery)
		if f.Verify("alice", "old") {
			t.Error("the old password is still right")
		}
		if !f.Verify("alice", "new") {
			t.Error("the new password is wrong")
		}
	})
}

func TestBadFileLeavesTheOldOneInForce(t *testing.T) {
	alice := entry(t, "alice", "p")
	synctest.Test(t, func(t *testing.T) {
		f, path, _ := opened(t, alice)
		check := func(step, username, wantErr string) {
			t.Helper()
			time.Sleep(checkEvery)
			if !f.Verify(username, "p") {
				t.Errorf("%s: %s is not verified", step, username)
			}
			if err := f.Err(); wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
				t.Errorf("%s: got error %v, want %q", step, err, wantErr)
			}
		}
		check("unchanged", "alice", "")
		write(t, path, alice, "bob:plain\n")
		check("bad line", "alice", path+": line 2: ")
		check("still bad", "alice", path+": line 2: ")
		write(t, path)
		check("empty", "alice", "no users")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check("gone", "alice", "no such file")
		check("still gone", "alice", "no such file")
		write(t, path, entry(t, "bob", "p"))
		check("good again", "bob", "")
		if f.Verify("alice", "p") {
			t.Error("alice is still verified although the good file is without her")
		}
	})
}

func TestReloadSaysWhatIsWrong(t *testing.T) {
	f, path, _ := opened(t, entry(t, "alice", "p"))
	write(t, path, "alice:plain\n")
	err := f.Reload()
	if err == nil || f.Err() != err {
		t.Errorf("got %v, and %v from Err", err, f.Err())
	}
	write(t, path, entry(t, "bob", "p"))
	if err := f.Reload(); err != nil || f.Err() != nil {
		t.Errorf("got %v, and %v from Err", err, f.Err())
	}
	if !f.Verify("bob", "p") {
		t.Error("bob is not verified right after Reload")
	}
}
