package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// verdict is what clients get while a fault lasts.
type verdict string

const (
	served  verdict = "served"  // all of it
	refused verdict = "refused" // a clear error or a broken transfer
	either  verdict = "either"  // as long as nobody is fooled
)

// blobFault is one way for upstream to send a blob.
type blobFault struct {
	size   int // of the blob; 0: the usual
	times  int // how many requests suffer it; 0: all
	faults []upstreamtest.Fault
	whole  verdict // for those who ask for all of it
	part   verdict // for those who ask for a part; "": nobody does
	status int     // of a refusal; 0: any
}

type faults = []upstreamtest.Fault

// brokenTransfers end early.
func brokenTransfers() map[string]blobFault {
	const n = usual
	table := map[string]blobFault{
		"short, with a length":                {faults: faults{upstreamtest.Truncate(n - 10)}, whole: refused},
		"short, no length":                    {faults: faults{upstreamtest.NoContentLength(), upstreamtest.Truncate(n - 10)}, whole: served, part: served},
		"short, no length, no ranges":         {faults: faults{upstreamtest.IgnoreRange(), upstreamtest.NoContentLength(), upstreamtest.Truncate(n - 10)}, whole: refused},
		"nothing, with a length":              {faults: faults{upstreamtest.Truncate(0)}, whole: refused, part: refused},
		"nothing, no length, no ranges":       {faults: faults{upstreamtest.IgnoreRange(), upstreamtest.NoContentLength(), upstreamtest.Truncate(0)}, whole: refused, part: refused},
		"half, no ranges":                     {times: 1, faults: faults{upstreamtest.IgnoreRange(), upstreamtest.CutAfter(n / 2)}, whole: served, part: served},
		"cut in the middle, each time":        {faults: faults{upstreamtest.CutAfter(n / 2)}, whole: served, part: served},
		"cut before the end of chunks":        {times: 1, faults: faults{upstreamtest.CutAtEnd()}, whole: served, part: served},
		"cut before the end of chunks, whole": {times: 1, faults: faults{upstreamtest.IgnoreRange(), upstreamtest.CutAtEnd()}, whole: served, part: either},
		"no answer, once":                     {times: 1, faults: faults{upstreamtest.ResetConnection()}, whole: served, part: served},
		"no answer, ever":                     {faults: faults{upstreamtest.ResetConnection()}, whole: refused, part: refused, status: http.StatusBadGateway},
	}
	for name, at := range map[string]int64{"0": 0, "1": 1, "the middle": n / 2, "the last but one": n - 2, "the last": n - 1} {
		table["cut at byte "+name] = blobFault{times: 1, faults: faults{upstreamtest.CutAfter(at)}, whole: served, part: served}
		table["reset at byte "+name] = blobFault{times: 1, faults: faults{upstreamtest.ResetAfter(at)}, whole: served, part: served}
	}
	return table
}

// wrongBytes are transfers that end as they should. Who asks for a part gets it
// as soon as it is there if the blob is not small, and must check it.
func wrongBytes() map[string]blobFault {
	const n = usual
	noRanges, noLength := upstreamtest.IgnoreRange(), upstreamtest.NoContentLength()
	return map[string]blobFault{
		"first byte":                {faults: faults{upstreamtest.FlipByte(0)}, whole: refused},
		"middle byte":               {faults: faults{upstreamtest.FlipByte(n / 2)}, whole: refused},
		"last byte":                 {faults: faults{upstreamtest.FlipByte(n - 1)}, whole: refused},
		"last byte, no length":      {faults: faults{noRanges, noLength, upstreamtest.FlipByte(n - 1)}, whole: refused},
		"first byte, once":          {times: 1, faults: faults{upstreamtest.FlipByte(0)}, whole: either},
		"first byte of a small one": {size: small, faults: faults{upstreamtest.FlipByte(0)}, whole: refused, part: refused, status: http.StatusBadGateway},
		"last byte of a small one":  {size: small, faults: faults{upstreamtest.FlipByte(small - 1)}, whole: refused, part: refused, status: http.StatusBadGateway},
		"the only byte":             {size: 1, faults: faults{upstreamtest.FlipByte(0)}, whole: refused, status: http.StatusBadGateway},
		"longer, with a length":     {faults: faults{upstreamtest.Extend(10)}, whole: refused},
		"longer, no length":         {faults: faults{noRanges, noLength, upstreamtest.Extend(10)}, whole: refused},
		"much longer, no length":    {faults: faults{noRanges, noLength, upstreamtest.Extend(16 << 20)}, whole: refused},
		"longer than its range":     {faults: faults{noLength, upstreamtest.Extend(1 << 20)}, whole: served, part: served},
		"longer than promised":      {faults: faults{upstreamtest.Overrun(10)}, whole: served, part: served},
		"something for nothing":     {size: -1, faults: faults{upstreamtest.Extend(10)}, whole: refused},
		"empty":                     {size: -1, whole: served},
		"empty, no length":          {size: -1, faults: faults{noLength}, whole: served},
	}
}

