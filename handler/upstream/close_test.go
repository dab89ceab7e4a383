package upstream_test

import (
	"bytes"
	"context"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestCloseEndsHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := upstreamtest.NewPipe(t)
		reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		c := newClient(t, reg.URL, upstream.Config{Transport: reg.Transport()})
		r, began := repository(t, c), time.Now()
		failed := make(chan error, 1)
		go func() { failed <- questions["get manifest"](ctx, r) }()
		synctest.Wait()
		c.Close()
		err := <-failed
		wantError(t, err, 0)
		wantUnreachable(t, err, false)
		wantUnreachable(t, questions["get manifest"](ctx, r), false)
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v, want that closing is not waited for", took)
		}
	})
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := upstreamtest.NewPipe(t)
		fill(reg)
		reg.RequireBearer("user", password, 0)
		c := newClient(t, reg.URL, upstream.Config{Transport: reg.Transport(), Keychain: user(password)})
		r := repository(t, c)
		askAll(t, r)
		together(t, r, 5, "get blob") // more connections

		half, _ := open(t, r, digest.FromBytes(blobData), 0, -1)
		half.Read(make([]byte, 1))
		half.Close()
		remove := reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		leaving, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		questions["get manifest"](leaving, r)
		other, err := c.Repository("", "team/other")
		if err != nil {
			t.Fatal(err)
		}
		questions["get manifest"](leaving, other) // leaves its handshake behind
		remove()
		askAll(t, r) // leaves an idle connection

		c.Close()
		wantGone(t, "net/http.(*persistConn)", "go-containerregistry", "upstream.(*Client)")
		reg.Stop()
		wantGone(t, "")
	})
}

// wantGone is that no goroutine of the bubble but the test's own is at any of these.
func wantGone(t *testing.T, places ...string) {
	t.Helper()
	synctest.Wait()
	var stacks bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&stacks, 2)
	for stack := range strings.SplitSeq(stacks.String(), "\n\n") {
		header, _, _ := strings.Cut(stack, "\n")
		own := strings.Contains(stack, t.Name()) || strings.Contains(stack, "testingSynctestTest")
		there := slices.ContainsFunc(places, func(place string) bool { return strings.Contains(stack, place) })
		if strings.Contains(header, "synctest bubble") && !own && there {
			t.Errorf("left over: %s", stack)
		}
	}
}
