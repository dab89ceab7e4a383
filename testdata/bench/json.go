package main

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"time"

	"larder/testdata/rig"
)

// reportFile is what -json writes: all figures, and where they are from.
type reportFile struct {
	Date    time.Time
	Command string
	Rounds  int
	Short   bool
	Machine rig.Machine
	Peers   []peerVersion
	Cases   []caseFigures
}

// peerVersion is what was compared.
type peerVersion struct {
	Name    string
	Version string `json:",omitempty"`
	Missing string `json:",omitempty"` // why it was not
}

// caseFigures are a row's.
type caseFigures struct {
	Name, Title string
	Head        metric // what the ratios are of
	Peers       []peerFigures
	Bars        []verdict `json:",omitempty"`
}

// peerFigures are a column's.
type peerFigures struct {
	Peer    string
	Refused string            `json:",omitempty"`
	Figures map[metric]spread `json:",omitempty"`
	Ratios  map[string]spread `json:",omitempty"` // to other peers, of head
	Samples []sample          `json:",omitempty"`
}

// newReportFile has no cases yet.
func newReportFile(f flags, peers []peer) *reportFile {
	report := &reportFile{
		Date: time.Now().UTC(), Command: "go run ./testdata/bench " + strings.Join(os.Args[1:], " "),
		Rounds: f.rounds, Short: f.short, Machine: rig.ThisMachine(),
	}
	for _, p := range peers {
		report.Peers = append(report.Peers, peerVersion{p.name, p.version, p.missing})
	}
	return report
}

// add adds a row. Bars are for all there is to pull, not for little of it.
func (f *reportFile) add(r row) {
	figures := caseFigures{Name: r.name, Title: r.title, Head: r.head}
	for _, c := range r.columns {
		p := peerFigures{Peer: c.Peer, Refused: c.Refused, Samples: c.Samples, Figures: map[metric]spread{}, Ratios: map[string]spread{}}
		for _, m := range r.tableMetrics() {
			if s, ok := newSpread(c.figures(m)); ok && s.finite() {
				p.Figures[m] = s
			}
		}
		for _, of := range []string{nginx, direct} {
			if s, ok := r.ratio(r.head, c.Peer, of); ok && s.finite() {
				p.Ratios[of] = s
			}
		}
		figures.Peers = append(figures.Peers, p)
	}
	if !f.Short {
		for _, b := range r.bars {
			figures.Bars = append(figures.Bars, r.judge(b))
		}
	}
	f.Cases = append(f.Cases, figures)
}

// finite says whether JSON can have it.
func (s spread) finite() bool {
	sum := s.Min + s.Max
	return !math.IsNaN(sum) && !math.IsInf(sum, 0)
}

// write writes the file.
func (f *reportFile) write(name string) error {
	data, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}
