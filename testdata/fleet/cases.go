package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"larder/testdata/rig"
)

// repository is where the image is.
const repository = "fleet/app"

// shares are the sizes of the image's layers, of 1000. Those of a small image are alike:
// layers of less than 4 MiB are not leased.
func shares(image int64) []int64 {
	const small = 250e6
	if image < small {
		return slices.Repeat([]int64{125}, 8)
	}
	return []int64{300, 200, 160, 120, 100, 60, 40, 20}
}

// atOnce is how many layers a client asks for at once, as containerd does.
const atOnce = 3

// fleetCase is a row of the report.
type fleetCase struct {
	name  string
	nodes int
	image int64
	tier  tier
}

// allCases are the rows of the report. Without a tier, all nodes fetch all: a smaller image
// shows it in the time that the whole one takes one node.
func allCases(o options) []fleetCase {
	return []fleetCase{
		{"alone", 1, o.image, tier{}},
		{"no tier", o.nodes, o.image / int64(o.nodes), tier{}},
		{"file tier", o.nodes, o.image, tier{kind: fileTier}},
		{"s3 tier", o.nodes, o.image, tier{kind: s3Tier}},
	}
}

// figures are what a pull by all nodes took.
type figures struct {
	took     time.Duration // until the last node had all
	upstream rig.Count
	larders  time.Duration  // CPU
	all      time.Duration  // CPU, with that of upstream, clients and the tier
	tier     map[string]int // requests, by kind
}

// row is what a case gave.
type row struct {
	fleetCase
	cold, warm figures
}

// run has all nodes pull twice: with nothing on their disks, and with all.
func (c fleetCase) run(ctx context.Context, o options, parent string) (r row, err error) {
	dir := filepath.Join(parent, "case")
	defer os.RemoveAll(dir)
	content := rig.NewContent(filepath.Join(dir, "content"))
	defer content.Remove()
	pull, err := image(content, c.image)
	if err != nil {
		return row{}, err
	}
	up, err := rig.StartUpstream(ctx, content.Dir)
	if err != nil {
		return row{}, err
	}
	defer up.Stop()
	if err := c.tier.start(ctx, filepath.Join(dir, "tier")); err != nil {
		return row{}, fmt.Errorf("tier: %w", err)
	}
	defer c.tier.stop()
	f := &fleet{up: up, tier: &c.tier, load: pull}
	defer f.stop()
	if err := f.start(ctx, o.larder, c.nodes, filepath.Join(dir, "nodes")); err != nil {
		return row{}, err
	}
	r = row{fleetCase: c}
	if r.cold, err = f.pull(ctx, o.rate); err != nil {
		return row{}, err
	}
	r.warm, err = f.pull(ctx, o.rate)
	return r, err
}

// image makes one of size bytes in all, and is how a client pulls it.
func image(c *rig.Content, size int64) (rig.Load, error) {
	config, err := c.Blob(repository, 4<<10)
	if err != nil {
		return nil, err
	}
	blobs := []rig.Object{config}
	for _, share := range shares(size) {
		b, err := c.Blob(repository, size*share/1000)
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, b)
	}
	byTag, byDigest, err := c.Manifest(repository, "latest", blobs)
	return rig.Sequence(
		rig.Every(1, []rig.Request{rig.Get(byTag), rig.Get(byDigest), rig.Get(config)}),
		rig.Each(atOnce, 0, rig.Gets(blobs[1:])),
	), err
}

// fleet is larders that run, with what they share.
type fleet struct {
	up    *rig.Upstream
	tier  *tier
	load  rig.Load
	nodes []*node
}

// node is a larder.
type node struct {
	*rig.Process
	admin string
}

