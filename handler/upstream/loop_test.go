package upstream_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// hop is the name of another larder.
const hop = "larder-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func TestEveryRequestIsMarked(t *testing.T) {
	reg, c := upstreamtest.New(t), upstreamtest.New(t)
	fill(reg)
	fill(c)
	reg.RequireBearer("user", password, 0)
	reg.Fault(upstreamtest.Match{Path: "/blobs/"}, redirect(c.URL))
	askAll(t, repository(t, newClient(t, reg.URL, upstream.Config{Keychain: user(password)})))
	form := regexp.MustCompile(`^1\.1 larder-[A-Z2-7]{26}$`)
	names := make(map[string]bool)
	for _, req := range append(reg.Requests(), c.Requests()...) {
		via := req.Header["Via"]
		if len(via) != 1 || !form.MatchString(via[0]) {
			t.Errorf("%s %s has Via %q", req.Method, req.Path, via)
		}
		names[strings.Join(via, ",")] = true
	}
	if len(names) != 1 || len(c.Requests()) == 0 || reg.Count("", "/token") == 0 {
		t.Errorf("got the names %v, want one for all", names)
	}
}

// Of what a client says only the larders on the way are passed on.
func TestViaIsPassedOn(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	for _, via := range [][]string{
		{"1.1 " + hop},
		{"1.1 squid, 1.1 " + hop + " (comment), HTTP/1.1 hunter2"},
		{"1.0 fred", "1.1 " + hop, "1.1 larder-hunter2", "larder-", hop},
	} {
		reg.Reset()
		askAll(t, r.Via(via))
		for _, req := range reg.Requests() {
			got := req.Header.Get("Via")
			if !strings.HasPrefix(got, "1.1 "+hop+", 1.1 larder-") && req.Path != "/v2/" || strings.Contains(got, secret) || strings.Contains(got, "squid") {
				t.Errorf("%s %s has Via %q", req.Method, req.Path, got)
			}
		}
	}
	reg.Reset()
	ask(t, r, "get blob") // the repository itself is as it was
	if got := reg.Requests()[0].Header.Get("Via"); strings.Contains(got, hop) {
		t.Errorf("got Via %q", got)
	}
}

func TestLoops(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	c := newClient(t, reg.URL, upstream.Config{})
	if _, err := repository(t, c).HeadBlob(t.Context(), digest.FromBytes(blobData)); err != nil {
		t.Fatal(err)
	}
	own := reg.Requests()[0].Header.Get("Via")
	askAll(t, r)
	others := reg.Requests()[len(reg.Requests())-1].Header.Get("Via")
	tests := map[string]struct {
		via  []string
		want bool
	}{
		"none":             {nil, false},
		"own":              {[]string{own}, true},
		"own, in a list":   {[]string{"1.1 a, " + own + ",1.1 b"}, true},
		"own, last line":   {[]string{"1.1 a", own}, true},
		"own, a comment":   {[]string{own + " (larder)"}, true},
		"another larder":   {[]string{others}, false},
		"other proxies":    {[]string{"1.1 larder, 1.1 larder-x"}, false},
		"seven larders":    {[]string{strings.Repeat("1.1 "+hop+", ", 7)}, false},
		"eight larders":    {[]string{strings.Repeat("1.1 "+hop+", ", 8)}, true},
		"nothing sensible": {[]string{"", ",,", " , ", "\x00"}, false},
	}
	for name, test := range tests {
		if got := c.Loops(test.via); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

func TestCircular(t *testing.T) {
	const another = "larder-ZYXWVUTSRQPONMLKJIHGFEDCBA"
	reg, r := start(t, upstream.Config{})
	reg.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("Via", "1.1 "+another+", 1.1 "+hop))
	peer, stranger := r.Via([]string{"1.1 " + hop}), r.Via([]string{"1.1 " + another})
	ask(t, r, "get manifest")
	if peer.Circular() {
		t.Error("circular though nothing is asked")
	}
	answer := make(chan struct{})
	reg.Fault(upstreamtest.Match{Path: "/tags/"}, upstreamtest.Gate(answer))
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask(t, r, "list tags")
	}()
	if err := reg.Await(t.Context(), "", "/tags/", 1); err != nil {
		t.Fatal(err)
	}
	if !peer.Circular() || stranger.Circular() || r.Circular() {
		t.Errorf("got %v, %v, %v; want it circular for who is asked only", peer.Circular(), stranger.Circular(), r.Circular())
	}
	close(answer)
	<-done
	if peer.Circular() {
		t.Error("circular though there is an answer")
	}
}

func TestAnswerNamesLarderToLarders(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	c := newClient(t, reg.URL, upstream.Config{})
	ask(t, r, "get blob")
	if got := c.Answer([]string{"1.1 squid"}); got != nil {
		t.Errorf("got %q for who is no larder", got)
	}
	if got := c.Answer([]string{"1.1 " + hop}); len(got) != 1 || !c.Loops(got) {
		t.Errorf("got %q, want the own name", got)
	}
}
