package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func open(t *testing.T, r *upstream.Repository, d digest.Digest, offset, length int64) (io.ReadCloser, int64) {
	t.Helper()
	body, size, err := r.OpenBlob(t.Context(), d, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { body.Close() })
	return body, size
}

func TestOpenBlob(t *testing.T) {
	none := upstreamtest.Fault(func(next http.Handler) http.Handler { return next })
	tests := map[string]struct {
		fault          upstreamtest.Fault
		offset, length int64
		want           string
		size           int64
	}{
		"whole":                        {none, 0, -1, string(blobData), blobSize},
		"whole, no length":             {upstreamtest.NoContentLength(), 0, -1, string(blobData), -1},
		"whole, identity":              {upstreamtest.SetHeader("Content-Encoding", "identity"), 0, -1, string(blobData), blobSize},
		"offset":                       {none, 10, -1, "abcdefghijklmnopqrstuvwxyz", blobSize},
		"offset, no length":            {upstreamtest.NoContentLength(), 10, -1, "abcdefghijklmnopqrstuvwxyz", blobSize},
		"last byte":                    {none, blobSize - 1, -1, "z", blobSize},
		"range":                        {none, 10, 3, "abc", blobSize},
		"first byte":                   {none, 0, 1, "0", blobSize},
		"range over the end":           {none, 34, 10, "yz", blobSize},
		"range, unknown total":         {upstreamtest.SetHeader("Content-Range", "bytes 10-12/*"), 10, 3, "abc", -1},
		"at the end":                   {none, blobSize, -1, "", blobSize},
		"range at the end":             {none, blobSize, 5, "", blobSize},
		"ignored, first":               {upstreamtest.IgnoreRange(), 0, 3, string(blobData), blobSize},
		"206 without being asked":      {chain(upstreamtest.SetHeader("Content-Range", "bytes 0-35/36"), partial(206, string(blobData))), 0, -1, string(blobData), blobSize},
		"more bytes than said, no end": {chain(upstreamtest.SetHeader("Content-Range", "bytes 10-12/36"), partial(206, "abcdef")), 10, -1, "abc", blobSize},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
				d := reg.AddBlobWith(algorithm, repoName, blobData)
				remove := reg.Fault(upstreamtest.Match{Path: "/blobs/"}, test.fault)
				body, size := open(t, r, d, test.offset, test.length)
				remove()
				got, err := io.ReadAll(body)
				if err != nil || string(got) != test.want || size != test.size {
					t.Errorf("got %q of %d bytes, %v, want %q of %d", got, size, err, test.want, test.size)
				}
				if n := reg.Count("", "/blobs/"); n != 1 {
					t.Errorf("got %d requests, want one", n)
				}
				reg.Reset()
			}
		})
	}
}

// partial answers this body with this status, and does not say its length.
func partial(status int, body string) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			http.NewResponseController(w).Flush()
			io.WriteString(w, body)
		})
	}
}

// An empty blob has no first byte to ask for.
func TestEmptyBlob(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	d := reg.AddBlob(repoName, nil)
	for _, length := range []int64{-1, 1} {
		body, size := open(t, r, d, 0, length)
		if got, err := io.ReadAll(body); err != nil || len(got) != 0 || size != 0 {
			t.Errorf("got %q of %d bytes, %v, want nothing of none", got, size, err)
		}
	}
	reg.Fault(upstreamtest.Match{Method: http.MethodHead}, upstreamtest.Status(403, nil))
	if size, err := r.HeadBlob(t.Context(), d); err != nil || size != 0 {
		t.Errorf("got %d, %v, want 0", size, err)
	}
}

func TestCutBlob(t *testing.T) {
	tests := map[string]struct {
		fault  upstreamtest.Fault
		offset int64
		want   int
	}{
		"whole":               {upstreamtest.CutAfter(20), 0, 20},
		"range":               {upstreamtest.CutAfter(5), 10, 5},
		"no length":           {chain(upstreamtest.NoContentLength(), upstreamtest.CutAfter(20)), 0, 20},
		"no length, in range": {chain(upstreamtest.NoContentLength(), upstreamtest.CutAfter(5)), 10, 5},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: "/blobs/"}, test.fault)
			body, _ := open(t, r, digest.FromBytes(blobData), test.offset, -1)
			got, err := io.ReadAll(body)
			if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != test.want {
				t.Errorf("got %q, %v, want %d bytes and that this is not all", got, err, test.want)
			}
		})
	}
}

