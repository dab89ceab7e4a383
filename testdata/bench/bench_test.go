package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"larder/testdata/rig"
)

// asLiar as the first argument makes the test a registry that lies.
const asLiar = "liar"

// TestMain lets the test be the processes that it starts.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 4 && os.Args[1] == rig.AsUpstream:
		panic(rig.ServeUpstream(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == asLiar:
		panic(http.ListenAndServe(os.Args[2], lie(os.Args[3])))
	}
	os.Exit(m.Run())
}

// lie answers as the case of TestWrongAnswersGiveNoFigures says.
func lie(how string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(how[strings.Index(how, ":")+1:] + r.URL.Path)
		if err != nil {
			return // it is being waited for
		}
		switch {
		case strings.HasPrefix(how, "last byte:"):
			data[len(data)-1] ^= 1
		case strings.HasPrefix(how, "first byte:"):
			data[0] ^= 1
		case strings.HasPrefix(how, "short:"):
			data = data[1:]
		case strings.HasPrefix(how, "breaks:"):
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			data = data[:len(data)/2]
		case strings.HasPrefix(how, "status:"):
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		case strings.HasPrefix(how, "ends:"):
			os.Exit(1)
		}
		if w.Header().Get("Content-Length") == "" {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		}
		w.Write(data)
	})
}

// testCase has one client pull a blob.
func testCase(size int64) benchCase {
	return benchCase{
		name: "test", cannot: noUpstream, head: seconds, bars: []bar{atMost(1, seconds, direct)},
		prepare: coldBlob(size, 1),
	}
}

// liars are called larder, as bars are that one's.
func liar(t *testing.T, how string) peer {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return peer{name: larder, program: self, command: func(program string, p place) (*exec.Cmd, error) {
		return exec.Command(program, asLiar, p.Addr, how+":"+p.Content), nil
	}}
}

func TestWrongAnswersGiveNoFigures(t *testing.T) {
	tests := map[string]string{ // how: part of the reason
		"first byte": "wrong bytes",
		"last byte":  "wrong bytes",
		"short":      "2999999 bytes, not 3000000",
		"breaks":     "1500000 of 3000000 bytes",
		"status":     "status 503, not 200",
		"ends":       "no answer",
		"truth":      "",
	}
	for how, reason := range tests {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := &bench{dir: t.TempDir(), peers: []peer{{name: direct}, liar(t, how), {name: nginx, missing: "not installed"}}, rounds: 2, scale: full()}
			r, err := b.run(t.Context(), testCase(3_000_000))
			if err != nil {
				t.Fatal(err)
			}
			if c := r.columns[0]; c.Refused != "" || len(c.Samples) != 2 {
				t.Errorf("got %d samples of %s, want 2 (%s)", len(c.Samples), c.Peer, c.Refused)
			}
			if c := r.columns[2]; c.Refused != "not installed" || c.Samples != nil {
				t.Errorf("got %+v of what is not installed", c)
			}
			lied, v := r.columns[1], r.judge(r.bars[0])
			if reason == "" {
				if lied.Refused != "" || len(lied.Samples) != 2 || v.Unknown != "" {
					t.Errorf("got %+v, %+v of one that does not lie", lied, v)
				}
				return
			}
			if !strings.Contains(lied.Refused, reason) || lied.Samples != nil || v.Unknown == "" || v.Reached {
				t.Errorf("got %+v, %+v, want no figures because of %q", lied, v, reason)
			}
			report := &reportFile{}
			report.add(r)
			if err := report.finish(flags{}); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("got error %v, want one with %q", err, reason)
			}
		})
	}
}

// TestSampleIsComplete pulls from upstream itself, whose figures are known.
func TestSampleIsComplete(t *testing.T) {
	t.Parallel()
	b := &bench{dir: t.TempDir(), peers: []peer{{name: direct}}, rounds: 1, scale: full()}
	k := testCase(4_000_000)
	k.Knobs = rig.Knobs{Rate: 40_000_000, Latency: 30 * time.Millisecond}
	r, err := b.run(t.Context(), k)
	if err != nil || r.columns[0].Refused != "" {
		t.Fatalf("%v, %s", err, r.columns[0].Refused)
	}
	s := r.columns[0].Samples[0]
	if want := (rig.Count{Blobs: 1, Bytes: 4_000_000}); s.Upstream != want || s.Requests != 1 || s.Bytes != want.Bytes || s.Size != want.Bytes {
		t.Errorf("got %+v, want one pull of 4 MB", s)
	}
	if s.First50 < 0.030 || s.Seconds < 0.130-0.010 || s.Total50 < s.First50 || s.Total50 > s.Seconds {
		t.Errorf("got %+v, want a first byte after 30 ms, and the last of 100 steps 90 ms later", s)
	}
	if s.CPU <= 0 || s.Idle <= 0 || s.Peak < s.Idle {
		t.Errorf("got %+v, want CPU and memory", s)
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "*")); left != nil {
		t.Errorf("%q were left behind", left)
	}
}

