package history_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
	"larder/handler/admin/history"
	"larder/handler/middleware"
	"larder/handler/upstream"
)

// answer is one of a blob.
func answer(outcome string, bytes int64) middleware.Observation {
	return middleware.Observation{Note: middleware.Note{Kind: "blob", Outcome: outcome}, Method: http.MethodGet, Status: http.StatusOK, Bytes: bytes}
}

func TestTotals(t *testing.T) {
	h := history.New()
	for _, outcome := range []string{"hit", "join", "revalidated", "stale", "shared", "miss", "pass", "denied", ""} {
		h.Add(answer(outcome, 10))
	}
	other := answer("hit", 1000)
	other.Kind = "tags"
	h.Add(other)
	want := history.Totals{Answers: 7, Hits: 5, Sent: 70, Saved: 50}
	if r := h.Report(); r.Start.Totals != want || r.Today.Totals != want || r.Week.Totals != want || r.Minutes[59] != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
}

func TestSpansOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins at midnight, UTC
		began := time.Now()
		h := history.New()
		at := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
		day := 24 * time.Hour
		h.Add(answer("miss", 1))
		at(day + time.Hour + time.Minute)
		h.Add(answer("hit", 10))
		at(2*day + 30*time.Minute)
		h.Add(answer("hit", 100))
		r := h.Report()
		if r.Start.Sent != 111 || r.Week.Sent != 111 || !r.Week.Since.Equal(began) {
			t.Errorf("after two days: %+v, %+v", r.Start, r.Week)
		}
		if local := time.Now().Location(); local == time.UTC && (r.Today.Sent != 100 || r.Today.Saved != 100 || !r.Today.Since.Equal(began.Add(2*day))) {
			t.Errorf("today: %+v", r.Today)
		}
		at(8*day + 2*time.Hour)
		if r := h.Report(); r.Week.Sent != 100 || r.Week.Answers != 1 || r.Start.Sent != 111 || !r.Week.Since.Equal(began.Add(day+2*time.Hour)) {
			t.Errorf("after eight days: %+v", r.Week)
		}
		at(100 * day)
		h.Add(answer("pass", 1000))
		if r := h.Report(); r.Week.Sent != 1000 || r.Today.Sent != 1000 || r.Start.Sent != 1111 {
			t.Errorf("after a hundred days: %+v", r)
		}
	})
}

func TestTheLastHourByTheMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history.New()
		time.Sleep(30 * time.Second)
		for i := range int64(90) {
			if i%3 != 1 { // two minutes with answers, one without
				h.Add(answer("hit", i))
			}
			time.Sleep(time.Minute)
		}
		minutes := h.Report().Minutes
		if len(minutes) != 60 {
			t.Fatalf("%d minutes", len(minutes))
		}
		for i, m := range minutes {
			minute := int64(i) + 31
			want := history.Totals{Answers: 1, Hits: 1, Sent: minute, Saved: minute}
			if minute%3 == 1 || minute == 90 {
				want = history.Totals{}
			}
			if m != want {
				t.Errorf("minute %d: got %+v, want %+v", minute, m, want)
			}
		}
	})
}

func TestSlowest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history.New()
		for i := range 50 {
			o := answer("miss", 1)
			o.Reference, o.Duration = fmt.Sprint(i), time.Duration(i*37%50+1)*time.Second
			h.Add(o)
			o.Method, o.Duration = http.MethodHead, time.Hour
			h.Add(o)
			o.Method, o.Status = http.MethodGet, http.StatusBadGateway
			h.Add(o)
		}
		var took []time.Duration
		for _, p := range h.Report().Slowest {
			took = append(took, p.Took/time.Second)
		}
		if want := []time.Duration{50, 49, 48, 47, 46, 45, 44, 43, 42, 41}; !slices.Equal(took, want) {
			t.Errorf("got %v, want %v", took, want)
		}
		time.Sleep(25 * time.Hour)
		o := answer("hit", 1)
		o.Duration = time.Millisecond
		h.Add(o) // what was slow yesterday is no measure
		if s := h.Report().Slowest; len(s) != 1 || s[0].Took != time.Millisecond {
			t.Errorf("the day after: %+v", s)
		}
	})
}

