package main

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestColdPullCostsUpstreamWhatItMust counts what upstream is asked for an
// newImage of five layers: cold, and again into empty stores.
func TestColdPullCostsUpstreamWhatItMust(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, addr string) testClient{
		"crane":      func(_ *testing.T, addr string) testClient { return craneClient(addr) },
		"containerd": func(t *testing.T, addr string) testClient { return newContainerd(t, addr, "docker.io") },
	}
	for name, newClient := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const layers = 5
			hub := newTokenUpstream(t, "docker.io", anonymousPull)
			img := layeredImage(t, layers)
			hub.push(t, "library/larder-test-hello:1", img)
			l := startLarder(t, []*testUpstream{hub})

			pull := func(reference string) {
				t.Helper()
				if err := newClient(t, l.addr).pull(t, reference); err != nil {
					t.Fatal(err)
				}
			}
			pull(hubName + ":1")
			hub.wantExchanges(t, "^GET /v2/ 401", 0, 1)
			hub.wantExchanges(t, "^GET /token ", 0, 1)
			hub.wantExchanges(t, "^HEAD /v2/.*/manifests/1 200", 1, 1)
			hub.wantExchanges(t, "^GET /v2/.*/manifests/.* 200", 1, 2)
			hub.wantExchanges(t, "^GET /v2/.*/blobs/.* 206 bytes=0-", layers+1, layers+1)
			hub.wantExchanges(t, "^HEAD /v2/.*/blobs/", 0, 0)
			hub.wantExchanges(t, "", layers+3, layers+6)

			hub.forget()
			pull(hubName + "@" + digestOf(t, img))
			hub.wantExchanges(t, "", 0, 0)

			pull(hubName + ":1")
			hub.wantExchanges(t, "^HEAD /v2/.*/manifests/1 200", 1, 1)
			hub.wantExchanges(t, "", 1, 1)
		})
	}
}

func TestRetagIsSeenThenStale(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	l := startLarder(t, []*testUpstream{hub})
	const path = "/v2/library/larder-test-hello/manifests/1"

	check := func(want string) *http.Response {
		t.Helper()
		if err := craneClient(l.addr).pull(t, hubName+":1"); err != nil {
			t.Fatal(err)
		}
		resp, _ := l.get(t, path)
		if got := resp.Header.Get("Docker-Content-Digest"); got != want {
			t.Errorf("got image %s, want %s", got, want)
		}
		return resp
	}
	var resp *http.Response
	var last string
	for range 2 {
		img := layeredImage(t, 2)
		last = digestOf(t, img)
		hub.push(t, "library/larder-test-hello:1", img)
		resp = check(last)
		if got := resp.Header.Values("Warning"); len(got) > 0 {
			t.Errorf("got Warning %q of a fresh manifest", got)
		}
	}
	hub.stop()
	resp = check(last)
	if got, want := resp.Header.Get("Warning"), regexp.MustCompile(`^299 - ".+"$`); !want.MatchString(got) {
		t.Errorf("got Warning %q, want %s", got, want)
	}
	if got := resp.Header.Get("Cache-Status"); !strings.Contains(got, "stale") {
		t.Errorf("got Cache-Status %q, want one that says stale", got)
	}

	hub.start(t)
	if got := check(last).Header.Get("Warning"); got != "" {
		t.Errorf("got Warning %q after upstream came back", got)
	}
}
