package upstream_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// other is another repository of the same client.
func other(t *testing.T, c *upstream.Client) *upstream.Repository {
	t.Helper()
	r, err := c.Repository("", "team/other")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// startClient is startPipe for who needs the client, too. There is a team/other.
func startClient(t *testing.T, cfg upstream.Config) (*upstreamtest.Registry, *upstream.Client) {
	t.Helper()
	reg := upstreamtest.NewPipe(t)
	fill(reg)
	reg.AddManifest("team/other", "v1", ocispec.MediaTypeImageManifest, manifest)
	reg.AddBlob("team/other", blobData)
	reg.EnableReferrers()
	cfg.Transport = reg.Transport()
	return reg, newClient(t, reg.URL, cfg)
}

func TestTooManyRequestsIsRememberedUntilRetryAfter(t *testing.T) {
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	tests := map[string]struct {
		header func() string
		hold   time.Duration
	}{
		"seconds":       {func() string { return "90" }, 90 * time.Second},
		"date":          {func() string { return in(2 * time.Minute) }, 2 * time.Minute},
		"date gone by":  {func() string { return in(-time.Minute) }, time.Second},
		"none":          {func() string { return "" }, 30 * time.Second},
		"nonsense":      {func() string { return "soon" }, 30 * time.Second},
		"negative":      {func() string { return "-5" }, 30 * time.Second},
		"at once":       {func() string { return "0" }, time.Second},
		"a day":         {func() string { return "86400" }, time.Hour},
		"for ever":      {func() string { return "18446744073709551615" }, time.Hour},
		"date far away": {func() string { return in(1000 * time.Hour) }, time.Hour},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, c := startClient(t, upstream.Config{})
				r := repository(t, c)
				header := http.Header{}
				if after := test.header(); after != "" {
					header.Set("Retry-After", after)
				}
				remove := reg.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(429, header))
				began := time.Now()
				wantHeld(t, r, "head manifest", test.hold)
				remove()
				reg.Reset()

				time.Sleep(test.hold / 2)
				for question := range questions {
					wantHeld(t, r, question, test.hold-time.Since(began))
				}
				if n := len(reg.Requests()); n != 0 {
					t.Errorf("got %d requests while upstream is left alone, want none", n)
				}
				ask(t, other(t, c), "head manifest") // it is not the other's limit

				time.Sleep(test.hold - time.Since(began) - time.Millisecond)
				wantHeld(t, r, "get blob", time.Second)
				time.Sleep(time.Millisecond)
				askAll(t, r)
			})
		})
	}
}

// wantHeld is that a question is answered 429 at once, with what is left.
func wantHeld(t *testing.T, r *upstream.Repository, question string, left time.Duration) {
	t.Helper()
	began := time.Now()
	err := questions[question](t.Context(), r)
	e := wantError(t, err, http.StatusTooManyRequests)
	wantUnreachable(t, err, true)
	want := strconv.Itoa(int((left + time.Second - 1) / time.Second))
	if got := e.Header.Get("Retry-After"); got != want || time.Since(began) != 0 {
		t.Errorf("%s: got Retry-After %q after %v, want %q at once", question, got, time.Since(began), want)
	}
}

// What upstream says of a token is said of the repository that it is for.
func TestTooManyTokenRequestsAreRememberedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.RequireBearer("", "", 0)
		reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Status(429, http.Header{"Retry-After": {"60"}}))
		wantHeld(t, r, "get manifest", time.Minute)
		reg.Reset()
		wantHeld(t, r, "get blob", time.Minute)
		if n := len(reg.Requests()); n != 0 {
			t.Errorf("got %d requests, want none", n)
		}
	})
}

// Clients may ask for any name, and upstream may say 429 to all of them.
func TestWhatIsHeldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{}, upstreamtest.Status(429, nil))
		for i := range 1100 {
			r, err := c.Repository("", "team/app"+strconv.Itoa(i))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = r.HeadManifest(t.Context(), "v1")
		}
		if got := c.Stats().Places[0].Held; got != 1024 {
			t.Errorf("got %d repositories held, want 1024", got)
		}
	})
}

// limits makes reg tell of a quota, as Docker Hub does.
func limits(reg *upstreamtest.Registry, match upstreamtest.Match, limit, remaining, source string) (remove func()) {
	return reg.Fault(match, upstreamtest.SetHeader("ratelimit-limit", limit),
		upstreamtest.SetHeader("ratelimit-remaining", remaining), upstreamtest.SetHeader("docker-ratelimit-source", source))
}