// start starts larders with empty caches.
func (f *fleet) start(ctx context.Context, larder string, nodes int, dir string) error {
	const tries = 3 // connections of others may take a port that was free
	for i := range nodes {
		n, err := f.startNode(ctx, larder, filepath.Join(dir, fmt.Sprint(i)))
		for range tries - 1 {
			if err == nil {
				break
			}
			n, err = f.startNode(ctx, larder, filepath.Join(dir, fmt.Sprint(i)))
		}
		if err != nil {
			return fmt.Errorf("larder: %w", err)
		}
		f.nodes = append(f.nodes, n)
	}
	return nil
}

func (f *fleet) startNode(ctx context.Context, larder, home string) (*node, error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return nil, err
	}
	cmd := rig.CommandLarder(larder, append(f.tier.environ(),
		"LARDER_ADDR="+addr, "LARDER_ADMIN_ADDR="+admin, "LARDER_CACHE_DIR="+filepath.Join(home, "cache"),
		"LARDER_UPSTREAMS=registry.test=http://"+f.up.Addr, "LARDER_TAG_TTL=10m")...)
	p, err := rig.StartProcess(ctx, cmd, addr, filepath.Join(home, "output"))
	return &node{p, admin}, err
}

func (f *fleet) stop() {
	for _, n := range f.nodes {
		n.Stop()
	}
}

// pull has all nodes pull at once, and waits until they are done with what is done after
// the last answer.
func (f *fleet) pull(ctx context.Context, rate int64) (figures, error) {
	if err := f.up.Set(rig.Knobs{Total: rate}); err != nil {
		return figures{}, err
	}
	before, err := f.taken()
	if err != nil {
		return figures{}, err
	}
	began := time.Now()
	errs := make(chan error)
	for _, n := range f.nodes {
		go func() { errs <- f.load(&rig.Pull{Ctx: ctx, Addr: n.Addr}) }() // its error is waited for
	}
	for range f.nodes {
		err = errors.Join(err, <-errs)
	}
	took := time.Since(began)
	if err != nil {
		return figures{}, err
	}
	if err := f.settle(); err != nil {
		return figures{}, err
	}
	after, err := f.taken()
	if err != nil {
		return figures{}, err
	}
	return after.since(before, took), nil
}

// settle waits until nobody computes any more, nor asks the tier for anything.
func (f *fleet) settle() error {
	const quiet, longest = 2 * time.Second, 30 * time.Second
	began := time.Now()
	for {
		for _, n := range f.nodes {
			if _, err := n.SettledCPU(); err != nil {
				return err
			}
		}
		before, err := f.tier.requests(f.nodes)
		if err != nil || f.tier.kind == "" {
			return err
		}
		time.Sleep(quiet)
		after, err := f.tier.requests(f.nodes)
		if err != nil || maps.Equal(before, after) {
			return err
		}
		if time.Since(began) > longest {
			return fmt.Errorf("the tier is still asked %v after the pull", longest)
		}
	}
}

// taken is all that has been used and asked so far.
func (f *fleet) taken() (t figures, err error) {
	for _, n := range f.nodes {
		cpu, err := n.CPU()
		if err != nil {
			return figures{}, err
		}
		t.larders += cpu
	}
	others := []*rig.Process{f.up.Process}
	if f.tier.gateway != nil {
		others = append(others, f.tier.gateway)
	}
	t.all = t.larders + ownCPU()
	for _, p := range others {
		cpu, err := p.CPU()
		if err != nil {
			return figures{}, err
		}
		t.all += cpu
	}
	counts, err := f.up.Counts()
	if err != nil {
		return figures{}, err
	}
	t.upstream = counts.Total()
	t.tier, err = f.tier.requests(f.nodes)
	return t, err
}

// since is what has been used and asked between two looks. Upstream counts anew for each pull.
func (t figures) since(before figures, took time.Duration) figures {
	t.took, t.larders, t.all = took, t.larders-before.larders, t.all-before.all
	for kind, n := range before.tier {
		if t.tier[kind] -= n; t.tier[kind] == 0 {
			delete(t.tier, kind)
		}
	}
	return t
}

// ownCPU is what the clients have computed.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
