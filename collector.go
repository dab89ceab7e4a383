package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// gcPercent is GOGC where much is alive: most of that is what larder keeps
	// (LARDER_MEMORY, the indexes), and what is sent is not on the heap.
	gcPercent = 50

	// gcRoom is how much garbage there may be, in bytes, where little is alive. With
	// gcPercent alone, a busy larder with a few MiB alive would collect a hundred
	// times a second.
	gcRoom = 24 << 20

	// heapMinimum is what the collector takes for alive at least, as with GOGC=100 it
	// first comes when there are 4 MiB.
	heapMinimum = 4 << 20
)

// tuneCollector has the garbage collector come when gcPercent of what is alive is
// garbage, or gcRoom, whichever is more. It does nothing if GOGC is set.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		collected(nil)
	}
}

// collected is called at each end of a collection, by way of an object that nobody
// has any use for.
func collected(*[16]byte) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(gcPercentFor(live[0].Value.Uint64()))
	runtime.SetFinalizer(new([16]byte), collected)
}

// tidy gives what looking through the caches took back to the system, once that is
// over. What is idle then, and was the garbage, would stay with the process otherwise:
// it is within what the collector leaves room for.
func (p *program) tidy(ctx context.Context) {
	if p.blobs.Scanned(ctx) == nil && p.manifests.Scanned(ctx) == nil {
		debug.FreeOSMemory()
	}
}

// gcPercentFor is GOGC with so many bytes alive.
func gcPercentFor(live uint64) int {
	return int(max(gcPercent, gcRoom*100/max(live, heapMinimum)))
}
