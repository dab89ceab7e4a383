package htpasswd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tg123/go-htpasswd"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/bcrypt"

	"larder/auth/watched"
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

// verify is for those who wait as long as it takes, and find nobody before them.
func verify(t *testing.T, f *File, username, password string) bool {
	t.Helper()
	ok, err := f.Verify(t.Context(), username, password)
	if err != nil {
		t.Error(err)
	}
	return ok
}

// opened is a File of these lines, the path of it, and how often it ran bcrypt.
func opened(t *testing.T, lines ...string) (f *File, path string, runs *atomic.Int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "htpasswd")
	write(t, path, lines...)
	f, err := Open(path, zap.NewNop())
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
				if got := verify(t, f, test.username, test.password); got != test.want {
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
		verify(t, f, step.username, step.password)
		if got := runs.Load() - before; got != step.want {
			t.Errorf("step %d, %s with %q: got %d bcrypt runs, want %d", i, step.username, step.password, got, step.want)
		}
	}
}

func TestMemoryIsBoundedByUsers(t *testing.T) {
	long := strings.Repeat("x", 72) // bcrypt takes no notice of what follows
	f, _, _ := opened(t, entry(t, "alice", long))
	for i := range 10 {
		if !verify(t, f, "alice", long+fmt.Sprint(i)) {
			t.Fatalf("password %d is wrong; this test needs many that are right", i)
		}
	}
	if got := len(f.users.Get().verified); got != 1 {
		t.Errorf("got %d passwords remembered, want 1", got)
	}
}

// TestRefusalsCostTheSame counts in units of the cheapest bcrypt.
func TestRefusalsCostTheSame(t *testing.T) {
	hash := func(username string, cost int) string {
		h, err := bcrypt.GenerateFromPassword([]byte(username), cost)
		if err != nil {
			t.Fatal(err)
		}
		return username + ":" + string(h) + "\n"
	}
	f, _, _ := opened(t, hash("cheap", bcrypt.MinCost), hash("dear", bcrypt.MinCost+3), hash("between", bcrypt.MinCost+1))
	u := f.users.Get()
	price := make(map[htpasswd.EncodedPasswd]int)
	for _, h := range u.hashes {
		price[h.EncodedPasswd] = 1 << (h.cost - bcrypt.MinCost)
	}
	for cost, h := range u.padding {
		if h != nil {
			price[h] = 1 << (cost - bcrypt.MinCost)
		}
	}
	total := 0
	match := f.match
	f.match = func(hash htpasswd.EncodedPasswd, password string) bool {
		total += price[hash]
		return match(hash, password)
	}
	for _, username := range []string{"cheap", "between", "dear", "nobody", ""} {
		total = 0
		if verify(t, f, username, "wrong") || total != 8 {
			t.Errorf("a wrong password of %q costs %d, want 8", username, total)
		}
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
				if verify(t, f, "alice", "wonderland") {
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

// gated makes every bcrypt of f wait, of which n may run at once.
func gated(f *File, n int) (running *atomic.Int64, release chan struct{}) {
	f.slots, f.places = make(chan struct{}, n), make(chan struct{}, n+maxWaiting)
	running, release = new(atomic.Int64), make(chan struct{})
	match := f.match
	f.match = func(hash htpasswd.EncodedPasswd, password string) bool {
		running.Add(1)
		defer running.Add(-1)
		<-release
		return match(hash, password)
	}
	return running, release
}

func TestWrongPasswordsWaitInAShortQueueAndHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := opened(t, entry(t, "alice", "wonderland"), entry(t, "bob", "p"))
		verify(t, f, "alice", "wonderland")
		running, release := gated(f, 3)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var refused, left atomic.Int64
		const guesses = 200
		for i := range guesses {
			wg.Go(func() {
				ok, err := f.Verify(ctx, "mallory", fmt.Sprint(i))
				switch {
				case ok:
					t.Errorf("guess %d is right", i)
				case errors.Is(err, ErrBusy):
					refused.Add(1)
				case errors.Is(err, context.Canceled):
					left.Add(1)
				}
			})
		}
		synctest.Wait()
		if r, n := running.Load(), refused.Load(); r != 3 || n != guesses-3-maxWaiting {
			t.Errorf("%d at once and %d refused, want 3 and %d", r, n, guesses-3-maxWaiting)
		}
		if !verify(t, f, "alice", "wonderland") {
			t.Error("a password that was right before is not taken")
		}
		if _, err := f.Verify(t.Context(), "bob", "p"); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v, want %v", err, ErrBusy)
		}
		leave()
		synctest.Wait()
		if n := left.Load(); n != maxWaiting {
			t.Errorf("%d have left the queue, want %d", n, maxWaiting)
		}
		wg.Go(func() {
			if !verify(t, f, "bob", "p") {
				t.Error("a first sign-in after those that left is refused")
			}
		})
		close(release)
		wg.Wait()
	})
}

