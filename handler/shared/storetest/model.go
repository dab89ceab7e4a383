// Package storetest helps to test what uses a store: a model of one in memory, a
// real S3 gateway, and what every store has to do.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"larder/handler/shared/store"
)

// Op is something that is asked of a store.
type Op string

// Read is one call of Read on the body that a Get has opened; a model is asked
// nothing by it, but it may be slow or break.
const (
	Get     Op = "get"
	Read    Op = "read"
	Head    Op = "head"
	Put     Op = "put"
	Create  Op = "create"
	Replace Op = "replace"
	Compose Op = "compose"
	Delete  Op = "delete"
	List    Op = "list"
)

// Model is a store in memory, as slow and as faulty as a test wants. The zero Model
// is empty, answers at once and never fails. Its fields are set before it is used.
// Time passes by timers only, so that it works in a bubble of testing/synctest.
type Model struct {
	Latency      func(op Op) time.Duration     // before anything happens; nil: none
	Fault        func(op Op, key string) error // what happens instead; nil: nothing
	Lost         func(op Op, key string) error // what is said of an op that has been done; nil: that it has
	Signed       func(key string) (url string) // nil: SignedURL is ErrUnsupported
	NoConditions bool                          // Create and Replace are ErrUnsupported
	SmallParts   bool                          // Compose takes parts of less than MinPart

	mu      sync.Mutex // guards what follows
	objects map[string]object
	version int
	count   Count
}

// Count is what a Model was asked and has moved.
type Count struct {
	Requests map[Op]int // Read: how often bodies were read
	In, Out  int64      // bytes of content
}

type object struct {
	content []byte // never changed
	info    store.Info
}

var _ store.Store = (*Model)(nil)

// Count is what has been asked and moved so far.
func (m *Model) Count() Count {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := m.count
	count.Requests = maps.Clone(count.Requests)
	return count
}

// Keys are those of all objects, in order.
func (m *Model) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// begin counts a request, waits and fails as wanted.
func (m *Model) begin(ctx context.Context, op Op, key string) error {
	m.mu.Lock()
	if m.count.Requests == nil {
		m.count.Requests = make(map[Op]int)
	}
	m.count.Requests[op]++
	m.mu.Unlock()
	if err := m.wait(ctx, op); err != nil {
		return wrap(op, key, err)
	}
	if m.Fault != nil {
		return wrap(op, key, m.Fault(op, key))
	}
	return nil
}

func (m *Model) wait(ctx context.Context, op Op) error {
	if m.Latency != nil {
		if d := m.Latency(op); d > 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
		}
	}
	return context.Cause(ctx)
}

// end is the answer to what has been done.
func (m *Model) end(op Op, key string) error {
	if m.Lost == nil {
		return nil
	}
	return wrap(op, key, m.Lost(op, key))
}

// wrap makes err what a store may return.
func wrap(op Op, key string, err error) error {
	switch err {
	case nil, store.ErrNotExist, store.ErrChanged, store.ErrUnsupported, store.ErrRange:
		return err
	}
	if _, ok := err.(*store.Error); ok {
		return err
	}
	return &store.Error{Op: string(op), Key: key, Err: err}
}

// Get implements store.Store.
func (m *Model) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	if err := cmp.Or(store.CheckKey(key), store.CheckRange(offset, length)); err != nil {
		return nil, store.Info{}, wrap(Get, key, err)
	}
	if err := m.begin(ctx, Get, key); err != nil {
		return nil, store.Info{}, err
	}
	o, err := m.find(key)
	if err != nil {
		return nil, store.Info{}, err
	}
	size := int64(len(o.content))
	if offset >= size && (offset > 0 || length > 0) {
		return nil, store.Info{}, store.ErrRange
	}
	if length < 0 || length > size-offset {
		length = size - offset
	}
	return &body{m: m, ctx: ctx, key: key, rest: bytes.NewReader(o.content[offset : offset+length])}, o.info, nil
}

// Head implements store.Store.
func (m *Model) Head(ctx context.Context, key string) (store.Info, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Info{}, wrap(Head, key, err)
	}
	if err := m.begin(ctx, Head, key); err != nil {
		return store.Info{}, err
	}
	o, err := m.find(key)
	return o.info, err
}

// Put implements store.Store.
func (m *Model) Put(ctx context.Context, key string, content io.ReadSeeker, label store.Label) error {
	if err := store.CheckKey(key); err != nil {
		return wrap(Put, key, err)
	}
	if err := m.begin(ctx, Put, key); err != nil {
		return err
	}
	data := make([]byte, label.Size)
	if _, err := io.ReadFull(content, data); err != nil {
		return wrap(Put, key, fmt.Errorf("content of %d bytes: %w", label.Size, err))
	}
	m.mu.Lock()
	m.set(key, data, label)
	m.mu.Unlock()
	return m.end(Put, key)
}

