package upstream_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// TestPlaceTellsOfTheLastAnswer is what the status page shows of a registry.
func TestPlaceTellsOfTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		r := repository(t, c)
		place := func() upstream.Place { return c.Stats().Places[0] }
		if p := place(); p.Last != (upstream.Answer{}) || !p.TokenEnds.IsZero() || p.Failures != 0 || p.Rest != 0 || p.Cause != nil {
			t.Errorf("at first: %+v", p)
		}
		reg.RequireBearer("", "", 100*time.Second)
		reg.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Latency(2*time.Second))
		began := time.Now()
		ask(t, r, "get manifest")
		if p := place(); p.Last.Status != http.StatusOK || p.Last.Took != 2*time.Second || !p.Last.At.Equal(time.Now()) || !p.TokenEnds.Equal(began.Add(100*time.Second)) {
			t.Errorf("after an answer: %+v", p)
		}
		last := place().Last
		time.Sleep(time.Second)
		reg.Stop()
		_ = questions["get manifest"](t.Context(), r)
		if p := place(); p.Last != last || p.Failures == 0 || p.Cause == nil || p.Rest != 0 {
			t.Errorf("after no answer: %+v", p)
		}
		for range 5 {
			_ = questions["get manifest"](t.Context(), r)
		}
		if p := place(); p.Rest <= 0 || p.Cause == nil || !p.Open {
			t.Errorf("left alone: %+v", p)
		}
		reg.Start()
		time.Sleep(time.Minute)
		ask(t, r, "get manifest")
		if p := place(); p.Failures != 0 || p.Rest != 0 || p.Cause != nil {
			t.Errorf("well again: %+v", p)
		}
	})
}

// TestLifeOfATokenThatDoesNotSay is a minute, as Docker's specification has it.
func TestLifeOfATokenThatDoesNotSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		reg.RequireBearer("", "", 0)
		began := time.Now()
		ask(t, repository(t, c), "get manifest")
		if p := c.Stats().Places[0]; !p.TokenEnds.Equal(began.Add(time.Minute)) {
			t.Errorf("it ends %v after it was given", p.TokenEnds.Sub(began))
		}
	})
}
