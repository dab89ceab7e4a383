package admin

import (
	"encoding/json"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"

	"larder/handler/middleware"
)

// totals are counted for /debug/vars, which has no labels.
type totals struct{ blobs, manifests total }

type total struct{ requests, hits, misses, pushed atomic.Int64 }

// add counts a request for a blob or manifest that was answered. Only what was here,
// without any word from upstream, is a hit.
func (t *totals) add(o middleware.Observation) {
	var of *total
	switch o.Kind {
	case "blob":
		of = &t.blobs
	case "manifest":
		of = &t.manifests
	default:
		return
	}
	of.requests.Add(1)
	of.pushed.Add(o.Bytes)
	switch o.Outcome {
	case "hit", "stale":
		of.hits.Add(1)
	case "join", "miss", "pass", "revalidated", "shared":
		of.misses.Add(1)
	}
}

// proxyVars are the totals by the names that distribution's proxy has for them.
type proxyVars struct {
	Requests, Hits, Misses, BytesPulled, BytesPushed int64
}

func (t *total) vars(pulled int64) proxyVars {
	return proxyVars{
		Requests: t.requests.Load(), Hits: t.hits.Load(), Misses: t.misses.Load(),
		BytesPulled: pulled, BytesPushed: t.pushed.Load(),
	}
}

// serveVars answers as Go's expvar does, with distribution's variables
// (registry.proxy), for what reads them.
func (m *Metrics) serveVars(w http.ResponseWriter, _ *http.Request) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	proxy := map[string]proxyVars{
		"blobs":     m.totals.blobs.vars(m.from.Received()),
		"manifests": m.totals.manifests.vars(m.from.Manifests.Stats().Fetched),
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(map[string]any{ // a client that has left needs no answer
		"cmdline": os.Args, "memstats": mem, "registry": map[string]any{"proxy": proxy},
	})
}
