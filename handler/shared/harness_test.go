package shared

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"larder/handler/shared/storetest"
)

const timeout = 2 * time.Second

// node is a tier with a log, that nobody has opened a blob for.
func node(t *testing.T, m *storetest.Model, change func(*Config)) (*Tier, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	cfg := Config{
		Store: m, Timeout: timeout, Wait: 30 * time.Second, Logger: zap.New(core),
		Open: func(context.Context, digest.Digest) (io.ReadSeekCloser, int64, error) {
			return nil, 0, errors.New("no such blob")
		},
	}
	if change != nil {
		change(&cfg)
	}
	tier := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = tier.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := tier.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return tier, logs
}

// requests is how many the model was asked for, but of bodies that were read.
func requests(m *storetest.Model) (n int) {
	for op, count := range m.Count().Requests {
		if op != storetest.Read {
			n += count
		}
	}
	return n
}

// bubble runs a test in a bubble of its own time.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}
