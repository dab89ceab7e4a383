package handler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"larder/blobcache"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// What Cache-Status (RFC 9211) says most often. The detail is the outcome, as in log
// and metrics: it is last, where people look for it.
const (
	statusHit = "larder; hit; detail=hit"

	// It is here, and upstream had to say whether it may be given out.
	statusProven = "larder; fwd=stale; detail=hit"
)

// story is how a manifest or a list came about.
type story struct {
	outcome manifestcache.Outcome
	age     time.Duration
	asked   *manifestcache.Question // nil: nothing
	joined  bool
}

// setStatus tells a story and, if what it is about is old, says so.
func setStatus(ctx context.Context, header http.Header, repo *upstream.Repository, s story) {
	if header["Via"] != nil { // it is a larder that asks
		s.setAge(header)
	}
	if s.outcome == manifestcache.Hit {
		header.Set("Cache-Status", statusHit)
		return
	}
	header.Set("Cache-Status", s.status())
	if s.asked != nil {
		header.Set("Cache-Status", behind(s.asked.Relayed, s.status()))
		setTiming(ctx, header, s.asked.Took)
	}
	if s.outcome == manifestcache.Stale {
		header.Set("Age", strconv.FormatInt(int64(s.age/time.Second), 10))
		header.Set("Warning", fmt.Sprintf(`299 - "%s can't be asked; larder answers with what it last said, %s ago"`,
			repo.Host(), s.age.Round(time.Second)))
	}
}

// setAge says how long ago the registry was asked, if it was not for this answer:
// rounded up, so that nobody down a chain takes it for newer than it is.
func (s story) setAge(header http.Header) {
	if s.asked == nil || s.asked.Unasked || s.age >= time.Second {
		header.Set("Age", strconv.FormatInt(int64((s.age+time.Second-1)/time.Second), 10))
	}
}

// relayed is a blob's status, behind that of the parent that was asked for it, if it
// was.
func relayed(repo *upstream.Repository, own string) string {
	before, _, _ := repo.Relayed()
	return behind(before, own)
}

// behind is the Cache-Status of two caches: who is nearer to the client is last.
func behind(before, own string) string {
	if before == "" {
		return own
	}
	return before + ", " + own
}

// status is for all that is no plain hit.
func (s story) status() string {
	var b strings.Builder
	b.WriteString("larder; ")
	if s.asked == nil || upstream.Unasked(s.asked.Err) {
		b.WriteString("hit")
	} else {
		s.forwarded(&b)
	}
	if s.outcome == manifestcache.Stale {
		fmt.Fprintf(&b, "; ttl=-%d", int64(s.age/time.Second))
	}
	return b.String() + "; detail=" + s.outcome.String()
}

// forwarded says why upstream was asked, or what nodes share, and what came of it.
func (s story) forwarded(b *strings.Builder) {
	if s.asked.Known || s.outcome == manifestcache.Stale {
		b.WriteString("fwd=stale")
	} else {
		b.WriteString("fwd=uri-miss")
	}
	switch e, ok := errors.AsType[*upstream.Error](s.asked.Err); {
	case s.asked.Unasked: // it was not upstream that had the answer
	case s.asked.Err == nil:
		b.WriteString("; fwd-status=200") // whatever the client's own conditions make of it
	case ok && e.Status > 0:
		fmt.Fprintf(b, "; fwd-status=%d", e.Status)
	}
	if s.asked.Stored {
		b.WriteString("; stored")
	}
	if s.joined {
		b.WriteString("; collapsed")
	}
}

// blobStatus is the Cache-Status of a GET.
func blobStatus(blob *blobcache.Blob) string {
	switch blob.Outcome {
	case blobcache.Hit:
		return headStatus(blobcache.Hit, blob.Waited)
	case blobcache.Join:
		return "larder; fwd=uri-miss; collapsed; detail=join"
	case blobcache.Pass:
		return "larder; fwd=uri-miss; detail=pass"
	case blobcache.Shared:
		return "larder; fwd=uri-miss; stored; detail=shared"
	default:
		return "larder; fwd=uri-miss; stored; detail=miss"
	}
}

// headStatus is that of a HEAD, for which nothing is stored.
func headStatus(outcome blobcache.Outcome, asked time.Duration) string {
	switch {
	case outcome != blobcache.Hit:
		return "larder; fwd=uri-miss; detail=" + outcome.String()
	case asked > 0:
		return statusProven
	default:
		return statusHit
	}
}

// setTiming says where the time went, in milliseconds, if upstream was waited for:
// larder's own part of it, upstream's, and both. For warm answers it does nothing.
func setTiming(ctx context.Context, header http.Header, waited time.Duration) {
	t, ok := ctx.Value(targetKey{}).(*target)
	if waited == 0 || !ok {
		return
	}
	total := time.Since(t.began)
	waited = min(waited, total) // who has joined has not waited for all of it
	header.Set("Server-Timing", fmt.Sprintf("cache;dur=%.3f, upstream;dur=%.3f, total;dur=%.3f",
		milliseconds(total-waited), milliseconds(waited), milliseconds(total)))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
