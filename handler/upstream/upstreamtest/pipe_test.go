package upstreamtest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
)

// kinds runs a test on a registry with sockets and on one without.
func kinds(t *testing.T, test func(t *testing.T, r *Registry)) {
	t.Run("sockets", func(t *testing.T) { test(t, New(t)) })
	t.Run("pipes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, NewPipe(t)) })
	})
}

func TestStopAndStart(t *testing.T) {
	kinds(t, func(t *testing.T, r *Registry) {
		address := r.URL
		path := "/v2/a/blobs/" + r.AddBlob("a", blobData).String()
		gate := make(chan struct{})
		remove := r.Fault(Match{}, GateAfter(10, gate))
		resp, _ := open(t, r, path)

		r.Stop()
		r.Stop()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("an open connection lived on")
		}
		if a := get(t, r, path); !errors.Is(a.err, syscall.ECONNREFUSED) {
			t.Errorf("stopped: got %v, want connection refused", a.err)
		}

		remove()
		r.Start()
		r.Start()
		if r.URL != address {
			t.Errorf("came back at %s, was at %s", r.URL, address)
		}
		get(t, r, path).want(t, http.StatusOK, blobData)
	})
}

func TestStopClosesIdleConnections(t *testing.T) {
	kinds(t, func(t *testing.T, r *Registry) {
		transport := r.Transport()
		ping := func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL+"/v2/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(req)
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			return resp, err
		}
		if _, err := ping(); err != nil {
			t.Fatal(err)
		}
		r.Stop()
		if _, err := ping(); err == nil {
			t.Error("answered while stopped")
		}
		r.Start()
		if _, err := ping(); err != nil {
			t.Errorf("back again: got %v", err)
		}
	})
}

func TestDialContextTakesAnyName(t *testing.T) {
	kinds(t, func(t *testing.T, r *Registry) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry-1.docker.io/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.Transport().RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if log := r.Requests(); len(log) != 1 || log[0].Host != "registry-1.docker.io" {
			t.Errorf("got %+v", log)
		}
	})
}

func TestDialEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newPipeListener().dial(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestResetConnectionOfPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewPipe(t)
		r.Fault(Match{}, ResetConnection())
		if a := get(t, r, "/v2/"); a.err == nil {
			t.Errorf("got %d, want a broken connection", a.StatusCode)
		}
	})
}
