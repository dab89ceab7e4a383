package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"larder/handler/shared/store"
)

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

// testComeAndGo makes and removes objects that have a prefix to themselves, which is
// no reason to fail where prefixes are directories.
func testComeAndGo(t *testing.T, a, b store.Store) {
	var wg sync.WaitGroup
	for i, s := range []store.Store{a, b, a, b} {
		wg.Go(func() {
			key := fmt.Sprintf("come/and/go/%d", i)
			for range 50 {
				if _, err := s.Create(t.Context(), key, []byte("x")); err != nil {
					t.Errorf("Create: %v", err)
				}
				if err := s.Delete(t.Context(), key); err != nil {
					t.Errorf("Delete: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
