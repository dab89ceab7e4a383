package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// containerd is a private one: nothing it has or knows is the system's.
type containerd struct {
	dir   string
	hosts string // the directory of its hosts.toml
	cmd   *exec.Cmd
}

func requireContainerd(t *testing.T) {
	t.Helper()
	requireProgram(t, "containerd", "ctr", "containerd-shim-runc-v2", "runc")
	requireRoot(t)
}

// newContainerd starts one with empty stores that has larder at addr as its
// only source of images for hosts.
func newContainerd(t *testing.T, addr string, hosts ...string) *containerd {
	t.Helper()
	c := startContainerd(t)
	for _, host := range hosts {
		writeFile(t, filepath.Join(c.hosts, host, "hosts.toml"), setupFile(t, addr, hosts, "containerd/"+host+"/hosts.toml?fallback=false"))
	}
	return c
}

// startContainerd starts one with empty stores that knows nobody's mirrors.
func startContainerd(t *testing.T) *containerd {
	t.Helper()
	requireContainerd(t)
	c := &containerd{dir: shortDir(t)}
	c.hosts = filepath.Join(c.dir, "hosts")
	config := writeFile(t, filepath.Join(c.dir, "config.toml"), fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
  address = "%[1]s/sock"

[ttrpc]
  address = "%[1]s/ttrpc"
`, c.dir))
	t.Cleanup(func() { c.unmount(t) })
	c.cmd = startDaemon(t, "containerd", "--config", config, "--log-level", "error")
	t.Cleanup(func() { c.removeTasks(t) })
	eventually(t, "containerd", func() bool {
		_, err := os.Stat(filepath.Join(c.dir, "sock"))
		return err == nil && exec.Command("ctr", "-a", filepath.Join(c.dir, "sock"), "version").Run() == nil
	})
	return c
}

// sendHeader has it send an Authorization header to the mirror of host.
func (c *containerd) sendHeader(t *testing.T, addr, host, value string) {
	t.Helper()
	file := filepath.Join(c.hosts, host, "hosts.toml")
	writeFile(t, file, readFile(t, file)+fmt.Sprintf("\n[host.\"http://%s\".header]\n  Authorization = %q\n", addr, value))
}

func (c *containerd) ctr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return runCommand(t, nil, "ctr", append([]string{"--address", filepath.Join(c.dir, "sock")}, args...)...)
}

// pull has the layers unpacked by the snapshotter that works everywhere.
func (c *containerd) pull(t *testing.T, reference string) error {
	t.Helper()
	_, err := c.ctr(t, "images", "pull", "--snapshotter", "native",
		"--hosts-dir", c.hosts, reference)
	return err
}

// pullAs is for user:password.
func (c *containerd) pullAs(t *testing.T, user, reference string) error {
	t.Helper()
	_, err := c.ctr(t, "images", "pull", "--snapshotter", "native", "--user", user,
		"--hosts-dir", c.hosts, reference)
	return err
}

// run runs a pulled image and returns what it printed. runc knows the containers of
// all containerds by their ids.
func (c *containerd) run(t *testing.T, reference string) (string, error) {
	t.Helper()
	return c.ctr(t, "run", "--rm", "--snapshotter", "native", reference, filepath.Base(c.dir))
}

// removeTasks ends what a failed test left running, with its shim.
func (c *containerd) removeTasks(t *testing.T) {
	ctr := func(args ...string) string {
		out, err := exec.Command("ctr", append([]string{"--address", filepath.Join(c.dir, "sock")}, args...)...).Output()
		if err != nil {
			t.Logf("ctr %v: %v", args, err)
		}
		return string(out)
	}
	for id := range strings.FieldsSeq(ctr("tasks", "ls", "-q")) {
		ctr("tasks", "rm", "--force", id)
	}
}

// unmount lets the directory be removed after a failed test.
func (c *containerd) unmount(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return // no Linux, no mounts
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], c.dir+"/") {
			t.Logf("left mounted: %s", f[1])
			exec.Command("umount", "-l", f[1]).Run()
		}
	}
}
