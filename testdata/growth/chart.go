package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// A chart has a panel for each kind of curve, both of whose axes are logarithmic: a
// straight line is a power, and its slope the exponent.
const (
	panelWidth, panelHeight                       = 330, 240
	marginLeft, marginRight, marginTop, marginLow = 52, 36, 56, 34
	panelsInARow                                  = 3
)

var colours = [...]string{"#0b6e99", "#c2571a"}

type panel struct {
	name   string
	curves []curve
	low    float64 // decades of the vertical axis
	high   float64
}

func (all results) panels() (list []*panel) {
	byName := make(map[string]*panel)
	for _, c := range curves() {
		if c.panel == "" {
			continue
		}
		p := byName[c.panel]
		if p == nil {
			p = &panel{name: c.panel, low: math.Inf(1), high: math.Inf(-1)}
			byName[c.panel] = p
			list = append(list, p)
		}
		p.curves = append(p.curves, c)
		for _, r := range all {
			p.include(c.of(r))
		}
		p.include(c.bar)
	}
	return list
}

// include makes the axis long enough for v, in whole decades.
func (p *panel) include(v float64) {
	if v > 0 {
		p.low = min(p.low, math.Floor(math.Log10(v)))
		p.high = max(p.high, math.Floor(math.Log10(v))+1)
	}
}

// chart is the results as an SVG.
func (all results) chart() []byte {
	var b bytes.Buffer
	panels := all.panels()
	rows := (len(panels) + panelsInARow - 1) / panelsInARow
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#222">`+"\n",
		panelsInARow*panelWidth, rows*panelHeight)
	fmt.Fprintln(&b, `<rect width="100%" height="100%" fill="#fff"/>`)
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%panelsInARow*panelWidth, i/panelsInARow*panelHeight)
		all.draw(&b, p)
		fmt.Fprintln(&b, `</g>`)
	}
	fmt.Fprintln(&b, `</svg>`)
	return b.Bytes()
}

func (all results) x(entries int) float64 {
	low, high := math.Log10(float64(all[0].Entries)), math.Log10(float64(all[len(all)-1].Entries))
	if low == high {
		return marginLeft
	}
	return marginLeft + (math.Log10(float64(entries))-low)/(high-low)*(panelWidth-marginLeft-marginRight)
}

func (p *panel) y(v float64) float64 {
	part := (math.Log10(v) - p.low) / (p.high - p.low)
	return panelHeight - marginLow - part*(panelHeight-marginTop-marginLow)
}

func (all results) draw(b *bytes.Buffer, p *panel) {
	text(b, marginLeft, 14, "start", "#222", `font-weight="bold"`, p.name)
	for decade := p.low; decade <= p.high; decade++ {
		v := math.Pow(10, decade)
		line(b, marginLeft, p.y(v), panelWidth-marginRight, p.y(v), "#ddd", "")
		text(b, marginLeft-5, p.y(v)+4, "end", "#666", "", fmt.Sprintf("%g", v))
	}
	for _, r := range all {
		line(b, all.x(r.Entries), marginTop, all.x(r.Entries), panelHeight-marginLow, "#ddd", "")
		text(b, all.x(r.Entries), panelHeight-marginLow+16, "middle", "#666", "", group(r.Entries))
	}
	for i, c := range p.curves {
		colour := colours[i%len(colours)]
		text(b, marginLeft, float64(30+15*i), "start", colour, "", c.name+all.exponents(c))
		if c.bar > 0 && i == 0 {
			line(b, marginLeft, p.y(c.bar), panelWidth-marginRight, p.y(c.bar), "#b00", `stroke-dasharray="4 3"`)
		}
		all.drawCurve(b, p, c, colour)
	}
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

func (all results) drawCurve(b *bytes.Buffer, p *panel, c curve, colour string) {
	for i, r := range all {
		v := c.of(r)
		if v <= 0 {
			continue
		}
		x, y := all.x(r.Entries), p.y(v)
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x, y, colour)
		if i == 0 || c.of(all[i-1]) <= 0 {
			continue
		}
		x0, y0 := all.x(all[i-1].Entries), p.y(c.of(all[i-1]))
		line(b, x0, y0, x, y, colour, `stroke-width="2"`)
	}
}

func line(b *bytes.Buffer, x0, y0, x1, y1 float64, colour, more string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" %s/>`+"\n", x0, y0, x1, y1, colour, more)
}

func text(b *bytes.Buffer, x, y float64, anchor, colour, more, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s>%s</text>`+"\n", x, y, anchor, colour, more, html.EscapeString(s))
}
