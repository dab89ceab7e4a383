package admin_test

import (
	"net/http"
	"testing"

	"larder/handler/upstream/upstreamtest"
)

func TestMetricsOfUpstreams(t *testing.T) {
	l := newLarder(t)
	l.hub.AddImage("a/b", "1", []byte("layer"))
	l.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("ratelimit-limit", "100;w=21600"),
		upstreamtest.SetHeader("ratelimit-remaining", "76;w=21600"), upstreamtest.SetHeader("docker-ratelimit-source", "192.0.2.7"))
	ask(l.registry, "GET", "/v2/a/b/manifests/1")
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/"}, upstreamtest.Status(http.StatusTooManyRequests, nil))
	ask(l.registry, "GET", "/v2/a/b/manifests/2")
	for range 6 {
		ask(l.registry, "GET", "/v2/a/b/manifests/2?ns=ghcr.io")
	}
	hub, ghcr := `{host="docker.io",url="`+l.hub.URL+`"}`, `{host="ghcr.io",url="http://127.0.0.1:1"}`
	got := l.scrape(t)
	for name, want := range map[string]string{
		"larder_upstream_breaker_open" + hub:         "0",
		"larder_upstream_breaker_open" + ghcr:        "1",
		"larder_upstream_breaker_trips_total" + ghcr: "1",
		"larder_upstream_held_repositories" + hub:    "1",
		"larder_upstream_ratelimit_limit" + hub:      "100",
		"larder_upstream_ratelimit_remaining" + hub:  "76",
		"larder_upstream_ratelimit_limit" + ghcr:     "",

		`larder_upstream_ratelimit_source{host="docker.io",source="192.0.2.7",url="` + l.hub.URL + `"}`: "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}
