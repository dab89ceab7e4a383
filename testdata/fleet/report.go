package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"larder/testdata/rig"
)

// The bars.
const (
	mostBytes = 1.05 // of upstream, times the image
	mostTime  = 1.5  // times that of one node alone

	// mostShort is that of bytes with -short, perhaps on a machine with much else to do: who
	// gets no CPU takes the tier for slow. Without one it would be as many as there are nodes.
	mostShort = 2
)

// report is all that a run gave.
type report struct {
	options
	machine rig.Machine
	rows    []row
}

func (r *report) writeHead(w io.Writer) {
	fmt.Fprintf(w, "%s, %d cores, Linux %s, %s; upstream sends %s MB/s in all\n",
		r.machine.CPU, r.machine.Cores, r.machine.Kernel, r.machine.Go, rig.Digits(float64(r.rate)/1e6))
	if r.short {
		fmt.Fprintln(w, "  -short: too little for figures that mean something; times are not judged")
	}
}

// write writes a table, and below it what was asked of the tier.
func (r *report) write(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tnodes\tMB\ttime s\t× alone\tMB from upstream\t× image\tupstream requests\tCPU s of larders\tof all\tcores busy %\tsecond pull s\t")
	for _, row := range r.rows {
		c := row.cold
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t\n", row.name, row.nodes, rig.Digits(float64(row.image)/1e6),
			rig.Digits(c.took.Seconds()), r.timesAlone(row), rig.Digits(float64(c.upstream.Bytes)/1e6), rig.Digits(row.timesImage()),
			requests(c.upstream), rig.Digits(c.larders.Seconds()), rig.Digits(c.all.Seconds()), rig.Digits(r.busy(c)), rig.Digits(row.warm.took.Seconds()))
	}
	w.Flush()
	for _, row := range r.rows {
		if row.tier.kind != "" {
			fmt.Fprintf(out, "%s: requests to the tier: %s\n", row.name, byKind(row.cold.tier))
			fmt.Fprintf(out, "  second pull: %d requests to upstream; to the tier: %s\n", requests(row.warm.upstream), byKind(row.warm.tier))
		}
	}
}

// requests are all of them.
func requests(c rig.Count) int { return c.Heads + c.Manifests + c.Blobs }

// byKind is in words.
func byKind(counts map[string]int) string {
	if len(counts) == 0 {
		return "none"
	}
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%d %s", counts[kind], kind))
	}
	return strings.Join(words, ", ")
}

// timesImage is how often the image has come from upstream.
func (r row) timesImage() float64 { return float64(r.cold.upstream.Bytes) / float64(r.image) }

// alone is what one node took for the same image.
func (r *report) alone(of row) (row, bool) {
	for _, a := range r.rows {
		if a.nodes == 1 && a.image == of.image && a.tier.kind == "" {
			return a, true
		}
	}
	return row{}, false
}

func (r *report) timesAlone(of row) string {
	a, ok := r.alone(of)
	if !ok {
		return "–"
	}
	return rig.Digits(of.cold.took.Seconds() / a.cold.took.Seconds())
}

// busy is the share of the machine that was used, in percent: near 100, it is the machine
// that was measured, and not the larders.
func (r *report) busy(f figures) float64 {
	return 100 * f.all.Seconds() / f.took.Seconds() / float64(r.machine.Cores)
}

// judge says which bars are reached. What does not depend on the machine is an error if it is missed.
func (r *report) judge(w io.Writer) error {
	var wrong []string
	most := mostBytes
	if r.short {
		most = mostShort
	}
	for _, row := range r.rows {
		if row.tier.kind == "" {
			continue
		}
		if times := row.timesImage(); times > most {
			wrong = append(wrong, fmt.Sprintf("%s: %.2f × the image from upstream, not ≤ %v", row.name, times, most))
		}
		if len(row.warm.tier) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s: with warm disks the tier was asked: %s", row.name, byKind(row.warm.tier)))
		}
		if a, ok := r.alone(row); ok && !r.short {
			verdict := "reached"
			if row.cold.took.Seconds() > mostTime*a.cold.took.Seconds() {
				verdict = "MISSED"
			}
			fmt.Fprintf(w, "%s %s: time ≤ %v × one node alone: %s\n", verdict, row.name, mostTime, r.timesAlone(row))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%s", strings.Join(wrong, "; "))
	}
	return nil
}
