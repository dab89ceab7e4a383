package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/store"
)

// Conform tests what every store does. a and b are two clients of one place, at which
// there is nothing. The tests named in without are left out.
func Conform(t *testing.T, a, b store.Store, without ...string) {
	tests := map[string]func(t *testing.T, a, b store.Store){
		"ranges":            testRanges,
		"empty object":      testEmpty,
		"label":             testLabel,
		"put replaces":      testPut,
		"short content":     testShort,
		"what is not there": testAbsent,
		"create":            testCreate,
		"replace":           testReplace,
		"one creator wins":  testCreateRace,
		"one replacer wins": testReplaceRace,
		"compose":           testCompose,
		"list":              testList,
		"cancelled":         testCancelled,
		"keys":              testKeys,
	}
	for name, test := range tests {
		if !slices.Contains(without, name) {
			t.Run(name, func(t *testing.T) { test(t, a, b) })
		}
	}
}

// content is size bytes that are all different from their neighbours'.
func content(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	return data
}

func put(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	label := store.Label{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := s.Put(t.Context(), key, bytes.NewReader(data), label); err != nil {
		t.Fatalf("Put %s: %v", key, err)
	}
}

func get(ctx context.Context, s store.Store, key string, offset, length int64) ([]byte, store.Info, error) {
	body, info, err := s.Get(ctx, key, offset, length)
	if err != nil {
		return nil, store.Info{}, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	return data, info, err
}

func wantContent(t *testing.T, s store.Store, key string, want []byte) store.Info {
	t.Helper()
	got, info, err := get(t.Context(), s, key, 0, -1)
	if err != nil {
		t.Fatalf("Get %s: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has other content: %d bytes, want %d", key, len(got), len(want))
	}
	return info
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func testRanges(t *testing.T, a, b store.Store) {
	data := content(100_000)
	put(t, a, "ranges/object", data)
	tests := []struct {
		offset, length int64
		want           []byte
		err            error
	}{
		{0, -1, data, nil},
		{0, 1, data[:1], nil},
		{0, 100_000, data, nil},
		{0, 200_000, data, nil},
		{50, 10, data[50:60], nil},
		{99_999, 1, data[99_999:], nil},
		{99_999, -1, data[99_999:], nil},
		{99_990, 100, data[99_990:], nil},
		{100_000, -1, nil, store.ErrRange},
		{100_000, 1, nil, store.ErrRange},
		{200_000, 1, nil, store.ErrRange},
		{0, 0, nil, store.ErrRange},
		{-1, 1, nil, store.ErrRange},
		{0, -2, nil, store.ErrRange},
	}
	for _, test := range tests {
		what := fmt.Sprintf("%d bytes at %d", test.length, test.offset)
		got, info, err := get(t.Context(), b, "ranges/object", test.offset, test.length)
		wantError(t, what, err, test.err)
		if !bytes.Equal(got, test.want) {
			t.Errorf("%s: got %d bytes, want %d", what, len(got), len(test.want))
		}
		if err == nil && (info.Size != 100_000 || info.Length != 100_000 || info.Digest != digest.FromBytes(data)) {
			t.Errorf("%s: info %+v is not that of the whole object", what, info)
		}
	}
}

func testEmpty(t *testing.T, a, b store.Store) {
	put(t, a, "empty", nil)
	if info := wantContent(t, b, "empty", nil); info.Size != 0 || info.Length != 0 {
		t.Errorf("info: %+v", info)
	}
	_, _, err := get(t.Context(), b, "empty", 0, 1)
	wantError(t, "first byte of nothing", err, store.ErrRange)
}

func testLabel(t *testing.T, a, b store.Store) {
	// The label is kept, not checked: who reads has to.
	d := digest.FromString("something else")
	reader := bytes.NewReader([]byte("before content"))
	reader.Seek(7, io.SeekStart)
	began := time.Now()
	if err := a.Put(t.Context(), "label/a", reader, store.Label{Digest: d, Size: 7}); err != nil {
		t.Fatal(err)
	}
	got := wantContent(t, b, "label/a", []byte("content"))
	if got.Digest != d || got.Length != 7 || got.Size != 7 || got.Version == "" {
		t.Errorf("info of Get: %+v", got)
	}
	if age := got.Modified.Sub(began); age < -2*time.Second || age > time.Minute {
		t.Errorf("modified %v after it was put", age)
	}
	if info, err := b.Head(t.Context(), "label/a"); err != nil || info.Digest != d || info.Length != 7 || info.Size != 7 || info.Version != got.Version {
		t.Errorf("info of Head: %+v, %v; of Get: %+v", info, err, got)
	}
	if err := a.Put(t.Context(), "label/b", strings.NewReader("x"), store.Label{Size: 1}); err != nil {
		t.Fatal(err)
	}
	if info, err := b.Head(t.Context(), "label/b"); err != nil || info.Digest != "" || info.Length != 1 {
		t.Errorf("without a digest: %+v, %v", info, err)
	}
}

func testPut(t *testing.T, a, b store.Store) {
	put(t, a, "put", []byte("one"))
	before := wantContent(t, b, "put", []byte("one"))
	put(t, b, "put", []byte("three"))
	after := wantContent(t, a, "put", []byte("three"))
	if before.Version == after.Version {
		t.Errorf("version %s stands for two contents", after.Version)
	}
}

func testShort(t *testing.T, a, b store.Store) {
	if err := a.Put(t.Context(), "short", strings.NewReader("abc"), store.Label{Size: 4}); err == nil {
		t.Error("three bytes were taken for four")
	}
	_, err := b.Head(t.Context(), "short")
	wantError(t, "Head of what was not whole", err, store.ErrNotExist)
}

func testAbsent(t *testing.T, a, _ store.Store) {
	_, _, err := a.Get(t.Context(), "absent/object", 0, -1)
	wantError(t, "Get", err, store.ErrNotExist)
	_, _, err = a.Get(t.Context(), "absent/object", 5, 5)
	wantError(t, "Get of a range", err, store.ErrNotExist)
	_, err = a.Head(t.Context(), "absent/object")
	wantError(t, "Head", err, store.ErrNotExist)
	wantError(t, "Delete", a.Delete(t.Context(), "absent/object"), nil)
	err = a.Compose(t.Context(), "absent/composed", []string{"absent/object"}, store.Label{})
	wantError(t, "Compose of one", err, store.ErrNotExist)
	err = a.Compose(t.Context(), "absent/composed", []string{"absent/object", "absent/other"}, store.Label{})
	wantError(t, "Compose of two", err, store.ErrNotExist)

	put(t, a, "absent/deleted", []byte("x"))
	wantError(t, "Delete", a.Delete(t.Context(), "absent/deleted"), nil)
	_, err = a.Head(t.Context(), "absent/deleted")
	wantError(t, "Head of what was deleted", err, store.ErrNotExist)
}

func testCreate(t *testing.T, a, b store.Store) {
	version, err := a.Create(t.Context(), "create/x", []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Create(t.Context(), "create/x", []byte("second"))
	wantError(t, "Create of what is there", err, store.ErrChanged)
	if info := wantContent(t, b, "create/x", []byte("first")); info.Version != version || info.Length != -1 {
		t.Errorf("created as version %s, info %+v", version, info)
	}
	if err := b.Delete(t.Context(), "create/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Create(t.Context(), "create/x", nil); err != nil {
		t.Errorf("Create of nothing after Delete: %v", err)
	}
}

func testReplace(t *testing.T, a, b store.Store) {
	_, err := a.Replace(t.Context(), "replace", []byte("first"), "version")
	wantError(t, "Replace of nothing", err, store.ErrChanged)
	first, err := a.Create(t.Context(), "replace", []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Replace(t.Context(), "replace", []byte("second"), first)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Replace(t.Context(), "replace", []byte("third"), first)
	wantError(t, "Replace of what was replaced", err, store.ErrChanged)
	if info := wantContent(t, a, "replace", []byte("second")); info.Version != second {
		t.Errorf("replaced by version %s, info %+v", second, info)
	}
	if _, err := a.Replace(t.Context(), "replace", []byte("third"), second); err != nil {
		t.Error(err)
	}
}

// race calls n contenders at once and returns what the winners wrote. The others have
// to have lost, which at some stores is an error that asks to come again.
func race(t *testing.T, contend func(i int) error) []int {
	t.Helper()
	const n = 24
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []int
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			switch err := contend(i); {
			case err == nil:
				mu.Lock()
				winners = append(winners, i)
				mu.Unlock()
			case !errors.Is(err, store.ErrChanged):
				t.Errorf("contender %d: %v", i, err)
			}
		})
	}
	close(start)
	wg.Wait()
	return winners
}

func testCreateRace(t *testing.T, a, b store.Store) {
	for round := range 10 {
		key := fmt.Sprintf("race/create/%d", round)
		winners := race(t, func(i int) error {
			_, err := []store.Store{a, b}[i%2].Create(t.Context(), key, fmt.Appendf(nil, "contender %d", i))
			return err
		})
		if len(winners) != 1 {
			t.Fatalf("round %d: %d have won", round, len(winners))
		}
		wantContent(t, a, key, fmt.Appendf(nil, "contender %d", winners[0]))
	}
}

func testReplaceRace(t *testing.T, a, b store.Store) {
	version, err := a.Create(t.Context(), "race/replace", []byte("nobody's"))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		var next atomic.Value
		winners := race(t, func(i int) error {
			newVersion, err := []store.Store{a, b}[i%2].Replace(t.Context(), "race/replace", fmt.Appendf(nil, "round %d contender %d", round, i), version)
			if err == nil {
				next.Store(newVersion)
			}
			return err
		})
		if len(winners) != 1 {
			t.Fatalf("round %d: %d have won", round, len(winners))
		}
		wantContent(t, a, "race/replace", fmt.Appendf(nil, "round %d contender %d", round, winners[0]))
		version = next.Load().(string)
	}
}

func testCompose(t *testing.T, a, b store.Store) {
	data := content(2*store.MinPart + 1000)
	parts := []string{"compose/parts/0", "compose/parts/1", "compose/parts/2"}
	put(t, a, parts[0], data[:store.MinPart])
	put(t, b, parts[1], data[store.MinPart:2*store.MinPart])
	put(t, a, parts[2], data[2*store.MinPart:])
	label := store.Label{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := a.Compose(t.Context(), "compose/whole", parts, label); err != nil {
		t.Fatal(err)
	}
	if info := wantContent(t, b, "compose/whole", data); info.Digest != label.Digest || info.Length != label.Size || info.Size != label.Size {
		t.Errorf("info: %+v", info)
	}
	wantContent(t, b, parts[1], data[store.MinPart:2*store.MinPart])

	label = store.Label{Digest: digest.FromString("as it is called"), Size: 1000}
	if err := b.Compose(t.Context(), "compose/one", parts[2:], label); err != nil {
		t.Fatal(err)
	}
	if info := wantContent(t, a, "compose/one", data[2*store.MinPart:]); info.Digest != label.Digest || info.Length != 1000 {
		t.Errorf("info of one part: %+v", info)
	}
	if err := a.Compose(t.Context(), "compose/none", nil, label); err == nil {
		t.Error("an object was made of nothing")
	}
}

func testList(t *testing.T, a, b store.Store) {
	for _, key := range []string{"list/a", "list/b/c", "list/b/d/e", "list/b-d", "listing", "list/z"} {
		put(t, a, key, []byte(key))
	}
	if err := a.Delete(t.Context(), "list/z"); err != nil {
		t.Fatal(err)
	}
	tests := map[string][]string{
		"list/":      {"list/a", "list/b-d", "list/b/c", "list/b/d/e"},
		"list/b/":    {"list/b/c", "list/b/d/e"},
		"list/none/": nil,
	}
	for prefix, want := range tests {
		var got []string
		for item, err := range b.List(t.Context(), prefix) {
			if err != nil {
				t.Fatalf("List %s: %v", prefix, err)
			}
			if item.Size != int64(len(item.Key)) || time.Since(item.Modified).Abs() > time.Hour {
				t.Errorf("item: %+v", item)
			}
			got = append(got, item.Key)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("List %s: got %v, want %v", prefix, got, want)
		}
	}
	all := 0
	for item, err := range b.List(t.Context(), "") {
		if err != nil || store.CheckKey(item.Key) != nil {
			t.Errorf("List: %q, %v", item.Key, err)
		}
		if all++; all == 3 {
			break
		}
	}
	if all != 3 {
		t.Errorf("List of everything: %d objects", all)
	}
}

// operations are all that go to a store.
func operations(s store.Store, key string) map[string]func(ctx context.Context) error {
	label := store.Label{Size: 1}
	return map[string]func(ctx context.Context) error{
		"get":     func(ctx context.Context) error { _, _, err := get(ctx, s, key, 0, -1); return err },
		"head":    func(ctx context.Context) error { _, err := s.Head(ctx, key); return err },
		"put":     func(ctx context.Context) error { return s.Put(ctx, key, strings.NewReader("x"), label) },
		"create":  func(ctx context.Context) error { _, err := s.Create(ctx, key, []byte("x")); return err },
		"replace": func(ctx context.Context) error { _, err := s.Replace(ctx, key, []byte("x"), "v"); return err },
		"compose": func(ctx context.Context) error { return s.Compose(ctx, key, []string{key, key}, label) },
		"delete":  func(ctx context.Context) error { return s.Delete(ctx, key) },
		"list": func(ctx context.Context) error {
			for _, err := range s.List(ctx, key+"/") {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func testCancelled(t *testing.T, a, b store.Store) {
	data := content(8 << 20)
	put(t, a, "cancelled", data)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, operation := range operations(a, "cancelled") {
		err := operation(gone)
		wantError(t, name, err, context.Canceled)
		if e, ok := errors.AsType[*store.Error](err); !ok || e.Op != name || !strings.HasPrefix(e.Key, "cancelled") {
			t.Errorf("%s: %v does not say what could not be done", name, err)
		}
	}
	wantContent(t, b, "cancelled", data)

	ctx, cancel := context.WithCancel(t.Context())
	body, _, err := a.Get(ctx, "cancelled", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = io.Copy(io.Discard, body)
	wantError(t, "body", err, context.Canceled)
}

func testKeys(t *testing.T, a, _ store.Store) {
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".hidden", "a/.hidden",
		"a b", "a\x00b", "a\nb", "a\\b", "ä", "a?b", "a%2fb", strings.Repeat("a", 201), strings.Repeat("a/", 300) + "a",
	} {
		for name, operation := range operations(a, key) {
			if err := operation(t.Context()); err == nil {
				t.Errorf("%s took the key %q", name, key)
			}
		}
	}
	key := strings.Repeat("a", 200) + "/" + strings.Repeat("b", 200) + "/" + strings.Repeat("-", 100)
	put(t, a, key, []byte("x"))
	wantContent(t, a, key, []byte("x"))
}
