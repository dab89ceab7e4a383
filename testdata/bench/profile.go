package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"larder/testdata/rig"
)

// profile runs the case once more against larder, with larder's CPU profile
// being taken, which goes to dir. The figures of that run don't count.
func (t *trial) profile(ctx context.Context, c *contestant, dir string) error {
	if err := t.ready(ctx, c); err != nil {
		return err
	}
	took, _ := newSpread(c.column.figures(seconds))
	fetched := make(chan error, 1)
	go func() { // ends with the profile, which is waited for below
		fetched <- fetchProfile(ctx, c.running.place.Admin, int(math.Ceil(took.Median)), filepath.Join(dir, t.name+".pprof"))
	}()
	time.Sleep(100 * time.Millisecond) // until it has begun
	err := t.load(&rig.Pull{Ctx: ctx, Addr: c.running.Addr})
	if fetchErr := <-fetched; err == nil {
		err = fetchErr
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return nil
}

func fetchProfile(ctx context.Context, admin string, seconds int, to string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, seconds)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return os.WriteFile(to, data, 0o644)
}
