// Package chart draws curves whose axes are logarithmic: a straight line is a power, and
// its slope the exponent.
package chart

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// The measures of a panel, in pixels, and how many stand side by side.
const (
	panelWidth, panelHeight                       = 330, 240
	marginLeft, marginRight, marginTop, marginLow = 52, 36, 56, 34
	panelsInARow                                  = 3
	legendHeight                                  = 15
)

var colours = [...]string{"#0b6e99", "#c2571a", "#4d7c2f", "#7d4fa3"}

// Panel is one diagram.
type Panel struct {
	Name   string
	Curves []Curve
	Bar    float64 // a line across; 0: none
}

// Curve has a value for each place on the horizontal axis; what is not above 0 is left out.
type Curve struct {
	Name   string
	Values []float64
}

// drawing is what Draw has so far.
type drawing struct {
	bytes.Buffer
	xs []int
}

// Draw is an SVG of the panels, which all have xs, in rising order, on their horizontal axis.
func Draw(xs []int, panels []Panel) []byte {
	d := &drawing{xs: xs}
	rows := (len(panels) + panelsInARow - 1) / panelsInARow
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#222">`+"\n",
		panelsInARow*panelWidth, rows*panelHeight)
	fmt.Fprintln(d, `<rect width="100%" height="100%" fill="#fff"/>`)
	for i, p := range panels {
		fmt.Fprintf(d, `<g transform="translate(%d %d)">`+"\n", i%panelsInARow*panelWidth, i/panelsInARow*panelHeight)
		d.panel(p)
		fmt.Fprintln(d, `</g>`)
	}
	fmt.Fprintln(d, `</svg>`)
	return d.Bytes()
}

// axis is the vertical one of a panel.
type axis struct {
	top       float64 // where it begins
	low, high float64 // decades
}

// axis is long enough for all that p has, in whole decades, and leaves room for the names.
func (p Panel) axis() axis {
	a := axis{max(marginTop, float64(legendHeight*(len(p.Curves)+2)-4)), math.Inf(1), math.Inf(-1)}
	include := func(v float64) {
		if v > 0 {
			a.low = min(a.low, math.Floor(math.Log10(v)))
			a.high = max(a.high, math.Floor(math.Log10(v))+1)
		}
	}
	include(p.Bar)
	for _, c := range p.Curves {
		for _, v := range c.Values {
			include(v)
		}
	}
	return a
}

func (a axis) y(v float64) float64 {
	part := (math.Log10(v) - a.low) / (a.high - a.low)
	return panelHeight - marginLow - part*(panelHeight-a.top-marginLow)
}

func (d *drawing) x(n int) float64 {
	low, high := math.Log10(float64(d.xs[0])), math.Log10(float64(d.xs[len(d.xs)-1]))
	if low == high {
		return marginLeft
	}
	return marginLeft + (math.Log10(float64(n))-low)/(high-low)*(panelWidth-marginLeft-marginRight)
}

func (d *drawing) panel(p Panel) {
	a := p.axis()
	d.text(marginLeft, 14, "start", "#222", `font-weight="bold"`, p.Name)
	for decade := a.low; decade <= a.high; decade++ {
		v := math.Pow(10, decade)
		d.line(marginLeft, a.y(v), panelWidth-marginRight, a.y(v), "#ddd", "")
		d.text(marginLeft-5, a.y(v)+4, "end", "#666", "", fmt.Sprintf("%g", v))
	}
	for _, n := range d.xs {
		d.line(d.x(n), a.top, d.x(n), panelHeight-marginLow, "#ddd", "")
		d.text(d.x(n), panelHeight-marginLow+16, "middle", "#666", "", Group(n))
	}
	if p.Bar > 0 {
		d.line(marginLeft, a.y(p.Bar), panelWidth-marginRight, a.y(p.Bar), "#b00", `stroke-dasharray="4 3"`)
	}
	for i, c := range p.Curves {
		colour := colours[i%len(colours)]
		d.text(marginLeft, float64(30+legendHeight*i), "start", colour, "", c.Name)
		d.curve(a, c, colour)
	}
}

func (d *drawing) curve(a axis, c Curve, colour string) {
	for i, v := range c.Values {
		if v <= 0 {
			continue
		}
		x, y := d.x(d.xs[i]), a.y(v)
		fmt.Fprintf(d, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x, y, colour)
		if i == 0 || c.Values[i-1] <= 0 {
			continue
		}
		d.line(d.x(d.xs[i-1]), a.y(c.Values[i-1]), x, y, colour, `stroke-width="2"`)
	}
}

func (d *drawing) line(x0, y0, x1, y1 float64, colour, more string) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" %s/>`+"\n", x0, y0, x1, y1, colour, more)
}

func (d *drawing) text(x, y float64, anchor, colour, more, s string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s>%s</text>`+"\n", x, y, anchor, colour, more, html.EscapeString(s))
}

// Group is n with a space between thousands.
func Group(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