// statuses are answers that are no blob.
func statuses() map[string]blobFault {
	status := func(code int, header ...string) faults {
		h := make(http.Header)
		for i := 0; i < len(header); i += 2 {
			h.Add(header[i], header[i+1])
		}
		return faults{upstreamtest.Status(code, h)}
	}
	seconds := []string{"Retry-After", "1"}
	table := map[string]blobFault{
		"429, seconds":             {faults: status(429, seconds...), whole: refused, part: refused, status: 429},
		"429, a date":              {faults: faults{limitedFor(time.Second)}, whole: refused, part: refused, status: 429},
		"429, then fine":           {times: 1, faults: status(429, seconds...), whole: either, part: either},
		"503, seconds":             {faults: status(503, seconds...), whole: refused, part: refused, status: 502},
		"401, no challenge":        {faults: status(401), whole: refused, part: refused, status: 403},
		"401, Basic":               {faults: status(401, "WWW-Authenticate", `Basic realm="x"`), whole: refused, part: refused, status: 403},
		"401, Bearer":              {faults: status(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`), whole: refused, part: refused},
		"403":                      {faults: status(403), whole: refused, part: refused, status: 403},
		"404":                      {faults: status(404), whole: refused, part: refused, status: 404},
		"416":                      {faults: status(416), whole: refused, part: refused},
		"416, Content-Range":       {faults: status(416, "Content-Range", "bytes */0"), whole: refused, part: refused},
		"400":                      {faults: status(400), whole: refused, part: refused},
		"204":                      {faults: status(204), whole: refused, part: refused},
		"304":                      {faults: status(304), whole: refused, part: refused},
		"redirect without address": {faults: status(307), whole: refused, part: refused},
		"redirect to itself":       {faults: status(307, "Location", "?again"), whole: refused, part: refused, status: 502},
		"redirect to a file":       {faults: faults{upstreamtest.Redirect("file:///etc/passwd")}, whole: refused, part: refused, status: 502},
		"redirect to ftp":          {faults: faults{upstreamtest.Redirect("ftp://127.0.0.1/blob")}, whole: refused, part: refused, status: 502},
		"redirect to javascript":   {faults: faults{upstreamtest.Redirect("javascript:alert(1)")}, whole: refused, part: refused, status: 502},
		"redirect to nobody":       {faults: faults{upstreamtest.Redirect("http://127.0.0.1:1/blob")}, whole: refused, part: refused, status: 502},
	}
	for _, code := range []int{500, 502, 503} {
		table[fmt.Sprint(code)] = blobFault{faults: status(code), whole: refused, part: refused, status: http.StatusBadGateway}
		table[fmt.Sprint(code, ", then fine")] = blobFault{times: 1, faults: status(code), whole: served, part: served}
	}
	return table
}

// limitedFor answers 429 and a date, which has whole seconds.
func limitedFor(d time.Duration) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			date := time.Now().Add(d).UTC().Format(http.TimeFormat)
			upstreamtest.Status(http.StatusTooManyRequests, http.Header{"Retry-After": {date}})(next).ServeHTTP(w, r)
		})
	}
}

// strangeHeaders are around the right bytes. Who asks for a part is told the
// total that upstream claims.
func strangeHeaders() map[string]blobFault {
	set := upstreamtest.SetHeader
	const foreign = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
	return map[string]blobFault{
		"no ranges":                 {faults: faults{upstreamtest.IgnoreRange()}, whole: served, part: served},
		"no length":                 {faults: faults{upstreamtest.NoContentLength()}, whole: served, part: served},
		"no length, no ranges":      {faults: faults{upstreamtest.IgnoreRange(), upstreamtest.NoContentLength()}, whole: served, part: served},
		"slow, and no size":         {faults: faults{upstreamtest.IgnoreRange(), upstreamtest.NoContentLength(), upstreamtest.Rate(3 << 20)}, whole: served, part: served},
		"gzip":                      {faults: faults{set("Content-Encoding", "gzip")}, whole: refused, part: refused, status: 502},
		"identity":                  {faults: faults{set("Content-Encoding", "identity")}, whole: served, part: served},
		"no digest":                 {faults: faults{upstreamtest.DropHeader("Docker-Content-Digest")}, whole: served, part: served},
		"wrong digest":              {faults: faults{set("Docker-Content-Digest", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")}, whole: served, part: served},
		"foreign digest":            {faults: faults{set("Docker-Content-Digest", foreign)}, whole: served, part: served},
		"no digest at all":          {faults: faults{set("Docker-Content-Digest", "latest")}, whole: served, part: served},
		"another range":             {faults: faults{anotherRange}, whole: served, part: served},
		"wrong Content-Range":       {faults: faults{upstreamtest.WrongContentRange()}, whole: served, part: served},
		"garbled Content-Range":     {faults: faults{set("Content-Range", "bytes one-two/three")}, whole: served, part: served},
		"a total that is too large": {faults: faults{upstreamtest.WrongTotal(5)}, whole: refused},
		"a total that is too small": {faults: faults{upstreamtest.WrongTotal(-5)}, whole: served},
		"HTML":                      {faults: faults{set("Content-Type", "text/html")}, whole: served, part: served},
	}
}

func TestUpstreamSpoilsABlob(t *testing.T) {
	t.Parallel()
	for kind, table := range map[string]map[string]blobFault{
		"transfer": brokenTransfers(), "bytes": wrongBytes(), "status": statuses(), "header": strangeHeaders(),
	} {
		for name, f := range table {
			t.Run(kind+"/"+name+"/one client", func(t *testing.T) { f.run(t, 1, "", f.whole) })
			t.Run(kind+"/"+name+"/eight clients", func(t *testing.T) { f.run(t, 8, "", f.whole) })
			if f.part != "" {
				t.Run(kind+"/"+name+"/a part", func(t *testing.T) { f.run(t, 1, "1000-1999", f.part) })
			}
		}
	}
}

// run has clients ask for the blob, or for a range of it, while the fault lasts.
func (f blobFault) run(t *testing.T, clients int, ranges string, want verdict) {
	t.Parallel()
	size := f.size
	switch size {
	case 0:
		size = usual
	case -1:
		size = 0
	}
	w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, size)
	w.notFooled(t, appTag, "", w.ask(appTag, "")) // by which the blob is known to be the repository's
	over := w.hub.Fault(upstreamtest.Match{Path: w.blob(), Times: f.times}, f.faults...)
	answers := w.crowd(clients, w.blob(), ranges)
	asked := w.hub.Count("", w.blob())
	over()

	w.notFooled(t, w.blob(), ranges, answers...)
	for _, a := range answers {
		if a.whole() && want == refused || !a.whole() && want == served {
			t.Errorf("got %v, want it %s", a, want)
		}
		if f.status != 0 && a.status != f.status {
			t.Errorf("got %v, want %d", a, f.status)
		}
		if a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") == "" {
			t.Error("nobody is told when to come again")
		}
	}
	if asked > 20*clients {
		t.Errorf("upstream was asked %d times", asked)
	}
	w.recovers(t)
}

// TestRefusedInTheMiddle has upstream break off, and then say no to who goes on.
func TestRefusedInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, code := range []int{http.StatusForbidden, http.StatusNotFound} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, usual)
			w.ask(appTag, "")
			var asked atomic.Int64
			over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, func(next http.Handler) http.Handler {
				breaks, refuses := upstreamtest.CutAfter(usual/2)(next), upstreamtest.Status(code, nil)(next)
				return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if asked.Add(1) == 1 {
						breaks.ServeHTTP(rw, r)
						return
					}
					refuses.ServeHTTP(rw, r)
				})
			})
			a := w.ask(w.blob(), "")
			over()
			w.notFooled(t, w.blob(), "", a)
			if n := asked.Load(); a.whole() || n != 2 {
				t.Errorf("got %v after %d questions to upstream, want it broken off after 2", a, n)
			}
			w.recovers(t)
		})
	}
}
