package store

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type late struct{ closed *atomic.Bool }

func (l late) Close() error {
	l.closed.Store(true)
	return nil
}

// TestFileSystemThatDoesNotAnswer shows that nobody waits longer than wanted, that a
// file which is opened too late is closed, and that calls don't pile up.
func TestFileSystemThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPending()
		answers := make(chan struct{})
		var closed atomic.Bool
		hang := func() (io.Closer, error) {
			<-answers
			return late{&closed}, nil
		}
		for range maxPending {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			_, err := await(ctx, p, hang)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Fatalf("%v after %v", err, took)
			}
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := await(ctx, p, func() (int, error) { return 1, nil }); !errors.Is(err, errPending) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one more: %v", err)
		}
		began := time.Now()
		if err := p.close(); err != errPending || time.Since(began) != maxClosing {
			t.Errorf("close: %v after %v", err, time.Since(began))
		}
		close(answers)
		synctest.Wait()
		if !closed.Load() {
			t.Error("what came late is still open")
		}
		if err := p.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}
