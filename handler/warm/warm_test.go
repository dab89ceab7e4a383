package warm_test

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/upstream"
	"larder/handler/warm"
	"larder/manifestcache"
)

// offline is a registry that has manifests from some time on.
type offline struct {
	until time.Time

	mu    sync.Mutex // guards asked
	asked []string
}

func (r *offline) Manifest(_ context.Context, repo *upstream.Repository, reference string) (*manifestcache.Manifest, []byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, repo.String()+":"+reference)
	if time.Now().Before(r.until) {
		return nil, nil, errors.New("no network")
	}
	return &manifestcache.Manifest{Descriptor: ocispec.Descriptor{Digest: digest.FromString("{}")}}, []byte("{}"), nil
}

func (r *offline) Fill(context.Context, *upstream.Repository, digest.Digest, func(have, size int64)) (blobcache.Outcome, error) {
	return blobcache.Hit, nil
}

func (r *offline) Tags(context.Context, *upstream.Repository, url.Values) ([]string, url.Values, error) {
	return nil, nil, nil
}

// taken returns what was asked for, once.
func (r *offline) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	slices.Sort(asked)
	return asked
}

// TestWhatALarderCouldNotHaveAtItsStartItGetsLater starts one without a network.
func TestWhatALarderCouldNotHaveAtItsStartItGetsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registries, err := upstream.ParseList("docker.io=http://127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		upstreams, err := upstream.New(upstream.Config{Registries: registries})
		if err != nil {
			t.Fatal(err)
		}
		registry := &offline{until: time.Now().Add(90 * time.Second)}
		w := warm.New(warm.Config{Registry: registry, Upstreams: upstreams, Denied: func(string) string { return "" }, Logger: zap.NewNop()})
		var mu sync.Mutex
		list := []string{"a", "b:1"}
		ctx, stop := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() {
			w.Follow(ctx, func() []string {
				mu.Lock()
				defer mu.Unlock()
				return list
			})
		})
		both := []string{"docker.io/library/a:latest", "docker.io/library/b:1"}
		for _, want := range []struct {
			at    time.Duration
			asked []string
		}{{time.Second, both}, {29 * time.Second, nil}, {36 * time.Second, both}, {90 * time.Second, nil}, {105 * time.Second, both}, {24 * time.Hour, nil}} {
			time.Sleep(want.at - time.Since(registry.until.Add(-90*time.Second)))
			synctest.Wait()
			if got := registry.taken(); !slices.Equal(got, want.asked) {
				t.Errorf("after %v, these were asked for: %q, want %q", want.at, got, want.asked)
			}
		}
		mu.Lock()
		list = []string{"c"}
		mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := registry.taken(); !slices.Equal(got, []string{"docker.io/library/c:latest"}) {
			t.Errorf("of a list that has changed, these were asked for: %q", got)
		}
		if s := w.Stats(); s.Done != 3 || s.Failed != 4 || s.Running != 0 {
			t.Errorf("got %+v", s)
		}
		stop()
		following.Wait()
		w.Close()
		if _, err := w.Start("", []string{"a"}, nil); !errors.Is(err, warm.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