// failure is an answer that is one.
func failure(repository string, status int, err error) middleware.Observation {
	return middleware.Observation{Status: status, Note: middleware.Note{
		Kind: "manifest", Upstream: "docker.io", Repository: repository, Reference: "1", Err: err,
	}}
}

func TestFailuresAreGrouped(t *testing.T) {
	h := history.New()
	for i := range 30 {
		h.Add(failure(fmt.Sprintf("docker.io/org/a%d", i), 502, errors.New("one")))
	}
	for range 3 {
		h.Add(failure("docker.io/org/a20", 502, errors.New("another")))
	}
	for _, status := range []int{200, 401, 404, 405, 416, 499} {
		h.Add(failure("docker.io/org/fine", status, errors.New("no news")))
	}
	all := h.Report().Failures
	if len(all) != 20 || all[0].Repository != "docker.io/org/a20" || all[0].Count != 4 || all[0].Message != "another" || all[1].Repository != "docker.io/org/a29" {
		t.Errorf("got %d, %+v", len(all), all)
	}
}

func TestFailureIsShort(t *testing.T) {
	h := history.New()
	h.Add(failure("a", 500, errors.New(strings.Repeat("é", 10_000))))
	if m := h.Report().Failures[0].Message; len(m) > 500 || !strings.HasPrefix(m, "éé") || strings.ToValidUTF8(m, "") == "" {
		t.Errorf("got %d bytes", len(m))
	}
}

func TestRemedies(t *testing.T) {
	of := func(status int) error {
		return fmt.Errorf("x: %w", &upstream.Error{Status: status, Err: errors.New("why")})
	}
	denied := failure("docker.io/a/b", 403, nil)
	denied.Outcome = "denied"
	for name, test := range map[string]struct {
		o    middleware.Observation
		want string
	}{
		"credentials":     {failure("docker.io/a/b", 403, of(401)), "LARDER_USERNAME"},
		"rate limit":      {failure("docker.io/a/b", 429, of(429)), "LARDER_TAG_TTL"},
		"upstream is ill": {failure("docker.io/a/b", 502, of(503)), "mirror"},
		"no answer":       {failure("docker.io/a/b", 502, of(0)), "DNS"},
		"in time":         {failure("docker.io/a/b", 504, of(504)), "firewall"},
		"a loop":          {failure("docker.io/a/b", 508, of(508)), "LARDER_UPSTREAMS"},
		"wrong bytes":     {failure("docker.io/a/b", 502, blobcache.ErrDigest), "proxy"},
		"stopping":        {failure("docker.io/a/b", 503, blobcache.ErrClosed), "about to stop"},
		"not allowed":     {denied, "LARDER_DENY"},
		"a bad name":      {failure("", 400, errors.New("invalid")), "the name and the tag"},
		"too many":        {failure("docker.io/a/b", 503, nil), "LARDER_MIDDLEWARE_LIMIT_RUNNING"},
		"a panic":         {failure("docker.io/a/b", 500, nil), "log"},
	} {
		h := history.New()
		h.Add(test.o)
		if all := h.Report().Failures; len(all) != 1 || !strings.Contains(all[0].Remedy, test.want) {
			t.Errorf("%s: got %+v, want %q", name, all, test.want)
		}
	}
}

func TestAddAllocatesNothing(t *testing.T) {
	h := history.New()
	slow, o := answer("hit", 10), answer("hit", 10)
	slow.Duration = time.Hour
	for range 10 {
		h.Add(slow)
	}
	if n := testing.AllocsPerRun(1000, func() { h.Add(o) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	h := history.New()
	slow, o := answer("hit", 10), answer("hit", 10)
	slow.Duration = time.Hour
	for range 10 {
		h.Add(slow)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Add(o)
		}
	})
}
