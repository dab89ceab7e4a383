package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"larder/testdata/rig"
)

// figures are a metric's over the rounds.
func (c column) figures(m metric) []float64 {
	values := make([]float64, len(c.Samples))
	for i, s := range c.Samples {
		values[i] = s.figure(m)
	}
	return values
}

// column is the peer's, with figures.
func (r row) column(peer string) (column, bool) {
	for _, c := range r.columns {
		if c.Peer == peer && c.Refused == "" {
			return c, true
		}
	}
	return column{}, false
}

// ratio is that of two peers, round by round.
func (r row) ratio(m metric, peer, of string) (spread, bool) {
	a, ok := r.column(peer)
	b, ok2 := r.column(of)
	if !ok || !ok2 {
		return spread{}, false
	}
	ratios := make([]float64, len(a.Samples))
	for i := range ratios {
		ratios[i] = a.Samples[i].figure(m) / b.Samples[i].figure(m)
	}
	return newSpread(ratios)
}

// verdict is how larder did at a bar.
type verdict struct {
	Bar     string
	Reached bool
	Unknown string // why it is not known
	Got     spread
}

// judge compares larder with the bar.
func (r row) judge(b bar) verdict {
	v := verdict{Bar: b.String()}
	var ok bool
	if b.of == "" {
		c, _ := r.column(larder)
		v.Got, ok = newSpread(c.figures(b.metric))
	} else {
		v.Got, ok = r.ratio(b.metric, larder, b.of)
	}
	switch {
	case !ok:
		v.Unknown = "no figures"
	case b.least:
		v.Reached = v.Got.Median >= b.limit
	default:
		v.Reached = v.Got.Median <= b.limit
	}
	return v
}

// String is the bar as the table of bars has it.
func (b bar) String() string {
	sign, of := "≤", ""
	if b.least {
		sign = "≥"
	}
	if b.of != "" {
		of = " × " + b.of
	}
	return fmt.Sprintf("%s %s %.4g%s", b.metric, sign, b.limit, of)
}

// tableMetrics are the columns of the row's table.
func (r row) tableMetrics() []metric {
	columns := []metric{seconds, firstByte50, firstByte99, total99, cpuSeconds, growth, upstreamRequests, upstreamMiB}
	more := append([]metric{r.head}, r.also...)
	for _, b := range r.bars {
		more = append(more, b.metric)
	}
	for _, m := range more {
		if !slices.Contains(columns, m) {
			columns = append(columns, m)
		}
	}
	return columns
}

// writeTable writes what all peers did in a case: medians, the spread of what
// the ratios are of, and the bars.
func (r row) writeTable(out io.Writer) {
	fmt.Fprintf(out, "\n%s: %s\n", r.name, r.title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "peer\t")
	for _, m := range r.tableMetrics() {
		fmt.Fprintf(w, "%s\t", m)
	}
	fmt.Fprintf(w, "min–max of %s\t× %s\t× %s\t\n", r.head, nginx, direct)
	for _, c := range r.columns {
		if c.Refused == "" {
			r.writeLine(w, c)
		}
	}
	w.Flush()
	for _, c := range r.columns {
		if c.Refused != "" {
			fmt.Fprintf(out, "  %s: no figures: %s\n", c.Peer, c.Refused)
		}
	}
}

// writeBars writes which bars are reached.
func (c caseFigures) writeBars(out io.Writer) {
	for _, v := range c.Bars {
		fmt.Fprintln(out, "  "+v.String())
	}
}

// writeHead writes what is compared, and where.
func (f *reportFile) writeHead(out io.Writer) {
	fmt.Fprintf(out, "%s, %d cores, Linux %s, %s; medians of %d rounds\n", f.Machine.CPU, f.Machine.Cores, f.Machine.Kernel, f.Machine.Go, f.Rounds)
	for _, p := range f.Peers {
		fmt.Fprintf(out, "  %s %s%s\n", p.Name, p.Version, p.Missing)
	}
	if f.Short {
		fmt.Fprintln(out, "  -short: too little for figures that mean something; bars are not judged")
	}
}

// writeLine writes a peer's figures.
func (r row) writeLine(w io.Writer, c column) {
	fmt.Fprintf(w, "%s\t", c.Peer)
	for _, m := range r.tableMetrics() {
		s, _ := newSpread(c.figures(m))
		fmt.Fprintf(w, "%s\t", rig.Digits(s.Median))
	}
	head, _ := newSpread(c.figures(r.head))
	fmt.Fprintf(w, "%s–%s\t", rig.Digits(head.Min), rig.Digits(head.Max))
	for _, of := range []string{nginx, direct} {
		ratio, ok := r.ratio(r.head, c.Peer, of)
		if !ok {
			fmt.Fprint(w, "–\t")
			continue
		}
		fmt.Fprintf(w, "%.2f\t", ratio.Median)
	}
	fmt.Fprintln(w)
}

// String is one line.
func (v verdict) String() string {
	switch {
	case v.Unknown != "":
		return fmt.Sprintf("?       %s: %s", v.Bar, v.Unknown)
	case v.Reached:
		return fmt.Sprintf("reached %s: %s (%s–%s)", v.Bar, rig.Digits(v.Got.Median), rig.Digits(v.Got.Min), rig.Digits(v.Got.Max))
	default:
		return fmt.Sprintf("MISSED  %s: %s (%s–%s)", v.Bar, rig.Digits(v.Got.Median), rig.Digits(v.Got.Min), rig.Digits(v.Got.Max))
	}
}
