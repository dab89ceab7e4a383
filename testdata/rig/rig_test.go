package rig

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestMain lets the test be the upstream that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == AsUpstream {
		panic(ServeUpstream(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func TestUpstreamIsARegistry(t *testing.T) {
	t.Parallel()
	c := NewContent(filepath.Join(t.TempDir(), "content"))
	t.Cleanup(c.Remove)
	blobs, err := c.Blobs("bench/app", 2, 1000)
	if err != nil {
		t.Fatal(err)
	}
	byTag, byDigest, err := c.Manifest("bench/app", "latest", blobs)
	if err != nil {
		t.Fatal(err)
	}
	up, err := StartUpstream(t.Context(), c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(up.Stop)
	if err := up.Set(Knobs{}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		method, path, asked string
		status              int
		digest              string
		body                []byte
	}{
		{"GET", byTag.path, "", 200, byDigest.Digest, byDigest.data},
		{"HEAD", byTag.path, "", 200, byDigest.Digest, nil},
		{"GET", byDigest.path, "", 200, byDigest.Digest, byDigest.data},
		{"GET", blobs[1].path, "bytes=10-19", 206, blobs[1].Digest, blobs[1].data[10:20]},
		{"GET", "/v2/bench/app/manifests/gone", "", 404, "", []byte("404 page not found\n")},
		{"GET", "/v2/", "", 200, "", nil},
	}
	for _, test := range tests {
		req, err := http.NewRequestWithContext(t.Context(), test.method, "http://"+up.Addr+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", test.asked)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get("Docker-Content-Digest"); err != nil || resp.StatusCode != test.status || got != test.digest || !bytes.Equal(body, test.body) {
			t.Errorf("%s %s: got %d, %q, %d bytes (%v), want %d, %q, %d bytes", test.method, test.path, resp.StatusCode, got, len(body), err, test.status, test.digest, len(test.body))
		}
	}
	got, err := up.Counts()
	if want := (Count{1, 2, 1, int64(2*len(byTag.data) + 10)}); err != nil || got["bench/app"] != want || got.Total() != want {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
}

func TestParseAnswer(t *testing.T) {
	const ok = "HTTP/1.1 206 Partial Content\r\nServer: x\r\ncontent-length:  7\r\nConnection: Close\r\n\r\n"
	tests := map[string]struct {
		head  string
		want  answer
		wrong bool
	}{
		"all":               {head: ok, want: answer{len(ok), 206, 7, true}},
		"no length":         {head: "HTTP/1.1 200 OK\r\n\r\n", want: answer{19, 200, -1, false}},
		"negative length":   {head: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", wrong: true},
		"length, no number": {head: "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", wrong: true},
		"not HTTP":          {head: "SSH-2.0-OpenSSH_9.2\r\n\r\n", wrong: true},
		"no status":         {head: "HTTP/1.1 OK whatever\r\n\r\n", wrong: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseAnswer([]byte(test.head))
			if test.wrong != (err != nil) || err == nil && got != test.want {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func TestParseProc(t *testing.T) {
	if pid, group := parseStat("71 (a ) 9 (b) S 1 70 70 0 -1 4194560"); pid != 71 || group != 70 {
		t.Errorf("got process %d of group %d, want 71 of 70", pid, group)
	}
	const status = "Name:\tVmRSS:\nVmHWM:\t   20 kB\nVmRSS:\t   10 kB\nRssAnon:\t 1 kB\n"
	if rss, hwm := parseStatus(status, "VmRSS"), parseStatus(status, "VmHWM"); rss != 10<<10 || hwm != 20<<10 {
		t.Errorf("got %d and %d bytes, want 10 and 20 KiB", rss, hwm)
	}
}

// TestUpstreamHasOneRate has four clients at once, who share what there is.
func TestUpstreamHasOneRate(t *testing.T) {
	t.Parallel()
	const size, clients, total = 500_000, 4, 10_000_000
	c := NewContent(filepath.Join(t.TempDir(), "content"))
	t.Cleanup(c.Remove)
	blob, err := c.Blob("bench/app", size)
	if err != nil {
		t.Fatal(err)
	}
	up, err := StartUpstream(t.Context(), c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(up.Stop)
	if err := up.Set(Knobs{Total: total}); err != nil {
		t.Fatal(err)
	}
	p := &Pull{Ctx: t.Context(), Addr: up.Addr}
	if err := Every(clients, []Request{Get(blob)})(p); err != nil {
		t.Fatal(err)
	}
	// The first 64 KiB are free.
	if least := time.Second * (clients*size - step) / total; p.Took < least || p.Took > least+2*time.Second {
		t.Errorf("took %v, want %v and little more", p.Took, least)
	}
}
