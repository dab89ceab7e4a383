package shared_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"testing"
	"text/tabwriter"

	"larder/testdata/chart"
)

// What S3 takes in us-east-1, in dollars. Bytes cost nothing within the region.
const (
	priceOfGets = 0.0004 / 1000 // and HEADs
	priceOfPuts = 0.005 / 1000  // and copies and lists; DELETE is free
)

// cost is what the requests to the tier cost.
func (r tierRequests) cost() float64 {
	return float64(r.Gets+r.Heads)*priceOfGets + float64(r.Puts)*priceOfPuts
}

// The simulation of large fleets takes minutes, and is not run without.
var (
	outcomesFlag = flag.String("outcomes", "", "simulate large fleets, and keep how they did in this `file`, with what is in it")
	drawFlag     = flag.String("draw", "", "draw all that is in that file in this one, an SVG")
)

// TestLargeFleets is what docs/SCALE.md is about.
func TestLargeFleets(t *testing.T) {
	if *outcomesFlag == "" {
		t.Skip("without -outcomes FILE")
	}
	all := readOutcomes(t, *outcomesFlag)
	for _, s := range scenarios() {
		t.Run(s.name(), func(t *testing.T) {
			got := simulate(t, s)
			all = slices.DeleteFunc(all, func(o outcome) bool { return o.scenario == s })
			all = append(all, got)
		})
	}
	data, err := json.MarshalIndent(all, "", "\t")
	if err == nil {
		err = os.WriteFile(*outcomesFlag, append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	i, err := newImage()
	if err != nil {
		t.Fatal(err)
	}
	writeOutcomes(os.Stdout, all, i.size)
	if *drawFlag != "" {
		if err := os.WriteFile(*drawFlag, chart.Draw(fleetSizes(), panels(all, i.size)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func fleetSizes() []int { return []int{1, 10, 100, 1000, 10000} }

// scenarios are all that are looked at. Without a tier, each node asks what one asks.
func scenarios() (all []scenario) {
	for _, n := range fleetSizes() {
		all = append(all, scenario{Nodes: n}, scenario{Nodes: n, Parted: true})
		if n > 1 && n <= 1000 {
			all = append(all, scenario{Nodes: n, Churn: true})
		}
		if n <= 100 {
			all = append(all, scenario{Nodes: n, NoTier: true})
		}
	}
	return append(all, scenario{Nodes: 300}, scenario{Nodes: 3000})
}

// name is also that of its curve.
func (s scenario) name() string { return fmt.Sprintf("%d nodes, %s", s.Nodes, s.kind()) }

// The kinds of scenarios.
const (
	noTier = "no tier"
	fresh  = "new bucket"
	dying  = "new bucket, nodes dying"
	parted = "parted bucket"
)

func (s scenario) kind() string {
	switch {
	case s.NoTier:
		return noTier
	case s.Churn:
		return dying
	case s.Parted:
		return parted
	default:
		return fresh
	}
}

// readOutcomes reads those of earlier runs.
func readOutcomes(t *testing.T, name string) (all []outcome) {
	data, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

// perImage is how often the image came from upstream.
func (o outcome) perImage(size int64) float64 { return float64(o.Upstream.Bytes) / float64(size) }

// writeOutcomes writes a table.
func writeOutcomes(out io.Writer, all []outcome, size int64) {
	slices.SortStableFunc(all, func(a, b outcome) int { return a.Nodes - b.Nodes })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "nodes\t\tdied\tupstream requests\tof blobs\t× image\tpull p50 s\tp99 s\tslowest s\tGET\tHEAD\tPUT\tDELETE\tof leases\tSlowDown\t$\ttook s\t")
	for _, o := range all {
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%d\t%.2f\t%.1f\t%.1f\t%.1f\t%d\t%d\t%d\t%d\t%d\t%d\t%.4f\t%.1f\t\n", o.Nodes, o.kind(), o.Died,
			o.Upstream.all(), o.Upstream.Blobs, o.perImage(size), o.Median.Seconds(), o.P99.Seconds(), o.Slowest.Seconds(),
			o.Tier.Gets, o.Tier.Heads, o.Tier.Puts, o.Tier.Deletes, o.Tier.Leases, o.Tier.SlowDowns, o.Tier.cost(), o.Real.Seconds())
	}
	w.Flush()
}

// panels are what is drawn.
func panels(all []outcome, size int64) []chart.Panel {
	curve := func(kind, name string, of func(outcome) float64) chart.Curve {
		c := chart.Curve{Name: name, Values: make([]float64, len(fleetSizes()))}
		for _, o := range all {
			if i := slices.Index(fleetSizes(), o.Nodes); i >= 0 && o.kind() == kind {
				c.Values[i] = of(o)
			}
		}
		return c
	}
	curves := func(of func(outcome) float64, kinds ...string) (list []chart.Curve) {
		for _, kind := range kinds {
			list = append(list, curve(kind, kind, of))
		}
		return list
	}
	return []chart.Panel{
		{Name: "requests to upstream", Curves: curves(func(o outcome) float64 { return float64(o.Upstream.all()) }, fresh, noTier, parted)},
		{Name: "bytes from upstream, times the image", Curves: curves(func(o outcome) float64 { return o.perImage(size) }, fresh, noTier, parted, dying)},
		{Name: "slowest pull, s", Curves: curves(func(o outcome) float64 { return o.Slowest.Seconds() }, fresh, noTier, parted, dying)},
		{Name: "requests to a new bucket", Curves: []chart.Curve{
			curve(fresh, "GET and HEAD", func(o outcome) float64 { return float64(o.Tier.Gets + o.Tier.Heads) }),
			curve(fresh, "PUT", func(o outcome) float64 { return float64(o.Tier.Puts) }),
			curve(fresh, "of these, for leases", func(o outcome) float64 { return float64(o.Tier.Leases) }),
			curve(fresh, "answered with SlowDown", func(o outcome) float64 { return float64(o.Tier.SlowDowns) }),
		}},
		{Name: "requests to the bucket, per node", Curves: curves(func(o outcome) float64 {
			return float64(o.Tier.Gets+o.Tier.Heads+o.Tier.Puts) / float64(o.Nodes)
		}, fresh, dying, parted)},
		{Name: "price of all requests to the bucket, $", Curves: curves(func(o outcome) float64 { return o.Tier.cost() }, fresh, dying, parted)},
	}
}