func TestMediansAndQuantiles(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{9, 1, 2}, spread{2, 1, 9}},
		{[]float64{4, 1, 9, 2}, spread{3, 1, 9}},
	} {
		if got, ok := newSpread(test.values); !ok || got != test.want {
			t.Errorf("got %v of %v, want %v", got, test.values, test.want)
		}
	}
	if got, ok := newSpread(nil); ok {
		t.Errorf("got %v of nothing", got)
	}
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	if p50, p99, none := quantile(hundred, 0.5), quantile(hundred, 0.99), quantile([]int(nil), 0.5); p50 != 51 || p99 != 100 || none != 0 {
		t.Errorf("got %d, %d and %d, want 51, 100 and 0", p50, p99, none)
	}
}

// judged is a row with times of two rounds.
func judged(larderTimes, nginxTimes []float64) row {
	of := func(name string, times []float64) column {
		c := column{Peer: name}
		for _, s := range times {
			c.Samples = append(c.Samples, sample{Seconds: s, Requests: 10, Bytes: 1e9})
		}
		return c
	}
	k := benchCase{name: "test", title: "<a> & b", head: seconds}
	return row{k, []column{of(larder, larderTimes), of(nginx, nginxTimes), {Peer: static, Refused: "has <no> upstream"}}}
}

func TestBarsAreOfRatiosRoundByRound(t *testing.T) {
	r := judged([]float64{1, 8, 3}, []float64{2, 4, 3}) // 0.5, 2, 1
	tests := map[string]struct {
		bar     bar
		reached bool
		got     spread
	}{
		"reached":           {atMost(1, seconds, nginx), true, spread{1, 0.5, 2}},
		"missed":            {atMost(0.99, seconds, nginx), false, spread{1, 0.5, 2}},
		"at least, reached": {atLeast(1, throughput, nginx), true, spread{1, 0.5, 2}},
		"at least, missed":  {atLeast(1.01, throughput, nginx), false, spread{1, 0.5, 2}},
		"of nobody":         {atMost(3, seconds, ""), true, spread{3, 1, 8}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if v := r.judge(test.bar); v.Unknown != "" || v.Reached != test.reached || v.Got != test.got {
				t.Errorf("%v: got %+v, want %v, %v", test.bar, v, test.reached, test.got)
			}
		})
	}
	if v := r.judge(atMost(1, seconds, static)); v.Unknown == "" || v.Reached {
		t.Errorf("got %+v of a bar of a peer without figures", v)
	}
}

func TestReportFiles(t *testing.T) {
	dir := t.TempDir()
	report := &reportFile{}
	report.add(judged([]float64{1, 2}, []float64{2, 2}))
	f := flags{json: filepath.Join(dir, "json"), svg: filepath.Join(dir, "svg")}
	if err := report.finish(f); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.json)
	if err != nil {
		t.Fatal(err)
	}
	var got reportFile
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if p := got.Cases[0].Peers[0]; p.Figures[seconds] != (spread{1.5, 1, 2}) || p.Ratios[nginx] != (spread{0.75, 0.5, 1}) || len(p.Samples) != 2 {
		t.Errorf("got %+v", p)
	}
	svg, err := os.ReadFile(f.svg)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			texts = append(texts, string(text))
		}
	}
	for _, want := range []string{"<a> & b", "has <no> upstream", "1.5", "2"} {
		if !slices.Contains(texts, want) {
			t.Errorf("no %q in the chart", want)
		}
	}
}

// TestCases looks at what must be so for all of them: small, they do what they say.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range allCases() {
		if seen[k.name] || k.title == "" || k.head == "" || len(k.bars) == 0 {
			t.Errorf("%s: twice, or without a title, a head or bars", k.name)
		}
		seen[k.name] = true
		for _, m := range (row{benchCase: k}).tableMetrics() {
			sample{}.figure(m) // panics for one that there is not
		}
	}
}
