package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"

	"larder/testdata/rig"
)

// The chart's measures, in pixels: panels side by side, bars below each other.
const (
	panelWidth  = 400
	panelGap    = 24
	panelsInRow = 2
	labelWidth  = 110
	valueWidth  = 90
	barsWidth   = panelWidth - labelWidth - valueWidth
	barHeight   = 14
	lineHeight  = 20
	headHeight  = 44
)

// chartStyle has colours for both kinds of pages.
const chartStyle = `
	text { font: 12px system-ui, sans-serif; fill: #333 }
	.title { font-weight: 600 }
	.note { fill: #777; font-size: 11px }
	.value { font-variant-numeric: tabular-nums }
	rect { fill: #9aa7b5 }
	rect.larder { fill: #2f7de1 }
	rect.nginx { fill: #5f9e57 }
	line { stroke: #333 }
	@media (prefers-color-scheme: dark) {
		text { fill: #ddd }
		.note { fill: #999 }
		rect { fill: #66717d }
		rect.larder { fill: #5a9cf0 }
		rect.nginx { fill: #7dbb74 }
		line { stroke: #ddd }
	}
`

// writeSVG draws a panel for each case, with a bar for each peer.
func (f *reportFile) writeSVG(name string) error {
	var panels strings.Builder
	x, y, rowHeight := 0, 0, 0
	for i, c := range f.Cases {
		if i > 0 && i%panelsInRow == 0 {
			x, y, rowHeight = 0, y+rowHeight+panelGap, 0
		}
		fmt.Fprintf(&panels, "<g transform=\"translate(%d %d)\">\n%s</g>\n", x, y, c.panel())
		x += panelWidth + panelGap
		rowHeight = max(rowHeight, headHeight+len(c.Peers)*lineHeight)
	}
	const width = panelsInRow*(panelWidth+panelGap) - panelGap
	svg := fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-8 0 %d %d\">\n<style>%s</style>\n%s</svg>\n",
		width+16, y+rowHeight+panelGap, chartStyle, panels.String())
	return os.WriteFile(name, []byte(svg), 0o644)
}

// panel is the case's part of the chart.
func (c caseFigures) panel() string {
	var s strings.Builder
	better := "less is better"
	if c.Head == rate {
		better = "more is better"
	}
	fmt.Fprintf(&s, "<text class=\"title\" y=\"14\">%s</text>\n<text class=\"note\" y=\"30\">%s, %s</text>\n", escape(c.Title), escape(string(c.Head)), better)
	limit := c.axis()
	for i, p := range c.Peers {
		y := headHeight + i*lineHeight
		fmt.Fprintf(&s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labelWidth-6, y+11, escape(p.Peer))
		head, ok := p.Figures[c.Head]
		if !ok {
			fmt.Fprintf(&s, "<text class=\"note\" x=\"%d\" y=\"%d\">%s</text>\n", labelWidth, y+11, escape(shorten(p.Refused)))
			continue
		}
		at := func(v float64) float64 { return labelWidth + barsWidth*min(v/limit, 1) }
		value := rig.Digits(head.Median)
		if head.Median > limit {
			value = "» " + value // the bar is cut off
		}
		fmt.Fprintf(&s, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", escape(p.Peer), labelWidth, y, at(head.Median)-labelWidth, barHeight)
		fmt.Fprintf(&s, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", at(head.Min), at(head.Max), y+barHeight/2, y+barHeight/2)
		fmt.Fprintf(&s, "<text class=\"value\" x=\"%.1f\" y=\"%d\">%s</text>\n", at(head.Max)+6, y+11, value)
	}
	return s.String()
}

// axis is the value of the longest bar. One peer that is much slower than nginx
// does not make all others look alike: its bar is cut off.
func (c caseFigures) axis() float64 {
	const timesNginx = 4
	var longest, ofNginx float64
	for _, p := range c.Peers {
		head := p.Figures[c.Head]
		longest = max(longest, head.Max)
		if p.Peer == nginx {
			ofNginx = head.Median
		}
	}
	if c.Head != rate && ofNginx > 0 {
		longest = min(longest, timesNginx*ofNginx)
	}
	if longest == 0 {
		return 1
	}
	return longest
}

// shorten is what there is room for.
func shorten(s string) string {
	const room = 44
	if r := []rune(s); len(r) > room {
		return string(r[:room-1]) + "…"
	}
	return s
}

// escape makes text of XML.
func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}
