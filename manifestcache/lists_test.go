package manifestcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

// listing is what upstream says when it is asked for any list.
type listing struct {
	manifestcache.List
	err   error // instead of an answer
	asked atomic.Int64
}

func newListing(body string) *listing {
	return &listing{List: manifestcache.List{ContentType: "application/json", Body: []byte(body)}}
}

func (l *listing) fetch(context.Context) (*manifestcache.List, error) {
	l.asked.Add(1)
	if l.err != nil {
		return nil, l.err
	}
	list := l.List
	return &list, nil
}

const repositoryOfLists = "docker.io/library/alpine"

// wantList checks for what upstream says, with this outcome, and for whether it
// was asked.
func (l *listing) want(t *testing.T, c *manifestcache.Cache, name string, outcome manifestcache.Outcome) *manifestcache.List {
	t.Helper()
	before := l.asked.Load()
	got, err := c.List(t.Context(), repositoryOfLists, name, l.fetch)
	if err != nil {
		t.Errorf("%s: %v, want %v", name, err, outcome)
		return nil
	}
	defer got.Content.Close()
	body, err := io.ReadAll(got.Content)
	if err != nil || got.Size != int64(len(body)) {
		t.Errorf("%s: %d bytes of %d, %v", name, len(body), got.Size, err)
	}
	if got.Outcome != outcome || !bytes.Equal(body, l.Body) || got.ContentType != l.ContentType || got.Filters != l.Filters || got.Next != l.Next {
		t.Errorf("%s: got %v %q %q %q and %.100q, want %v %q %q %q and %.100q", name,
			got.Outcome, got.ContentType, got.Filters, got.Next, body, outcome, l.ContentType, l.Filters, l.Next, l.Body)
	}
	if asked := l.asked.Load() > before; asked != (outcome != manifestcache.Hit) {
		t.Errorf("%s: %v, and upstream was asked: %v", name, outcome, asked)
	}
	return got
}

func (l *listing) wantError(t *testing.T, c *manifestcache.Cache, name string, want error) {
	t.Helper()
	if got, err := c.List(t.Context(), repositoryOfLists, name, l.fetch); !errors.Is(err, want) {
		t.Errorf("%s: %v, %v; want %v", name, got, err, want)
	}
}

func listPath(dir, repository, name string) string {
	return filepath.Join(dir, "lists", digest.FromString(repository).Encoded(), digest.FromString(name).Encoded())
}

func listConfig() manifestcache.Config {
	cfg := config()
	cfg.ListTTL = time.Minute
	return cfg
}

func TestListOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, listConfig())
		up := newListing(`{"tags":["1"]}`)
		up.Next, up.Filters = "last=1&n=1", "artifactType"
		up.want(t, c, "tags/list?n=1", manifestcache.Miss)
		up.want(t, c, "tags/list?n=1", manifestcache.Hit)
		up.want(t, c, "tags/list?n=2", manifestcache.Miss) // another list
		time.Sleep(59 * time.Second)
		if got := up.want(t, c, "tags/list?n=1", manifestcache.Hit); got.Age != 59*time.Second {
			t.Errorf("age %v, want 59s", got.Age)
		}
		time.Sleep(time.Second)
		up.Body = []byte(`{"tags":["2"]}`)
		up.want(t, c, "tags/list?n=1", manifestcache.Miss)
		up.want(t, c, "tags/list?n=1", manifestcache.Hit)

		time.Sleep(time.Hour)
		up.err = errOther
		up.wantError(t, c, "tags/list?n=1", errOther)
		up.err = errDown
		if got := up.want(t, c, "tags/list?n=1", manifestcache.Stale); got.Age != time.Hour {
			t.Errorf("age %v, want 1h", got.Age)
		}
		up.wantError(t, c, "tags/list?n=3", errDown)
		stop()
		c, _ = running(t, dir, listConfig())
		up.want(t, c, "tags/list?n=1", manifestcache.Stale)
		up.err = nil
		up.want(t, c, "tags/list?n=1", manifestcache.Miss)
		up.want(t, c, "tags/list?n=1", manifestcache.Hit)
	})
}

func TestZeroListTTLAlwaysAsks(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newListing("{}")
	for range 3 {
		up.want(t, c, "tags/list", manifestcache.Miss)
	}
	up.err = errDown
	up.want(t, c, "tags/list", manifestcache.Stale)
}

