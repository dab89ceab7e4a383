package upstream_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// TestOutlookTellsWhatAQuestionWouldMeet also checks that to be told is no probe:
// that stays for a client.
func TestOutlookTellsWhatAQuestionWouldMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		r := repository(t, c)
		outlook := func() upstream.Outlook {
			list := r.Outlooks(t.Context())
			if len(list) != 1 {
				t.Fatalf("%d outlooks, want 1", len(list))
			}
			return list[0]
		}
		if o := outlook(); o.URL != reg.URL || o.Wait != 0 || o.Credentials || o.CredentialsErr != nil {
			t.Errorf("healthy: %+v", o)
		}
		remove := reg.Fault(upstreamtest.Match{}, upstreamtest.Status(http.StatusTooManyRequests, http.Header{"Retry-After": {"60"}}))
		questions["get manifest"](t.Context(), r)
		time.Sleep(10 * time.Second)
		if o := outlook(); o.Wait != 50*time.Second || !o.Limited {
			t.Errorf("limited: %+v", o)
		}
		if o := other(t, c).Outlooks(t.Context())[0]; o.Wait != 0 {
			t.Errorf("another repository: %+v", o)
		}
		remove()
		time.Sleep(time.Minute)
		reg.Stop()
		for range 5 {
			questions["get manifest"](t.Context(), r)
		}
		if o := outlook(); o.Wait != 5*time.Second || o.Limited || o.Cause == nil || strings.Contains(o.Cause.Error(), "://") {
			t.Errorf("down: %+v", o)
		}
		time.Sleep(5 * time.Second)
		asked := len(reg.Requests())
		for range 3 {
			if o := outlook(); o.Wait != 0 {
				t.Errorf("rested: %+v", o)
			}
		}
		reg.Start()
		ask(t, r, "get manifest") // it is let through
		if n := len(reg.Requests()); n <= asked {
			t.Errorf("%d requests, want more than %d", n, asked)
		}
	})
}