// A crowd that guesses is let have half of the processors, and a short queue.
func TestQueueIsAsLongAsOpenSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := opened(t, entry(t, "alice", "wonderland"))
		release := make(chan struct{})
		var running, refused atomic.Int64
		f.match = func(htpasswd.EncodedPasswd, string) bool {
			running.Add(1)
			<-release
			return false
		}
		const guesses = 200
		var wg sync.WaitGroup
		for i := range guesses {
			wg.Go(func() {
				if _, err := f.Verify(t.Context(), "mallory", fmt.Sprint(i)); errors.Is(err, ErrBusy) {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		half := int64(runtime.GOMAXPROCS(0)+1) / 2
		if got, n := running.Load(), refused.Load(); got != half || n != guesses-half-maxWaiting {
			t.Errorf("%d at once and %d refused, want %d and %d", got, n, half, guesses-half-maxWaiting)
		}
		close(release)
		wg.Wait()
	})
}

func TestWhoWaitsForAnotherSCheckOutlivesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, runs := opened(t, entry(t, "alice", "wonderland"))
		_, release := gated(f, 1)
		var wg sync.WaitGroup
		wg.Go(func() { verify(t, f, "mallory", "x") }) // has the slot
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := f.Verify(ctx, "alice", "wonderland"); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v, want %v", err, context.Canceled)
			}
		})
		synctest.Wait()
		for range 10 {
			wg.Go(func() {
				if !verify(t, f, "alice", "wonderland") {
					t.Error("refused as another has left")
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		close(release)
		wg.Wait()
		if got := runs.Load(); got != 2 {
			t.Errorf("%d bcrypt runs, want 2", got)
		}
	})
}

func TestChangedFileIsSeenWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, path, _ := opened(t, entry(t, "alice", "old"))
		verify(t, f, "alice", "old")
		next := path + ".next" // as long as before, and maybe within one tick: another file
		write(t, next, entry(t, "alice", "new"))
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		if !verify(t, f, "alice", "old") {
			t.Error("looked at the file again at once")
		}
		time.Sleep(watched.Interval)
		if verify(t, f, "alice", "old") {
			t.Error("the old password is still right")
		}
		if !verify(t, f, "alice", "new") {
			t.Error("the new password is wrong")
		}
	})
}

func TestBadFileLeavesTheOldOneInForce(t *testing.T) {
	alice := entry(t, "alice", "p")
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "htpasswd")
		write(t, path, alice)
		core, logs := observer.New(zap.InfoLevel)
		f, err := Open(path, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		check := func(step, username, wantError string, news int) {
			t.Helper()
			for range 3 {
				time.Sleep(watched.Interval)
				if !verify(t, f, username, "p") {
					t.Errorf("%s: %s is not verified", step, username)
				}
			}
			lines := logs.TakeAll()
			if len(lines) != news {
				t.Errorf("%s: %d lines in the log, want %d", step, len(lines), news)
			}
			for _, line := range lines {
				if text := fmt.Sprint(line.ContextMap()["error"]); (line.Level == zap.ErrorLevel) != (wantError != "") || !strings.Contains(text, wantError) {
					t.Errorf("%s: logged %v with error %q, want %q", step, line.Entry, text, wantError)
				}
			}
		}
		check("unchanged", "alice", "", 0)
		write(t, path, alice, "bob:plain\n")
		check("bad line", "alice", path+": line 2: ", 1)
		write(t, path)
		check("empty", "alice", "no users", 1)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check("gone", "alice", "no such file", 1)
		write(t, path, entry(t, "bob", "p"))
		check("good again", "bob", "", 1)
		if verify(t, f, "alice", "p") {
			t.Error("alice is still verified although the good file is without her")
		}
	})
}
