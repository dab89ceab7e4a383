package pages

import (
	"fmt"

	"larder/blobcache"
	"larder/handler/admin/history"
)

const (
	// stripWidth is how finely it is drawn what of a blob is there.
	stripWidth = 1000

	chartHeight = 100
	barWidth    = 10 // one minute
)

// bar is a rectangle of a drawing.
type bar struct{ X, Y, Width, Height int64 }

// strip draws what of a blob is there. What is nearer than can be seen is one.
func strip(have []blobcache.Extent, size int64) []bar {
	var bars []bar
	if size <= 0 {
		return nil
	}
	scale := float64(stripWidth) / float64(size)
	for _, e := range have {
		x, end := int64(float64(e.Start)*scale), int64(float64(e.End)*scale)
		if n := len(bars); n > 0 && bars[n-1].X+bars[n-1].Width >= x {
			bars[n-1].Width = max(end-bars[n-1].X, bars[n-1].Width)
			continue
		}
		bars = append(bars, bar{X: x, Width: max(end-x, 1), Height: 10})
	}
	return bars
}

// chart is bars for the minutes of the last hour, two upon each other.
type chart struct {
	Lower, Upper []bar
	Summary      string
}

// hitChart draws which part of the answers were hits, and the others above them.
// Minutes without any have no bar.
func hitChart(minutes []history.Totals) chart {
	var c chart
	var all history.Totals
	for i, m := range minutes {
		all.Answers += m.Answers
		all.Hits += m.Hits
		if m.Answers > 0 {
			c.stack(i, m.Hits, m.Answers-m.Hits, m.Answers)
		}
	}
	c.Summary = fmt.Sprintf("%s of %d answers", ratio(all), all.Answers)
	if all.Answers == 0 {
		c.Summary = "nothing was asked for"
	}
	return c
}

// sentChart draws how much was sent: what was in the cache, and what was not above
// it.
func sentChart(minutes []history.Totals) chart {
	var c chart
	var most int64
	for _, m := range minutes {
		most = max(most, m.Sent)
	}
	for i, m := range minutes {
		if m.Sent > 0 {
			c.stack(i, m.Saved, m.Sent-m.Saved, most)
		}
	}
	c.Summary = fmt.Sprintf("at most %s", speed(float64(most)/60))
	if most == 0 {
		c.Summary = "nothing was sent"
	}
	return c
}

// stack adds two bars for minute i; of is what is as high as the chart.
func (c *chart) stack(i int, lower, upper, of int64) {
	x := int64(i * barWidth)
	low := scaled(lower, of)
	high := scaled(lower+upper, of) - low
	if low > 0 {
		c.Lower = append(c.Lower, bar{x, chartHeight - low, barWidth - 2, low})
	}
	if high > 0 {
		c.Upper = append(c.Upper, bar{x, chartHeight - low - high, barWidth - 2, high})
	}
}

// scaled is a height. What is there can be seen.
func scaled(n, of int64) int64 {
	if n <= 0 || of <= 0 {
		return 0
	}
	return max(int64(float64(n)/float64(of)*chartHeight), 1)
}