func TestPartThatCannotBeHad(t *testing.T) {
	tests := map[string]upstreamtest.Fault{
		"range ignored":          upstreamtest.IgnoreRange(),
		"ignored, and no length": chain(upstreamtest.IgnoreRange(), upstreamtest.NoContentLength()),
		"bad request":            upstreamtest.Status(http.StatusBadRequest, nil),
		"not implemented":        upstreamtest.Status(http.StatusNotImplemented, nil),
		"416 without a size":     upstreamtest.Status(http.StatusRequestedRangeNotSatisfiable, nil),
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			d := reg.AddBlob(repoName, blobData)
			reg.Fault(upstreamtest.Match{Path: "/blobs/"}, fault)
			if _, _, err := r.OpenBlob(t.Context(), d, 10, 5); !errors.Is(err, upstream.ErrNoRange) {
				t.Errorf("got %v, want %v", err, upstream.ErrNoRange)
			}
			if n := reg.Count("", "/blobs/"); n != 1 {
				t.Errorf("got %d requests, want one", n)
			}
		})
	}
}

// go-containerregistry's own registry is one of these.
func TestUpstreamThatRefusesBeginningsIsAskedOnce(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	d := reg.AddBlob(repoName, blobData)
	reg.Fault(upstreamtest.Match{Path: "/blobs/"}, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				http.Error(w, "no", http.StatusRequestedRangeNotSatisfiable)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	if _, _, err := r.OpenBlob(t.Context(), d, 0, 1000); !errors.Is(err, upstream.ErrNoRange) {
		t.Errorf("got %v, want %v", err, upstream.ErrNoRange)
	}
	for range 3 {
		body, size := open(t, r, d, 0, 1000)
		if got, err := io.ReadAll(body); err != nil || string(got) != string(blobData) || size != blobSize {
			t.Errorf("got %q of %d, %v", got, size, err)
		}
	}
}

// A body that is read holds a connection, and no more than so many do.
func TestConnectionsAreLimitedAndPassedOn(t *testing.T) {
	reg, r := start(t, upstream.Config{Connections: 2})
	d := reg.AddBlob(repoName, blobData)
	first, _ := open(t, r, d, 0, -1)
	open(t, r, d, 0, -1)
	ctx, cancel := context.WithCancel(t.Context())
	third := make(chan error)
	go func() {
		_, _, err := r.OpenBlob(ctx, d, 0, -1)
		third <- err
	}()
	if n := reg.Count("", "/blobs/"); n != 2 {
		t.Errorf("got %d requests, want 2", n)
	}
	cancel() // a caller that waits may leave
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	first.Close()
	first.Close() // counts once
	open(t, r, d, 0, -1)
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := r.OpenBlob(ctx, d, 0, -1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestHeadBlob(t *testing.T) {
	none := upstreamtest.Fault(func(next http.Handler) http.Handler { return next })
	tests := map[string]struct {
		head, get upstreamtest.Fault
		size      int64
		status    int // -1: no error
		gets      int
	}{
		"helpful":               {none, none, blobSize, -1, 0},
		"no length":             {upstreamtest.NoContentLength(), none, -1, -1, 0},
		"403":                   {upstreamtest.Status(403, nil), none, blobSize, -1, 1},
		"405":                   {upstreamtest.Status(405, nil), none, blobSize, -1, 1},
		"403, ignores ranges":   {upstreamtest.Status(403, nil), upstreamtest.IgnoreRange(), blobSize, -1, 1},
		"403, and no length":    {upstreamtest.Status(403, nil), chain(upstreamtest.IgnoreRange(), upstreamtest.NoContentLength()), -1, -1, 1},
		"403 both":              {upstreamtest.Status(403, nil), upstreamtest.Status(403, nil), 0, 403, 1},
		"403, then 404":         {upstreamtest.Status(403, nil), upstreamtest.Status(404, nil), 0, 404, 1},
		"404 is not asked more": {upstreamtest.Status(404, nil), none, 0, 404, 0},
		"401 is not asked more": {upstreamtest.Status(401, nil), none, 0, 401, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Method: http.MethodHead}, test.head)
			reg.Fault(upstreamtest.Match{Method: http.MethodGet, Path: "/blobs/"}, test.get)
			size, err := r.HeadBlob(t.Context(), digest.FromBytes(blobData))
			if test.status >= 0 {
				wantError(t, err, test.status)
			} else if err != nil || size != test.size {
				t.Errorf("got %d, %v, want %d", size, err, test.size)
			}
			if n := reg.Count(http.MethodGet, "/blobs/"); n != test.gets {
				t.Errorf("got %d GETs, want %d", n, test.gets)
			}
		})
	}
}

func TestConnectionIsReused(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	transport := reg.Transport()
	var dialled atomic.Int32
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled.Add(1)
		return reg.DialContext(ctx, network, addr)
	}
	r := repository(t, newClient(t, reg.URL, upstream.Config{Transport: transport}))
	for range 3 {
		askAll(t, r)
		for _, length := range []int64{3, -1} {
			body, _, err := r.OpenBlob(t.Context(), digest.FromBytes(blobData), 10, length)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, body); err != nil {
				t.Error(err)
			}
			body.Close()
		}
	}
	if n := dialled.Load(); n != 1 {
		t.Errorf("got %d connections, want one", n)
	}
}
