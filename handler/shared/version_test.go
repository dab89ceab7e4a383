package shared

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestStoreOfAnotherVersionIsLookedAtNowAndThen(t *testing.T) {
	bubble(t, "an hour", func(t *testing.T) {
		m := &storetest.Model{}
		put(t, m, versionKey, []byte("larder 2\n"))
		before := requests(m)
		tier, logs := node(t, m, nil)
		for range 3600 {
			if _, err := tier.head(t.Context(), "k"); !errors.Is(err, ErrVersion) {
				t.Fatalf("%v, want %v", err, ErrVersion)
			}
			time.Sleep(time.Second)
		}
		if n := requests(m) - before; n < 60 || n > 65 {
			t.Errorf("%d requests in an hour, want one in a minute", n)
		}
		if n := logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 1 || !tier.Stats().WrongVersion {
			t.Errorf("log: %v, want one error", logs.All())
		}
		if got := read(t, m, versionKey); got != "larder 2\n" {
			t.Errorf("the object was replaced by %q", got)
		}
	})
}

func TestStoreIsUsedAgainWhenItsVersionIsRight(t *testing.T) {
	tests := map[string]func(t *testing.T, m *storetest.Model){
		"it was read wrong once": func(t *testing.T, m *storetest.Model) { put(t, m, versionKey, []byte(content)) },
		"it was cleaned": func(t *testing.T, m *storetest.Model) {
			if err := m.Delete(t.Context(), versionKey); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, mend := range tests {
		bubble(t, name, func(t *testing.T) {
			var down atomic.Bool
			m := &storetest.Model{Fault: func(storetest.Op, string) error {
				if down.Load() {
					return errDown
				}
				return nil
			}}
			put(t, m, versionKey, []byte("<html>"))
			tier, logs := node(t, m, nil)
			for range 2 {
				if _, err := tier.head(t.Context(), "k"); !errors.Is(err, ErrVersion) {
					t.Fatalf("%v, want %v", err, ErrVersion)
				}
				time.Sleep(maxRest)
				down.Store(true) // which says nothing of what is in it
				_, _ = tier.head(t.Context(), "k")
				down.Store(false)
				if !tier.Stats().WrongVersion {
					t.Error("forgotten, as the store could not be asked")
				}
			}
			mend(t, m)
			time.Sleep(maxRest)
			for range 3 {
				if _, err := tier.head(t.Context(), "k"); !errors.Is(err, store.ErrNotExist) {
					t.Fatalf("%v, want an answer", err)
				}
			}
			if got := read(t, m, versionKey); got != content || tier.Stats().WrongVersion {
				t.Errorf("version %q, stats %+v", got, tier.Stats())
			}
			wrong, right := logs.FilterLevelExact(zapcore.ErrorLevel).Len(), logs.FilterMessage("the shared store is this fleet's again").Len()
			if wrong != 1 || right != 1 {
				t.Errorf("log: %v, want a line each time that changes", logs.All())
			}
		})
	}
}
