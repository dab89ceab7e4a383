// Growth measures how larder does as its cache grows: it makes cache directories
// with 1,000, 100,000 and 1,000,000 entries, starts larder on each, and says what a
// start, the memory, idling, a sweep of what has expired and an eviction cost, and
// with which exponent that grows.
//
//	go run ./testdata/growth                            a table, in some minutes
//	go run ./testdata/growth -sizes 1000,10000          the same in seconds
//	go run ./testdata/growth -json out.json -svg out.svg
//
// What is in the JSON file already and is not measured anew stays there, and in the
// table and the chart. Without -larder, the larder in the current directory is built.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
)

type options struct {
	sizes       []int
	larder, dir string
	json, svg   string
	buildOnly   bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "growth:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("growth", flag.ContinueOnError)
	sizes := f.String("sizes", "1000,100000,1000000", "how many `entries`, each at least 1000")
	f.StringVar(&o.larder, "larder", "", "the `binary`; empty: build it")
	f.StringVar(&o.dir, "dir", "", "where the cache directories are made and kept; empty: somewhere, and they are removed")
	f.StringVar(&o.json, "json", "", "write the results to this `file` too")
	f.StringVar(&o.svg, "svg", "", "draw them in this `file`")
	f.BoolVar(&o.buildOnly, "make", false, "make the directories of -dir and measure nothing")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1000 {
			return o, fmt.Errorf("-sizes: %q is not a number of at least 1000", s)
		}
		o.sizes = append(o.sizes, n)
	}
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "growth-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if o.dir == "" {
		o.dir = scratch
	}
	if o.larder == "" && !o.buildOnly {
		o.larder = filepath.Join(scratch, "larder")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.larder, ".")
		build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build larder: %w", err)
		}
	}
	results, err := readResults(o.json)
	if err != nil {
		return err
	}
	for _, n := range o.sizes {
		tree := newTree(filepath.Join(o.dir, strconv.Itoa(n)), n)
		fmt.Fprintf(os.Stderr, "%d entries: making them\n", n)
		if err := tree.make(); err != nil {
			return fmt.Errorf("make %d entries: %w", n, err)
		}
		if o.buildOnly {
			continue
		}
		fmt.Fprintf(os.Stderr, "%d entries: measuring\n", n)
		r, err := measure(ctx, o.larder, tree)
		if err != nil {
			return fmt.Errorf("%d entries: %w", n, err)
		}
		results.put(r)
	}
	if o.buildOnly {
		return nil
	}
	return results.write(o.json, o.svg)
}
