// Bench compares larder with other ways to cache a registry, on this machine:
//
//	go run ./testdata/bench [-case regexp] [-rounds n] [-short]
//
// It starts an upstream of its own and then, one after the other, nginx,
// docker-registry and larder, has clients pull from each, checks every byte, and
// prints what it took. Nothing but loopback is used.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"

	"larder/testdata/rig"
)

// flags are what can be asked for.
type flags struct {
	cases  *regexp.Regexp
	rounds int
	short  bool
	peers  []string
	larder string
	keep   bool

	json, svg, profile string
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == rig.AsUpstream {
		fmt.Fprintln(os.Stderr, rig.ServeUpstream(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	f, err := parseFlags(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, f); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (flags, error) {
	var f flags
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	cases := set.String("case", "", "run the cases whose name matches this `regexp`")
	set.IntVar(&f.rounds, "rounds", 5, "`n`: how often each peer runs each case; 1 with -short")
	set.BoolVar(&f.short, "short", false, "little of everything, to see that it works")
	peers := set.String("peers", strings.Join([]string{direct, static, nginx, dockerIO, larder}, ","), "the `peers` to compare")
	set.StringVar(&f.larder, "larder", "", "the larder to run, instead of building one")
	set.StringVar(&f.json, "json", "", "write all figures to this `file`")
	set.StringVar(&f.svg, "svg", "", "write a chart to this `file`")
	set.StringVar(&f.profile, "profile", "", "write larder's CPU profile of each case to this `directory`")
	set.BoolVar(&f.keep, "keep", false, "leave the files")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	f.peers = strings.Split(*peers, ",")
	var err error
	if f.cases, err = regexp.Compile(*cases); err != nil {
		return f, err
	}
	given := func(name string) (found bool) {
		set.Visit(func(f *flag.Flag) { found = found || f.Name == name })
		return found
	}
	if f.short && !given("rounds") {
		f.rounds = 1
	}
	if f.rounds < 1 || set.NArg() > 0 {
		return f, fmt.Errorf("-rounds %d %s: not at least one round, or more arguments than there are", f.rounds, set.Args())
	}
	return f, nil
}

// run runs what was asked for and prints it.
func run(ctx context.Context, f flags) (err error) {
	debug.SetGCPercent(400) // the clients are not what is measured
	dir, err := os.MkdirTemp("", "larder-bench-")
	if err != nil {
		return err
	}
	if f.keep {
		fmt.Println("files are left in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	peers, err := findPeers(ctx, dir, f.larder, f.peers)
	if err != nil {
		return err
	}
	b := &bench{dir: dir, peers: peers, rounds: f.rounds, scale: full(), keepDir: f.keep, profile: f.profile}
	if f.short {
		b.scale = short()
	}
	report := newReportFile(f, peers)
	report.writeHead(os.Stdout)
	for _, k := range allCases() {
		if !f.cases.MatchString(k.name) {
			continue
		}
		r, err := b.run(ctx, k)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		report.add(r)
		r.writeTable(os.Stdout)
		report.Cases[len(report.Cases)-1].writeBars(os.Stdout)
	}
	return report.finish(f)
}

// finish writes the files that were asked for. Where larder could not do a case, that
// is an error; bars that it misses are not.
func (f *reportFile) finish(flags flags) error {
	if flags.json != "" {
		if err := f.write(flags.json); err != nil {
			return err
		}
	}
	if flags.svg != "" {
		if err := f.writeSVG(flags.svg); err != nil {
			return err
		}
	}
	for _, c := range f.Cases {
		for _, p := range c.Peers {
			if p.Peer == larder && p.Refused != "" {
				return fmt.Errorf("%s: larder: %s", c.Name, p.Refused)
			}
		}
	}
	return nil
}
