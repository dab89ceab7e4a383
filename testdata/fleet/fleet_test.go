package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"larder/testdata/rig"
)

// TestMain lets the test be the upstream that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == rig.AsUpstream {
		panic(rig.ServeUpstream(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// TestWithoutATierEachNodeFetchesAll runs a case, of which it is known what comes out.
func TestWithoutATierEachNodeFetchesAll(t *testing.T) {
	dir := t.TempDir()
	o := options{nodes: 3, image: 3e6, rate: 50e6, larder: filepath.Join(dir, "larder")}
	if err := rig.BuildLarder(t.Context(), o.larder); err != nil {
		t.Fatal(err)
	}
	r, err := fleetCase{name: "test", nodes: o.nodes, image: o.image}.run(t.Context(), o, dir)
	if err != nil {
		t.Fatal(err)
	}
	if times := r.timesImage(); times < 3 || times > 3.1 {
		t.Errorf("%v × the image came from upstream, want 3 × and the manifests", times)
	}
	if least := time.Second * 8 / 50; r.cold.took < least { // 9 MB at 50 MB/s, the first pieces at once
		t.Errorf("took %v, want at least %v", r.cold.took, least)
	}
	if r.cold.larders <= 0 || r.cold.all <= r.cold.larders {
		t.Errorf("CPU %v of %v, want some, and less than all", r.cold.larders, r.cold.all)
	}
	if requests(r.warm.upstream) != 0 || r.warm.tier != nil {
		t.Errorf("with warm disks %+v was asked for", r.warm)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "case*")); left != nil {
		t.Errorf("%q were left behind", left)
	}
}

func TestRequestsOfTheGateway(t *testing.T) {
	const log = `log starts 2026-11-25 22:11:13.61448293 +0000 UTC m=+0.016091121
- larder [25/November/2026:22:11:14 +0000] 127.0.0.1 k 21IKIOBWVBZO9721 s3_PutObject blobs/x /larder/blobs/x 200 - 0 0 0 0 - curl/7.88.1 - x SigV4 - AuthHeader s3.us-east-1.amazonaws.com - arn:aws:s3:::/larder/blobs/x Yes
- larder [25/November/2026:22:11:14 +0000] 127.0.0.1 k JDZ0FCVIB7A5JK72 s3_HeadObject blobs/y /larder/blobs/y 403 SignatureDoesNotMatch 0 0 0 0 - curl/7.88.1 - x SigV4 - AuthHeader s3.us-east-1.amazonaws.com - arn:aws:s3:::/larder/blobs/y Yes
- larder [25/November/2026:22:11:14 +0000] 127.0.0.1 k JDZ0FCVIB7A5JK73 s3_HeadObject blobs/y /larder/blobs/y 200 - 0 0 0 0 - curl/7.88.1 - x SigV4 - AuthHeader s3.us-east-1.amazonaws.com - arn:aws:s3:::/larder/blobs/y Yes
`
	got, err := logged(strings.NewReader(log))
	if want := map[string]int{"PutObject": 1, "HeadObject": 2}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}

func TestRequestsAsLarderSays(t *testing.T) {
	const metrics = `# TYPE larder_shared_requests_total counter
larder_shared_requests_total{op="get",result="absent"} 7
larder_shared_requests_total{op="get",result="ok"} 5
larder_shared_requests_total{op="put",result="ok"} 1e+06
larder_shared_read_bytes_total 77
`
	got := map[string]int{"put": 1}
	if err := parseShared([]byte(metrics), got); err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"get": 12, "put": 1e6 + 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBarsOfBytesAreErrorsAndThoseOfTimeAreNot(t *testing.T) {
	const size = 100e6
	of := func(c fleetCase, seconds, times float64) row {
		c.image = size
		return row{fleetCase: c, cold: figures{
			took: time.Duration(seconds * float64(time.Second)), upstream: rig.Count{Bytes: int64(times * size)},
		}}
	}
	alone := of(fleetCase{name: "alone", nodes: 1}, 10, 1)
	shared := fleetCase{name: "shared", nodes: 20, tier: tier{kind: fileTier}}
	asked := of(shared, 12, 1)
	asked.warm.tier = map[string]int{"get": 3}
	tests := map[string]struct {
		row         row
		says, wrong string
	}{
		"all right":       {of(shared, 14, 1.04), "reached", ""},
		"slow":            {of(shared, 16, 1), "MISSED", ""},
		"too many bytes":  {of(shared, 12, 1.06), "reached", "1.06 × the image"},
		"asked when warm": {asked, "reached", "3 get"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := &report{machine: rig.ThisMachine(), rows: []row{alone, test.row}}
			var out bytes.Buffer
			r.write(&out)
			err := r.judge(&out)
			if !strings.Contains(out.String(), test.says) || (err != nil) != (test.wrong != "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("got error %v and\n%s", err, out.String())
			}
		})
	}
}
