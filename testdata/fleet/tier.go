package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"larder/testdata/rig"
)

// The kinds of tiers; "" is none.
const (
	fileTier = "file"
	s3Tier   = "s3"
)

// What the gateway is run with. It listens on loopback, for as long as a case takes.
const (
	gatewayProgram = "versitygw"
	accessKey      = "fleet"
	secretKey      = "fleet-fleet"
	bucket         = "larder"
)

// tier is what the larders share.
type tier struct {
	kind    string
	dir     string
	gateway *rig.Process // of s3Tier
}

// missing is why there can be none of this kind here; "" if there can.
func (t *tier) missing() string {
	if t.kind == s3Tier {
		if _, err := exec.LookPath(gatewayProgram); err != nil {
			return gatewayProgram + " is not installed"
		}
	}
	return ""
}

// start makes an empty one.
func (t *tier) start(ctx context.Context, dir string) error {
	t.dir = dir
	if err := os.MkdirAll(filepath.Join(dir, "buckets", bucket), 0o755); err != nil {
		return err
	}
	if t.kind != s3Tier {
		return nil
	}
	addr, err := rig.FreeAddr()
	if err != nil {
		return err
	}
	cmd := exec.Command(gatewayProgram, "--access", accessKey, "--secret", secretKey, "--port", addr,
		"--quiet", "--keep-alive", "--access-log", t.accessLog(), "posix", filepath.Join(dir, "buckets"))
	t.gateway, err = rig.StartProcess(ctx, cmd, addr, filepath.Join(dir, "output"))
	return err
}

func (t *tier) stop() {
	if t.gateway != nil {
		t.gateway.Stop()
	}
}

func (t *tier) accessLog() string { return filepath.Join(t.dir, "access.log") }

// environ is how larders are told.
func (t *tier) environ() []string {
	switch t.kind {
	case fileTier:
		return []string{"LARDER_SHARED=file://" + filepath.Join(t.dir, "buckets", bucket)}
	case s3Tier:
		return []string{
			"LARDER_SHARED=s3://" + bucket + "?region=us-east-1&endpoint=http://" + t.gateway.Addr,
			"LARDER_SHARED_ACCESS_KEY=" + accessKey, "LARDER_SHARED_SECRET_KEY=" + secretKey,
		}
	}
	return nil
}

// requests are those so far, by kind: as the gateway has logged them, or as the larders
// say where there is no gateway.
func (t *tier) requests(nodes []*node) (map[string]int, error) {
	switch t.kind {
	case s3Tier:
		f, err := os.Open(t.accessLog())
		if os.IsNotExist(err) {
			return map[string]int{}, nil
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return logged(f)
	case fileTier:
		sum := map[string]int{}
		for _, n := range nodes {
			if err := n.addShared(sum); err != nil {
				return nil, err
			}
		}
		return sum, nil
	}
	return nil, nil
}

// operation is what a line of the gateway's access log says was asked for.
var operation = regexp.MustCompile(` s3_(\w+) `)

// logged counts the operations of an access log.
func logged(r io.Reader) (map[string]int, error) {
	counts := map[string]int{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if op := operation.FindSubmatch(lines.Bytes()); op != nil {
			counts[string(op[1])]++
		}
	}
	return counts, lines.Err()
}

// sharedMetric is what a larder says of its requests to the tier.
var sharedMetric = regexp.MustCompile(`(?m)^larder_shared_requests_total\{.*?op="(\w+)".*?\} (\S+)$`)

// addShared adds what a larder has asked of the tier so far.
func (n *node) addShared(sum map[string]int) error {
	resp, err := http.Get("http://" + n.admin + "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return parseShared(text, sum)
}

func parseShared(text []byte, sum map[string]int) error {
	for _, m := range sharedMetric.FindAllSubmatch(text, -1) {
		v, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return fmt.Errorf("metric %s: %w", bytes.TrimSpace(m[0]), err)
		}
		sum[strings.ToLower(string(m[1]))] += int(v)
	}
	return nil
}