// Create implements store.Store.
func (m *Model) Create(ctx context.Context, key string, content []byte) (version string, err error) {
	return m.change(ctx, Create, key, content, "")
}

// Replace implements store.Store.
func (m *Model) Replace(ctx context.Context, key string, content []byte, version string) (newVersion string, err error) {
	return m.change(ctx, Replace, key, content, version)
}

// change writes content if what is there has the version.
func (m *Model) change(ctx context.Context, op Op, key string, content []byte, version string) (string, error) {
	if err := store.CheckKey(key); err != nil {
		return "", wrap(op, key, err)
	}
	if err := m.begin(ctx, op, key); err != nil {
		return "", err
	}
	if m.NoConditions {
		return "", store.ErrUnsupported
	}
	newVersion, err := m.swap(key, content, version)
	if err != nil {
		return "", err
	}
	if err := m.end(op, key); err != nil {
		return "", err
	}
	return newVersion, nil
}

func (m *Model) swap(key string, content []byte, version string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects[key].info.Version != version { // "" if there is none
		return "", store.ErrChanged
	}
	m.set(key, bytes.Clone(content), store.Label{Size: -1})
	return m.objects[key].info.Version, nil
}

// Compose implements store.Store.
func (m *Model) Compose(ctx context.Context, key string, parts []string, label store.Label) error {
	if err := store.CheckParts(key, parts); err != nil {
		return wrap(Compose, key, err)
	}
	if err := m.begin(ctx, Compose, key); err != nil {
		return err
	}
	if err := m.compose(key, parts, label); err != nil {
		return wrap(Compose, key, err)
	}
	return m.end(Compose, key)
}

func (m *Model) compose(key string, parts []string, label store.Label) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	contents := make([][]byte, len(parts))
	for i, part := range parts {
		o, ok := m.objects[part]
		if !ok {
			return store.ErrNotExist
		}
		if i < len(parts)-1 && len(o.content) < store.MinPart && !m.SmallParts {
			return &store.Error{Op: string(Compose), Key: key, Code: "EntityTooSmall", Err: fmt.Errorf("%s has %d bytes", part, len(o.content))}
		}
		contents[i] = o.content
	}
	in := m.count.In // nothing has come in
	m.set(key, slices.Concat(contents...), label)
	m.count.In = in
	return nil
}

// Delete implements store.Store.
func (m *Model) Delete(ctx context.Context, key string) error {
	if err := store.CheckKey(key); err != nil {
		return wrap(Delete, key, err)
	}
	if err := m.begin(ctx, Delete, key); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.objects, key)
	m.mu.Unlock()
	return m.end(Delete, key)
}

// List implements store.Store. It counts as one request.
func (m *Model) List(ctx context.Context, prefix string) iter.Seq2[store.Item, error] {
	return func(yield func(store.Item, error) bool) {
		err := wrap(List, prefix, store.CheckPrefix(prefix))
		if err == nil {
			err = m.begin(ctx, List, prefix)
		}
		if err != nil {
			yield(store.Item{}, err)
			return
		}
		for _, item := range m.items(prefix) {
			if err := context.Cause(ctx); err != nil {
				yield(store.Item{}, wrap(List, prefix, err))
				return
			}
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (m *Model) items(prefix string) []store.Item {
	m.mu.Lock()
	defer m.mu.Unlock()
	var items []store.Item
	for key, o := range m.objects {
		if strings.HasPrefix(key, prefix) {
			items = append(items, store.Item{Key: key, Info: o.info})
		}
	}
	slices.SortFunc(items, func(a, b store.Item) int { return cmp.Compare(a.Key, b.Key) })
	return items
}

// SignedURL implements store.Store.
func (m *Model) SignedURL(_ context.Context, key string, _ time.Duration) (string, error) {
	if m.Signed == nil {
		return "", store.ErrUnsupported
	}
	return m.Signed(key), nil
}

// String implements store.Store.
func (m *Model) String() string { return "model://" }

// Close implements store.Store.
func (m *Model) Close() error { return nil }

func (m *Model) find(key string) (object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return object{}, store.ErrNotExist
	}
	return o, nil
}

// set is called with mu held, and keeps content.
func (m *Model) set(key string, content []byte, label store.Label) {
	if m.objects == nil {
		m.objects = make(map[string]object)
	}
	m.version++
	m.count.In += int64(len(content))
	m.objects[key] = object{content, store.Info{
		Size:     int64(len(content)),
		Modified: time.Now(),
		Version:  strconv.Itoa(m.version),
		Digest:   label.Digest,
		Length:   label.Size,
	}}
}

// body is an object's content on its way.
type body struct {
	m    *Model
	ctx  context.Context // that of Get, as with an HTTP body
	key  string
	rest *bytes.Reader
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if err := b.m.begin(b.ctx, Read, b.key); err != nil {
		return 0, err
	}
	n, err := b.rest.Read(p)
	b.m.mu.Lock()
	b.m.count.Out += int64(n)
	b.m.mu.Unlock()
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }
