// Package doctor finds out what keeps larder from doing its work: it asks the
// registries, tries the disk and the fleet's store, and pulls through larder itself. Each failure says what
// to do.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/upstream"
)

const (
	// checkTimeout bounds each check, and each of several that depend on another.
	checkTimeout = 15 * time.Second

	// pullTimeout bounds a pull, for which several questions may have to wait.
	pullTimeout = 40 * time.Second
)

// Config is what is examined. Nobody is contacted but larder itself, the registries
// that the client knows, and the store.
type Config struct {
	Version   string
	Upstreams *upstream.Client // one that nobody else uses: its state is not to count

	Shared store.Store // nil: none

	CacheDir string
	MinFree  blobcache.Limit

	Listeners []Listener

	// Reference is what is pulled, as in docker.io/library/alpine:3.20; "": what is
	// known of Docker Hub, if that is listed.
	Reference string
	// Pull is where it is pulled from, as http://127.0.0.1:5000; "": nowhere, for NoPull.
	Pull   string
	NoPull string
}

// Status is what came of a check.
type Status string

// The statuses. Only Failed makes a Report one that is not OK.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"check"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // what to do about it
	Steps  []Step `json:"steps,omitempty"`
}

// Step is a part of a check that took its time.
type Step struct {
	Name    string  `json:"step"`
	Seconds float64 `json:"seconds"`
}

func step(name string, took time.Duration) Step { return Step{name, took.Seconds()} }

// Report is all that was found.
type Report struct {
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"`
	OK      bool      `json:"ok"`
	Checks  []Check   `json:"checks"`
}

// Examine looks at everything, at the same time.
func Examine(ctx context.Context, cfg Config) *Report {
	began := time.Now()
	known, tag := cfg.reference()
	parts := []func(context.Context) []Check{
		func(ctx context.Context) []Check { return cfg.upstreams(ctx, known, tag) },
		cfg.listeners,
		cfg.disk,
		cfg.shared,
		func(ctx context.Context) []Check { return cfg.pull(ctx, known, tag) },
	}
	found := make([][]Check, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() { found[i] = part(ctx) }) // ends after a timeout of its own
	}
	wg.Wait()
	r := &Report{Version: cfg.Version, Time: began.UTC(), Seconds: time.Since(began).Seconds(), Checks: slices.Concat(found...)}
	r.OK = !slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Status == Failed })
	return r
}

// WriteJSON is for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteText is for people.
func (r *Report) WriteText(w io.Writer) error {
	count := make(map[Status]int)
	for _, c := range r.Checks {
		count[c.Status]++
		fmt.Fprintf(w, "%-8s %s: %s\n", c.Status, c.Name, c.Detail)
		for i, s := range c.Steps {
			sep := ", "
			if i == 0 {
				sep = "         "
			}
			fmt.Fprintf(w, "%s%s %s", sep, s.Name, brief(s.Seconds))
		}
		if len(c.Steps) > 0 {
			fmt.Fprintln(w)
		}
		if c.Do != "" {
			fmt.Fprintf(w, "         -> %s\n", c.Do)
		}
	}
	_, err := fmt.Fprintf(w, "\n%d checks in %s: %d ok, %d warnings, %d failed, %d skipped (larder %s)\n",
		len(r.Checks), brief(r.Seconds), count[OK], count[Warning], count[Failed], count[Skipped], r.Version)
	return err
}

// brief is a time as people want to read it.
func brief(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}
