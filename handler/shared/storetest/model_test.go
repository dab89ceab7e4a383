package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestModelIsAsSlowAsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{Latency: func(op storetest.Op) time.Duration {
			return map[storetest.Op]time.Duration{storetest.Put: time.Second, storetest.Get: time.Minute, storetest.Read: time.Hour}[op]
		}}
		began := time.Now()
		if err := m.Put(t.Context(), "a", bytes.NewReader([]byte("abc")), store.Label{Size: 3}); err != nil {
			t.Fatal(err)
		}
		body, info, err := m.Get(t.Context(), "a", 1, -1)
		if err != nil || info.Size != 3 || info.Length != 3 {
			t.Fatalf("Get: %+v, %v", info, err)
		}
		if got, err := io.ReadAll(body); err != nil || string(got) != "bc" {
			t.Errorf("body: %q, %v", got, err)
		}
		if got, want := time.Since(began), time.Second+time.Minute+2*time.Hour; got != want {
			t.Errorf("took %v, want %v", got, want)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := m.Get(ctx, "a", 0, -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get with a second of time: %v", err)
		}
		count := m.Count()
		if count.In != 3 || count.Out != 2 || count.Requests[storetest.Get] != 2 || count.Requests[storetest.Read] != 2 {
			t.Errorf("count: %+v", count)
		}
	})
}

func TestModelFailsAsWanted(t *testing.T) {
	broken := errors.New("broken")
	var fail storetest.Op
	fault := func(op storetest.Op, _ string) error {
		if op == fail {
			return broken
		}
		return nil
	}
	m := &storetest.Model{Fault: fault}
	if _, err := m.Create(t.Context(), "a", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	body, _, err := m.Get(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	fail = storetest.Read
	if got, err := io.ReadAll(body); !errors.Is(err, broken) || len(got) > 0 {
		t.Errorf("body: %q, %v", got, err)
	}
	fail = storetest.Head
	_, err = m.Head(t.Context(), "a")
	if e, ok := errors.AsType[*store.Error](err); !ok || e.Op != "head" || e.Key != "a" || !errors.Is(err, broken) {
		t.Errorf("Head: %v", err)
	}

	m = &storetest.Model{Lost: fault}
	fail = storetest.Create
	if _, err := m.Create(t.Context(), "a", []byte("abc")); !errors.Is(err, broken) {
		t.Errorf("Create: %v", err)
	}
	if _, err := m.Create(t.Context(), "a", nil); err != store.ErrChanged {
		t.Errorf("Create of what is there: %v", err)
	}

	m = &storetest.Model{NoConditions: true}
	if _, err := m.Create(t.Context(), "a", nil); err != store.ErrUnsupported {
		t.Errorf("Create: %v", err)
	}
}

func TestModelConforms(t *testing.T) {
	m := &storetest.Model{}
	storetest.Conform(t, m, m)
}
