package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"larder/testdata/chart"
)

// results are those of several sizes, in their order.
type results []*result

// readResults reads those of earlier runs, if there are any.
func readResults(name string) (all results, err error) {
	if name == "" {
		return nil, nil
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	return all, err
}

// put adds r, in place of what there is of that size.
func (all *results) put(r *result) {
	*all = slices.DeleteFunc(*all, func(old *result) bool { return old.Entries == r.Entries })
	*all = append(*all, r)
	slices.SortFunc(*all, func(a, b *result) int { return a.Entries - b.Entries })
}

// curve is one thing that was measured, of each size.
type curve struct {
	name, unit string
	of         func(*result) float64
	panel      string // of the chart; "" is none
	bar        float64
}

func curves() []curve {
	return []curve{
		{"first manifest by tag", "ms", func(r *result) float64 { return r.FirstTag }, "first answer, ms", 50},
		{"first blob", "ms", func(r *result) float64 { return r.FirstBlob }, "first answer, ms", 50},
		{"scan", "ms", func(r *result) float64 { return r.Scan }, "scan, ms", 0},
		{"scan, CPU", "ms", func(r *result) float64 { return r.ScanCPU }, "scan, ms", 0},
		{"p99 during the scan", "ms", func(r *result) float64 { return r.Scanned.P99 }, "", 0},
		{"RSS beyond an empty cache", "MiB", func(r *result) float64 { return r.RSSPerEntry * float64(r.Entries) / (1 << 20) }, "memory, MiB", 0},
		{"live heap beyond an empty cache", "MiB", func(r *result) float64 { return r.HeapPerEntry * float64(r.Entries) / (1 << 20) }, "memory, MiB", 0},
		{"RSS an entry", "bytes", func(r *result) float64 { return r.RSSPerEntry }, "memory an entry, bytes", 160},
		{"live heap an entry", "bytes", func(r *result) float64 { return r.HeapPerEntry }, "memory an entry, bytes", 160},
		{"idle CPU", "ms/s", func(r *result) float64 { return r.Idle }, "idle CPU, ms/s", 1},
		{"one garbage collection, CPU", "ms", func(r *result) float64 { return r.GC }, "", 0},
		{"p99 quiet", "ms", func(r *result) float64 { return r.Quiet.P99 }, "p99 of requests, ms", 0},
		{"p99 during the sweep", "ms", func(r *result) float64 { return r.Sweeping.P99 }, "p99 of requests, ms", 0},
		{"p99 during the sweep / quiet", "×", func(r *result) float64 { return r.Sweeping.P99 / r.Quiet.P99 }, "", 2},
		{"swept", "", func(r *result) float64 { return float64(r.Swept) }, "", 0},
		{"sweep", "ms", func(r *result) float64 { return r.Sweep }, "", 0},
		{"sweep, CPU an entry", "µs", func(r *result) float64 { return r.SweepCPU }, "CPU of a removal, µs", 0},
		{"evicted", "", func(r *result) float64 { return float64(r.Evicted) }, "", 0},
		{"eviction", "ms", func(r *result) float64 { return r.Evict }, "", 0},
		{"eviction, CPU an entry", "µs", func(r *result) float64 { return r.EvictCPU }, "CPU of a removal, µs", 0},
	}
}

// exponent is that of the growth from one size to the next.
func (c curve) exponent(from, to *result) float64 {
	return math.Log(c.of(to)/c.of(from)) / math.Log(float64(to.Entries)/float64(from.Entries))
}

// write prints the table, and writes the files that are wanted.
func (all results) write(jsonFile, svgFile string) error {
	if jsonFile != "" {
		data, err := json.MarshalIndent(all, "", "\t")
		if err == nil {
			err = os.WriteFile(jsonFile, append(data, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	if svgFile != "" {
		if err := os.WriteFile(svgFile, all.chart(), 0o644); err != nil {
			return err
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"entries", "", "bar"}
	for i, r := range all {
		head = append(head, chart.Group(r.Entries))
		if i > 0 {
			head = append(head, "exponent")
		}
	}
	fmt.Fprintln(w, strings.Join(head, "\t")+"\t")
	for _, c := range curves() {
		row := []string{c.name, c.unit, ""}
		if c.bar > 0 {
			row[2] = fmt.Sprintf("≤ %g", c.bar)
		}
		for i, r := range all {
			row = append(row, number(c.of(r)))
			if i > 0 {
				row = append(row, exponent(c.exponent(all[i-1], r)))
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	}
	return w.Flush()
}

// exponent is "–" if something could not be measured.
func exponent(e float64) string {
	if math.IsNaN(e) || math.IsInf(e, 0) {
		return "–"
	}
	return fmt.Sprintf("%+.2f", e)
}

// number has three digits that count.
func number(v float64) string {
	if v == 0 {
		return "–"
	}
	if math.Abs(v) >= 100 {
		return chart.Group(int(math.Round(v)))
	}
	return fmt.Sprintf("%.3g", v)
}