func TestQuota(t *testing.T) {
	none := upstream.Quota{}
	tests := map[string]struct {
		limit, remaining, source string
		want                     upstream.Quota
	}{
		"Docker Hub":      {"100;w=21600", "76;w=21600", "192.0.2.7", upstream.Quota{Limit: 100, Remaining: 76, Source: "192.0.2.7", Window: 6 * time.Hour}},
		"user's":          {"200;w=21600", "0;w=21600", "0c3a9d0e-93e2-4b0a-9b8e-6b1a2c3d4e5f", upstream.Quota{Limit: 200, Source: "0c3a9d0e-93e2-4b0a-9b8e-6b1a2c3d4e5f", Window: 6 * time.Hour}},
		"IPv6":            {"10;w=60", "9;w=60", "2001:db8::/64", upstream.Quota{Limit: 10, Remaining: 9, Source: "2001:db8::/64", Window: time.Minute}},
		"window of limit": {"10;w=60", "9", "", upstream.Quota{Limit: 10, Remaining: 9, Window: time.Minute}},
		"no window":       {"10", "9", "", upstream.Quota{Limit: 10, Remaining: 9, Window: time.Hour}},
		"no limit":        {"", "9;w=60", "", upstream.Quota{Remaining: 9, Window: time.Minute}},
		"long window":     {"10;w=2000000000", "9;w=2000000000", "", upstream.Quota{Limit: 10, Remaining: 9, Window: 24 * time.Hour}},
		"odd source":      {"10;w=60", "9;w=60", `"hunter2" is who`, upstream.Quota{Limit: 10, Remaining: 9, Window: time.Minute}},
		"none":            {"", "", "", none},
		"nonsense":        {"many", "few", "", none},
		"negative":        {"10", "-1", "", none},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, c := startClient(t, upstream.Config{})
				limits(reg, upstreamtest.Match{Path: "/manifests/"}, test.limit, test.remaining, test.source)
				ask(t, repository(t, c), "head manifest")
				got := c.Stats().Places[0].Quota
				if test.want != none {
					test.want.Seen = time.Now()
				}
				if got != test.want {
					t.Errorf("got %+v, want %+v", got, test.want)
				}
			})
		})
	}
}

// Neither a token server nor where a blob is kept speak of the registry's quota.
func TestQuotaIsTheRegistrysOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		reg.RequireBearer("", "", 0)
		reg.Fault(upstreamtest.Match{Path: "/blobs/", Times: 1}, upstreamtest.Redirect("/elsewhere"))
		reg.Fault(upstreamtest.Match{Path: "/elsewhere"}, answer("0123456789"))
		limits(reg, upstreamtest.Match{Path: "/token"}, "1;w=60", "1;w=60", "")
		limits(reg, upstreamtest.Match{Path: "/elsewhere"}, "1;w=60", "1;w=60", "")
		ask(t, repository(t, c), "get blob")
		if got := c.Stats().Places[0].Quota; got != (upstream.Quota{}) {
			t.Errorf("got %+v, want nothing", got)
		}
	})
}

func TestSpare(t *testing.T) {
	const name = host + "/" + repoName
	tests := map[string]struct {
		floor     int
		remaining string
		spared    bool
	}{
		"plenty":    {5, "6;w=3600", false},
		"at floor":  {5, "5;w=3600", false},
		"below":     {5, "4;w=3600", true},
		"used up":   {5, "0;w=3600", true},
		"no floor":  {0, "0;w=3600", false},
		"not known": {5, "", false},
	}
	for test, s := range tests {
		t.Run(test, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, c := startClient(t, upstream.Config{Floor: s.floor})
				if err := c.Spare(name); err != nil {
					t.Errorf("got %v before anything was asked", err)
				}
				limits(reg, upstreamtest.Match{Path: "/manifests/"}, "100;w=3600", s.remaining, "")
				ask(t, repository(t, c), "head manifest")
				err := c.Spare(name)
				if (err != nil) != s.spared {
					t.Fatalf("got %v, want an error: %v", err, s.spared)
				}
				if !s.spared {
					return
				}
				wantUnreachable(t, err, true)
				e, _ := errors.AsType[*upstream.Error](err)
				if !strings.Contains(err.Error(), "of 100 are left") || e.Repository != name {
					t.Errorf("got %v, want it to tell what is left of whose limit", err)
				}
				askAll(t, repository(t, c)) // what is not known may be asked for
				if err := c.Spare("elsewhere.example/a"); err != nil {
					t.Errorf("another registry: %v", err)
				}
				time.Sleep(time.Hour - time.Second)
				if c.Spare(name) == nil {
					t.Error("asked before the window has passed")
				}
				time.Sleep(time.Second)
				if err := c.Spare(name); err != nil {
					t.Errorf("the window has passed: %v", err)
				}
			})
		})
	}
}