// What is gone or forbidden is not stale afterwards, and a no is not remembered.
func TestNoEndsAList(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newListing("{}")
	up.want(t, c, "tags/list", manifestcache.Miss)
	up.err = errGone
	up.wantError(t, c, "tags/list", errGone)
	up.err = errDown
	up.wantError(t, c, "tags/list", errDown)
	if list := files(t, dir); len(list) != 0 {
		t.Errorf("files left: %q", list)
	}
	up.err = nil
	up.want(t, c, "tags/list", manifestcache.Miss)
}

func TestDamagedListIsAskedForAnew(t *testing.T) {
	damages := map[string]func(path string) error{
		"another list's": func(path string) error {
			other := listPath(strings.TrimSuffix(filepath.Dir(filepath.Dir(path)), "/lists"), repositoryOfLists, "tags/list?n=1")
			return os.Rename(other, path)
		},
		"another type": func(path string) error {
			data, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, bytes.Replace(data, []byte("application/json"), []byte("application/html"), 1), 0o600))
		},
		"another tag": func(path string) error {
			data, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, bytes.Replace(data, []byte("latest"), []byte("newest"), 1), 0o600))
		},
	}
	for name, damage := range damagesAnd(damages) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, listConfig())
			up := newListing(`{"tags":["latest"]}`)
			up.want(t, c, "tags/list?n=1", manifestcache.Miss)
			up.want(t, c, "tags/list", manifestcache.Miss)
			if err := damage(listPath(dir, repositoryOfLists, "tags/list")); err != nil {
				t.Fatal(err)
			}
			up.err = errDown
			up.wantError(t, c, "tags/list", errDown)
			up.err = nil
			up.want(t, c, "tags/list", manifestcache.Miss)
			up.want(t, c, "tags/list", manifestcache.Hit)
		})
	}
}

// damagesAnd are the damages of all files and more.
func damagesAnd(more map[string]func(path string) error) map[string]func(path string) error {
	all := make(map[string]func(path string) error)
	for _, m := range []map[string]func(path string) error{damages, more} {
		maps.Copy(all, m)
	}
	return all
}

func TestManyWhoAskForAListAreOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), listConfig())
		up := newListing("{}")
		gate := make(chan struct{})
		gated := func(ctx context.Context) (*manifestcache.List, error) {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return up.fetch(ctx)
		}
		first, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.List(first, repositoryOfLists, "tags/list", gated); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				l, err := c.List(t.Context(), repositoryOfLists, "tags/list", gated)
				if err != nil || string(l.Body) != "{}" {
					t.Errorf("got %v, %v", l, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := up.asked.Load(); n != 1 {
			t.Errorf("upstream was asked %d times, want once", n)
		}
	})
}

// Clients choose what is listed. What is used is kept, as far as there is room.
func TestListsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, fit, more = 8<<20 - 4096, 8, 3
		dir := t.TempDir()
		c, stop := running(t, dir, listConfig())
		up := newListing(strings.Repeat(" ", size))
		name := func(i int) string { return fmt.Sprintf("tags/list?n=%d", i) }
		for i := range fit + more {
			up.want(t, c, name(i), manifestcache.Miss)
			time.Sleep(time.Millisecond)
			up.want(t, c, name(0), manifestcache.Hit) // used all the time
		}
		wantKept := func() {
			t.Helper()
			s := c.Stats()
			if n := len(files(t, dir)); n != fit || s.Lists != fit || s.ListBytes != fit*(size+4096) {
				t.Errorf("%d files, stats %d of %d bytes; want %d", n, s.Lists, s.ListBytes, fit)
			}
		}
		wantKept()
		for i, kept := range map[int]bool{0: true, 1: false, more: false, more + 1: true, fit + more - 1: true} {
			if _, err := os.Stat(listPath(dir, repositoryOfLists, name(i))); (err == nil) != kept {
				t.Errorf("list %d is there: %v, want %v", i, err == nil, kept)
			}
		}
		stop()
		c, _ = running(t, dir, listConfig())
		wantKept()
		up.want(t, c, name(fit+more), manifestcache.Miss)
		wantKept()
	})
}

func TestListsExpireAfterTheirLastUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), listConfig()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newListing("{}")
		up.want(t, c, "tags/list", manifestcache.Miss)
		up.want(t, c, "tags/list?n=1", manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		up.err = errDown
		up.want(t, c, "tags/list", manifestcache.Stale)
		time.Sleep(2 * time.Hour)
		if got, want := files(t, dir), []string{strings.TrimPrefix(listPath(dir, repositoryOfLists, "tags/list"), dir+"/")}; !slices.Equal(got, want) {
			t.Errorf("files %q, want %q", got, want)
		}
		stop() // what is on disk is when upstream last said it
		_, _ = running(t, dir, cfg)
		time.Sleep(time.Second)
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("files %q, want none", got)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "lists")); err != nil || len(left) != 0 {
			t.Errorf("directories %v (%v), want none", left, err)
		}
	})
}

// A query may hold what only upstream and the client should know.
func TestQueriesOfListsAreNotWritten(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newListing("{}")
	up.want(t, c, "referrers/sha256:x?token=hush", manifestcache.Miss)
	data, err := os.ReadFile(listPath(dir, repositoryOfLists, "referrers/sha256:x?token=hush"))
	if err != nil || bytes.Contains(data, []byte("hush")) || !bytes.Contains(data, []byte(repositoryOfLists+" referrers/sha256:x")) {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestSameListIsNotWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, config())
		up := newListing("{}")
		path := listPath(dir, repositoryOfLists, "tags/list")
		up.want(t, c, "tags/list", manifestcache.Miss)
		first, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		up.want(t, c, "tags/list", manifestcache.Miss)
		second, err := os.Stat(path)
		if err != nil || !os.SameFile(first, second) || second.ModTime().Sub(first.ModTime()) != time.Hour {
			t.Errorf("%v: the file is another, or of %v and not of an hour later than %v", err, second.ModTime(), first.ModTime())
		}
	})
}

func TestListThatCannotBeStoredIsServed(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, listConfig())
	up := newListing("{}")
	if err := os.WriteFile(filepath.Join(dir, "lists"), nil, 0o600); err != nil { // no directory can be made
		t.Fatal(err)
	}
	up.want(t, c, "tags/list", manifestcache.Miss)
	up.want(t, c, "tags/list", manifestcache.Miss)
	if s := c.Stats(); s.Lists != 0 {
		t.Errorf("%d lists counted, want none", s.Lists)
	}
}

// Large lists are not held in memory while clients read them, and what a client
// reads does not change under it.
func TestLargeListIsReadFromItsFile(t *testing.T) {
	c := openCache(t, t.TempDir(), manifestcache.Config{ListTTL: time.Hour})
	large := func(tag string) string { return `{"tags":["` + strings.Repeat(tag, 300<<10) + `"]}` }
	up := newListing(large("a"))
	read := func(l *manifestcache.List) string {
		t.Helper()
		body, err := io.ReadAll(l.Content)
		if err != nil || l.Body != nil || l.Size != int64(len(body)) {
			t.Errorf("%d bytes of %d, %d of them in memory, %v", len(body), l.Size, len(l.Body), err)
		}
		return string(body)
	}
	var lists []*manifestcache.List
	for range 2 {
		l, err := c.List(t.Context(), repositoryOfLists, "tags/list", up.fetch)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Content.Close()
		lists = append(lists, l)
	}
	up.Body = []byte(large("b"))
	next, err := c.List(t.Context(), repositoryOfLists, "tags/list?n=1", up.fetch)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Content.Close()
	if read(next) != large("b") || read(lists[0]) != large("a") || read(lists[1]) != large("a") {
		t.Error("got another list")
	}
	if lists[0].Outcome != manifestcache.Miss || lists[1].Outcome != manifestcache.Hit {
		t.Errorf("outcomes are %v and %v", lists[0].Outcome, lists[1].Outcome)
	}
}

// A clock that has gone back makes no list last.
func TestListOfTheFutureIsAskedForAnew(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, manifestcache.Config{ListTTL: time.Hour})
	up := newListing(`{"tags":["1"]}`)
	up.want(t, c, "tags/list", manifestcache.Miss)
	up.want(t, c, "tags/list", manifestcache.Hit)
	files, err := filepath.Glob(filepath.Join(dir, "lists", "*", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v are its files (%v)", files, err)
	}
	if err := os.Chtimes(files[0], time.Time{}, time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	up.want(t, c, "tags/list", manifestcache.Miss)
}
