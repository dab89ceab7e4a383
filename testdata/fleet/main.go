// Fleet measures how many larders pull one cold image at the same time, without and with
// a tier that they share:
//
//	go run ./testdata/fleet [-nodes n] [-image bytes] [-rate bytes] [-case regexp] [-short]
//
// It starts an upstream that sends no more than rate bytes a second, on all connections
// together, larders with empty caches, a directory or an S3 gateway (versitygw) as their
// tier, and a client for each larder that pulls as containerd does, and checks every byte.
// Nothing but loopback is used. With 20 nodes and 500 MB it takes 11 GB in -dir.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"syscall"

	"larder/testdata/rig"
)

// options are what can be asked for.
type options struct {
	nodes  int
	image  int64
	rate   int64
	cases  *regexp.Regexp
	short  bool
	larder string
	dir    string
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == rig.AsUpstream {
		fmt.Fprintln(os.Stderr, rig.ServeUpstream(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	set := flag.NewFlagSet("fleet", flag.ContinueOnError)
	set.IntVar(&o.nodes, "nodes", 20, "`n`: how many larders; 4 with -short")
	set.Int64Var(&o.image, "image", 500e6, "`bytes` of the image; 40e6 with -short")
	set.Int64Var(&o.rate, "rate", 100e6, "`bytes` a second that upstream sends; 0: no limit")
	cases := set.String("case", "", "run the cases whose name matches this `regexp`")
	set.BoolVar(&o.short, "short", false, "few nodes and a small image, to see that it works")
	set.StringVar(&o.larder, "larder", "", "the `binary`; empty: build it")
	set.StringVar(&o.dir, "dir", "", "the `directory` for all files, which are removed; a tmpfs, where the disk is not what is measured")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if o.short {
		o.nodes, o.image = 4, 40e6
	}
	if o.nodes < 1 || o.image < int64(o.nodes)*1e6 || set.NArg() > 0 {
		return o, fmt.Errorf("%d nodes, %d bytes, %q: too little, or more arguments than there are", o.nodes, o.image, set.Args())
	}
	o.cases, err = regexp.Compile(*cases)
	return o, err
}

// run runs the cases and prints what they took.
func run(ctx context.Context, o options) (err error) {
	debug.SetGCPercent(400) // the clients are not what is measured
	dir, err := os.MkdirTemp(o.dir, "larder-fleet-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.larder == "" {
		o.larder = filepath.Join(dir, "larder")
		if err := rig.BuildLarder(ctx, o.larder); err != nil {
			return err
		}
	}
	all := &report{options: o, machine: rig.ThisMachine()}
	all.writeHead(os.Stdout)
	for _, c := range allCases(o) {
		if !o.cases.MatchString(c.name) {
			continue
		}
		if why := c.tier.missing(); why != "" {
			fmt.Printf("%s: left out: %s\n", c.name, why)
			continue
		}
		r, err := c.run(ctx, o, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		all.rows = append(all.rows, r)
	}
	all.write(os.Stdout)
	return all.judge(os.Stdout)
}
