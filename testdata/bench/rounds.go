package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"larder/testdata/rig"
)

// tooLong is what no run of any case may take.
const tooLong = 2 * time.Minute

// column is what one peer did in one case.
type column struct {
	Peer    string
	Refused string   // why there are no figures
	Samples []sample // by round
}

// row is one case.
type row struct {
	benchCase
	columns []column
}

// bench runs cases.
type bench struct {
	dir     string
	peers   []peer
	rounds  int
	scale   scale
	keepDir bool
	profile string // a directory for larder's profiles; empty: none
}

// contestant is a peer in a case.
type contestant struct {
	peer
	column  *column
	running *running // nil: not now
}

// run runs the case: all peers in each round, each time in another order.
func (b *bench) run(ctx context.Context, k benchCase) (row, error) {
	dir := filepath.Join(b.dir, k.name)
	c := rig.NewContent(filepath.Join(dir, "content"))
	what, err := k.prepare(c, b.scale)
	if err != nil {
		return row{}, err
	}
	k.MaxSize /= b.scale.div
	if !b.keepDir {
		defer os.RemoveAll(dir)
		defer c.Remove()
	}
	up, err := rig.StartUpstream(ctx, c.Dir)
	if err != nil {
		return row{}, err
	}
	defer up.Stop()

	r := row{k, make([]column, len(b.peers))}
	trial := &trial{dir: dir, keepDir: b.keepDir, sync: b.scale.sync, benchCase: k, content: c, up: up, prepared: what}
	var all []*contestant
	for i, p := range b.peers {
		r.columns[i] = column{Peer: p.name, Refused: cmp.Or(p.missing, k.cannot(p.name))}
		all = append(all, &contestant{peer: p, column: &r.columns[i]})
	}
	defer func() {
		for _, t := range all {
			trial.stop(t)
		}
	}()
	for round := range b.rounds {
		for i := range all {
			if err := trial.turn(ctx, all[(i+round)%len(all)]); err != nil {
				return row{}, err
			}
		}
	}
	for _, t := range all {
		if t.name == larder && b.profile != "" && t.column.Refused == "" {
			if err := trial.profile(ctx, t, b.profile); err != nil {
				return row{}, err
			}
		}
	}
	return r, nil
}

// trial is a case with what it takes to run it.
type trial struct {
	benchCase
	prepared
	dir     string
	keepDir bool
	sync    bool
	content *rig.Content
	up      *rig.Upstream
	starts  int // of peers so far
}

// turn is a peer's turn in a round, if it still takes part. The error is that
// of ctx: a peer's errors are its own, and it takes no more part.
func (t *trial) turn(ctx context.Context, c *contestant) error {
	if c.column.Refused != "" {
		return nil
	}
	s, err := t.run(ctx, c)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		c.column.Refused, c.column.Samples = err.Error(), nil
		t.stop(c)
	default:
		c.column.Samples = append(c.column.Samples, s)
	}
	return nil
}

// run is one peer's part of one round.
func (t *trial) run(ctx context.Context, c *contestant) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, tooLong, fmt.Errorf("takes more than %v", tooLong))
	defer cancel()
	if err := t.ready(ctx, c); err != nil {
		return sample{}, err
	}
	return t.measure(ctx, c.running)
}

// ready makes all ready for the load.
func (t *trial) ready(ctx context.Context, c *contestant) error {
	if !t.keep {
		t.stop(c)
	}
	if c.running == nil {
		if err := t.start(ctx, c); err != nil {
			return err
		}
	}
	if t.sync { // what was written before is not to be written meanwhile
		syscall.Sync()
	}
	return t.up.Set(t.Knobs)
}

// measure runs the load.
func (t *trial) measure(ctx context.Context, r *running) (sample, error) {
	before, err := r.SettledCPU()
	if err != nil {
		return sample{}, err
	}
	upstreamBefore, err := t.up.CPU()
	if err != nil {
		return sample{}, err
	}
	p := &rig.Pull{Ctx: ctx, Addr: r.Addr}
	s := sample{Idle: r.Idle, Size: t.content.Size, Budget: t.MaxSize, HotReads: t.hotReads}
	highest := t.watch(r)
	err = t.load(p)
	s.HighWater = highest()
	if err != nil {
		return sample{}, err
	}
	s.record(p)
	after, err := r.SettledCPU()
	if err != nil {
		return sample{}, err
	}
	s.CPU = (after - before).Seconds()
	upstreamAfter, err := t.up.CPU()
	if err != nil {
		return sample{}, err
	}
	s.UpstreamCPU = (upstreamAfter - upstreamBefore).Seconds()
	counts, err := t.up.Counts()
	if err != nil {
		return sample{}, err
	}
	s.Upstream, s.HotMisses = counts.Total(), counts[hotRepository].Blobs
	_, s.Peak, err = r.Memory()
	return s, err
}

// watch looks at what the cache takes on disk, if there is a limit of that, until
// highest is called, which tells the most it was.
func (t *trial) watch(r *running) (highest func() int64) {
	if t.MaxSize == 0 {
		return func() int64 { return 0 }
	}
	const often = 20 * time.Millisecond
	var most int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends at stop, and highest waits for it
		defer close(stopped)
		for {
			most = max(most, diskUsage(r.place.Cache))
			select {
			case <-stop:
				return
			case <-time.After(often):
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-stopped
		return most
	}
}

// diskUsage is what files take on disk, which is less than their size where they
// have holes.
func diskUsage(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it may have gone meanwhile
		}
		if info, err := d.Info(); err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return sum
}

// start starts the peer with an empty cache, or with one that has been warmed.
func (t *trial) start(ctx context.Context, c *contestant) error {
	t.starts++
	dir := filepath.Join(t.dir, fmt.Sprintf("%s-%d", c.name, t.starts))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var err error
	if c.running, err = c.start(ctx, dir, t.up, t.content, t.options); err != nil {
		return err
	}
	if err := t.up.Set(rig.Knobs{}); err != nil {
		return err
	}
	// The second time there is nothing left to be done at the first hit.
	const warmers = 4
	for range 2 {
		if err := rig.Each(warmers, 0, t.warm)(&rig.Pull{Ctx: ctx, Addr: c.running.Addr}); err != nil {
			return fmt.Errorf("while it was warmed: %w", err)
		}
		if _, err := c.running.SettledCPU(); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the peer, if it runs, and removes what it has kept.
func (t *trial) stop(c *contestant) {
	if c.running != nil {
		c.running.stop()
		if !t.keepDir {
			os.RemoveAll(c.running.place.Dir) // that of "direct" is empty, which is no file
		}
		c.running = nil
	}
}

// spread is the median of some values, with the least and the greatest.
type spread struct{ Median, Min, Max float64 }

// newSpread is that of one value at least.
func newSpread(values []float64) (s spread, ok bool) {
	if len(values) == 0 {
		return spread{}, false
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}, true
}
