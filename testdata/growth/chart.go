package main

import (
	"fmt"
	"math"

	"larder/testdata/chart"
)

// chart has a panel for each kind of curve.
func (all results) chart() []byte {
	var xs []int
	for _, r := range all {
		xs = append(xs, r.Entries)
	}
	var panels []chart.Panel
	at := make(map[string]int) // in panels, by name
	for _, c := range curves() {
		if c.panel == "" {
			continue
		}
		i, ok := at[c.panel]
		if !ok {
			i = len(panels)
			at[c.panel] = i
			panels = append(panels, chart.Panel{Name: c.panel, Bar: c.bar})
		}
		panels[i].Curves = append(panels[i].Curves, chart.Curve{Name: c.name + all.exponents(c), Values: all.values(c)})
	}
	return chart.Draw(xs, panels)
}

func (all results) values(c curve) (values []float64) {
	for _, r := range all {
		values = append(values, c.of(r))
	}
	return values
}

// exponents are those of a curve from each size to the next.
func (all results) exponents(c curve) (s string) {
	for i := 1; i < len(all); i++ {
		if e := c.exponent(all[i-1], all[i]); !math.IsNaN(e) && !math.IsInf(e, 0) {
			s += fmt.Sprintf(" n^%.2f", e)
		}
	}
	return s
}
