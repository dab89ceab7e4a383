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
)

// flags are what can be asked for.
type flags struct {
	cases  *regexp.Regexp
	rounds int
	short  bool
	peers  []string
	larder string
	keep   bool
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == asUpstream {
		fmt.Fprintln(os.Stderr, serveUpstream(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	f, err := parseFlags(os.Args[1:])
	if err != nil {
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
	set.IntVar(&f.rounds, "rounds", 5, "how often each peer runs each case")
	set.BoolVar(&f.short, "short", false, "little of everything, to see that it works")
	peers := set.String("peers", strings.Join([]string{direct, static, nginx, dockerIO, larder}, ","), "the `peers` to compare")
	set.StringVar(&f.larder, "larder", "", "the larder to run, instead of building one")
	set.BoolVar(&f.keep, "keep", false, "leave the files")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	f.peers = strings.Split(*peers, ",")
	var err error
	if f.cases, err = regexp.Compile(*cases); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	return f, err
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
	b := &bench{dir: dir, peers: peers, rounds: f.rounds, scale: full(), keepDir: f.keep}
	if f.short {
		b.scale = short()
	}
	for _, k := range allCases() {
		if !f.cases.MatchString(k.name) {
			continue
		}
		r, err := b.run(ctx, k)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		r.writeTable(os.Stdout)
	}
	return nil
}
