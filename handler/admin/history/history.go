// Package history remembers, in memory and within bounds, what was answered
// lately: how much, how much of that from the cache, what took longest, and what
// failed and what can be done about it.
package history

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"larder/handler/middleware"
)

const (
	// minutesKept and hoursKept are how far back it can be said how much was
	// answered: an hour by the minute, and eight days by the hour.
	minutesKept = 60
	hoursKept   = 8 * 24
)

// Totals is how much was answered in some time, of manifests and blobs.
type Totals struct {
	Answers int64 // that had something, be it cached or not
	Hits    int64 // of them: upstream did not send for them
	Sent    int64 // bytes
	Saved   int64 // of them, those of hits
}

func (t Totals) since(before Totals) Totals {
	return Totals{t.Answers - before.Answers, t.Hits - before.Hits, t.Sent - before.Sent, t.Saved - before.Saved}
}

// History is what was answered. Its methods may be called by several goroutines.
// Add is for hot paths: but for once a minute, and for what was slow or failed, it
// does no more than to add to counters.
type History struct {
	began time.Time

	answers, hits, sent, saved atomic.Int64 // since began

	minute atomic.Int64 // the last one whose beginning is in minutes
	slow   atomic.Int64 // nanoseconds: what an answer must take to be among the slowest

	mu       sync.Mutex // guards what follows
	minutes  ring
	hours    ring
	slowest  []Pull
	failures []Failure
}

// New makes a history that begins now.
func New() *History {
	now := time.Now()
	h := &History{began: now, minutes: newRing(minutesKept+1, minuteOf(now)), hours: newRing(hoursKept+1, hourOf(now))}
	h.minute.Store(minuteOf(now))
	return h
}

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }
func hourOf(t time.Time) int64   { return t.Unix() / 3600 }

// Add remembers an answer that has come to its end.
func (h *History) Add(o middleware.Observation) {
	now := time.Now()
	if minuteOf(now) > h.minute.Load() {
		h.turn(now)
	}
	if o.Kind != "manifest" && o.Kind != "blob" {
		if o.Status >= http.StatusBadRequest {
			h.addFailure(now, o)
		}
		return
	}
	switch o.Outcome {
	case "hit", "join", "revalidated", "stale", "shared":
		h.hits.Add(1)
		h.saved.Add(o.Bytes)
		fallthrough
	case "miss", "pass":
		h.answers.Add(1)
		h.sent.Add(o.Bytes)
	}
	if o.Status >= http.StatusBadRequest {
		h.addFailure(now, o)
	} else if o.Method == http.MethodGet && int64(o.Duration) > h.slow.Load() {
		h.addSlow(now, o)
	}
}

// turn notes how much there was when a minute, and perhaps an hour, began. Who is
// late makes the one before it a little longer.
func (h *History) turn(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.totals()
	h.minutes.advance(minuteOf(now), t)
	h.hours.advance(hourOf(now), t)
	h.minute.Store(h.minutes.last)
	h.forgetSlow(now)
}

func (h *History) totals() Totals {
	return Totals{h.answers.Load(), h.hits.Load(), h.sent.Load(), h.saved.Load()}
}

// Span is how much was answered since then.
type Span struct {
	Since time.Time
	Totals
}

// Report is what a History remembers.
type Report struct {
	Now   time.Time
	Start Span // since New
	Today Span // since midnight, or since New if that was later
	Week  Span // of the last seven days, or since New

	Minutes  []Totals // of the last hour, the oldest first; the last one is not over
	Slowest  []Pull   // of the last day
	Failures []Failure
}

// Report says what was answered.
func (h *History) Report() Report {
	now := time.Now()
	h.turn(now)
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.totals()
	r := Report{
		Now: now, Start: Span{h.began, t}, Today: h.span(t, midnight), Week: h.span(t, now.AddDate(0, 0, -7)),
		Slowest: append([]Pull{}, h.slowest...), Failures: append([]Failure{}, h.failures...),
	}
	this := minuteOf(now)
	for m := this - minutesKept + 1; m <= this; m++ {
		end := t
		if m < this {
			end = h.minutes.at(m + 1)
		}
		r.Minutes = append(r.Minutes, end.since(h.minutes.at(m)))
	}
	return r
}

// span is how much of t there was since then, to the hour. Needs mu.
func (h *History) span(t Totals, since time.Time) Span {
	hour := hourOf(since)
	if hour <= hourOf(h.began) {
		return Span{h.began, t}
	}
	return Span{time.Unix(hour*3600, 0), t.since(h.hours.at(hour))}
}

// ring is the totals at the beginning of each of the last so many periods of time,
// which are numbered.
type ring struct {
	totals      []Totals
	first, last int64 // before first there was nothing
}

func newRing(size int, period int64) ring {
	return ring{make([]Totals, size), period, period}
}

// advance notes t for the periods that have begun. A clock that was set back stands
// still until then.
func (r *ring) advance(period int64, t Totals) {
	for p := max(r.last+1, period-int64(len(r.totals))+1); p <= period; p++ {
		r.totals[p%int64(len(r.totals))] = t
	}
	r.last = max(r.last, period)
}

func (r *ring) at(period int64) Totals {
	if period <= r.first {
		return Totals{}
	}
	period = min(max(period, r.last-int64(len(r.totals))+1), r.last)
	return r.totals[period%int64(len(r.totals))]
}
