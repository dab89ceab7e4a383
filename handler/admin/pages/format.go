package pages

import (
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"

	"larder/handler/admin/history"
	"larder/handler/upstream"
)

// functions are what the templates call.
func functions() template.FuncMap {
	return template.FuncMap{
		"bytes": size, "speed": speed, "ago": ago, "in": in, "span": span, "stamp": stamp, "short": short, "ratio": ratio, "share": share,
		"strip": strip, "hitChart": hitChart, "sentChart": sentChart, "query": url.QueryEscape, "join": strings.Join, "resets": resets, "now": time.Now,
		"button": newButton,
	}
}

// size is n in the largest unit that there is one of.
func size(n int64) string {
	text := units.CustomSize("%.1f %s", float64(max(n, 0)), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
	return strings.Replace(text, ".0 ", " ", 1)
}

func speed(bytesPerSecond float64) string { return size(int64(bytesPerSecond)) + "/s" }

// ago is how long before now t was, in words.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := time.Since(t); d >= time.Second {
		return span(d.Truncate(time.Second)) + " ago"
	}
	return "just now"
}

// in is how long after now t is.
func in(t time.Time) string {
	if d := time.Until(t); d >= time.Second {
		return "in " + span(d.Truncate(time.Second))
	}
	return "now"
}

// span is d to two units.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Millisecond:
		return "less than 1 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2g s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	}
}

// stamp is t for machines, and for who points at it.
func stamp(t time.Time) string { return t.Format(time.RFC3339) }

// short is a digest as people tell them apart.
func short(d digest.Digest) string {
	if d.Validate() != nil {
		return string(d)
	}
	return d.Algorithm().String() + ":" + d.Encoded()[:12]
}

// ratio is how much of what was answered came from the cache.
func ratio(t history.Totals) string {
	if t.Answers == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(t.Hits)/float64(t.Answers))
}

// share is a of b, in hundredths.
func share(a, b int64) int {
	if b <= 0 {
		return 0
	}
	return int(min(max(a, 0)*100/b, 100))
}

// resets is when at the latest a rate limit is whole again.
func resets(q upstream.Quota) time.Time { return q.Seen.Add(q.Window) }
