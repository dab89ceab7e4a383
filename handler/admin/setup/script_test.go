package setup_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"larder/handler/admin/setup"
)

const hosts = "etc/containerd/certs.d/docker.io/hosts.toml"

// machine is a root directory to install into.
type machine struct {
	root string
	cfg  setup.Config
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{t.TempDir(), config(t, "127.0.0.1:5000", "docker.io,ghcr.io")}
}

// run pipes a script into a shell, as people do.
func (m *machine) run(t *testing.T, script string, args ...string) (output string, err error) {
	t.Helper()
	shell, err := exec.LookPath("dash") // the strictest
	if err != nil {
		shell = "sh"
	}
	cmd := exec.CommandContext(t.Context(), shell, append([]string{"-s", "--", "--root", m.root}, args...)...)
	cmd.Stdin = ask(m.cfg, "localhost:5001", "/setup/"+script).Body
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) mustRun(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := m.run(t, script, args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

func (m *machine) write(t *testing.T, name, content string) {
	t.Helper()
	file := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// files are all there are, with their contents, and their inodes, which change when
// a file is written anew.
func (m *machine) files(t *testing.T) (content map[string]string, inodes map[string]uint64) {
	t.Helper()
	content, inodes = make(map[string]string), make(map[string]uint64)
	err := fs.WalkDir(os.DirFS(m.root), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(m.root, name))
		if err != nil {
			return err
		}
		info, err := entry.Info()
		content[name], inodes[name] = string(data), info.Sys().(*syscall.Stat_t).Ino
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return content, inodes
}

func TestScriptInstallsOnce(t *testing.T) {
	for script, want := range map[string]map[string]string{
		"containerd.sh": {hosts: "containerd/docker.io/hosts.toml", "etc/containerd/certs.d/ghcr.io/hosts.toml": "containerd/ghcr.io/hosts.toml"},
		"podman.sh":     {"etc/containers/registries.conf.d/larder.conf": "larder.conf"},
	} {
		m := newMachine(t)
		m.mustRun(t, script)
		content, inodes := m.files(t)
		if len(content) != len(want) {
			t.Errorf("%s: got files %v", script, content)
		}
		for name, path := range want {
			if got, want := content[name], ask(m.cfg, "localhost:5001", "/setup/"+path).Body.String(); strings.TrimSpace(got) != strings.TrimSpace(want) {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
			if info, err := os.Stat(filepath.Join(m.root, name)); err != nil || info.Mode() != 0o644 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if out := m.mustRun(t, script); !strings.Contains(out, "nothing to do") {
			t.Errorf("%s again: %s", script, out)
		}
		if _, again := m.files(t); len(again) != len(inodes) || again[hosts] != inodes[hosts] {
			t.Errorf("%s again has changed something: %v, then %v", script, inodes, again)
		}
		if out := m.mustRun(t, script, "--undo"); !strings.Contains(out, "removed") {
			t.Errorf("%s --undo: %s", script, out)
		}
		if left, _ := m.files(t); len(left) > 0 {
			t.Errorf("%s --undo leaves %v", script, left)
		}
		if out := m.mustRun(t, script, "--undo"); !strings.Contains(out, "nothing to undo") {
			t.Errorf("%s --undo again: %s", script, out)
		}
	}
}

func TestScriptPutsBackWhatItReplaced(t *testing.T) {
	m := newMachine(t)
	const own = "server = \"https://mine.example\"\n"
	m.write(t, hosts, own)
	m.mustRun(t, "containerd.sh")
	content, _ := m.files(t)
	if content[hosts+".before-larder"] != own || content[hosts] == own {
		t.Fatalf("got %v", content)
	}
	// Another address, after somebody has added a password to the file.
	m.write(t, hosts, content[hosts]+"# edited\n")
	m.cfg.Addr = "127.0.0.1:5999"
	m.mustRun(t, "containerd.sh")
	content, _ = m.files(t)
	if content[hosts+".before-larder"] != own || !strings.Contains(content[hosts+".previous"], "# edited") || !strings.Contains(content[hosts], "5999") {
		t.Errorf("got %v", content)
	}
	m.mustRun(t, "containerd.sh", "--undo")
	if content, _ = m.files(t); len(content) != 1 || content[hosts] != own {
		t.Errorf("after --undo there is %v", content)
	}
}

func TestScriptUndoesHostsNoLongerListed(t *testing.T) {
	m := newMachine(t)
	m.mustRun(t, "containerd.sh")
	m.write(t, "etc/containerd/certs.d/quay.io/hosts.toml", "server = \"https://quay.io\"\n")
	m.cfg = config(t, "127.0.0.1:5000", "docker.io")
	m.mustRun(t, "containerd.sh", "--undo")
	if content, _ := m.files(t); len(content) != 1 || content["etc/containerd/certs.d/quay.io/hosts.toml"] == "" {
		t.Errorf("left: %v, want what is not larder's", content)
	}
}

func TestScriptNeverLosesABackup(t *testing.T) {
	m := newMachine(t)
	m.write(t, hosts, "first")
	m.mustRun(t, "containerd.sh")
	m.write(t, hosts, "second")
	if out, err := m.run(t, "containerd.sh"); err == nil || !strings.Contains(out, "move one of them away") {
		t.Errorf("got %v: %s", err, out)
	}
	if content, _ := m.files(t); content[hosts] != "second" || content[hosts+".before-larder"] != "first" {
		t.Errorf("got %v", content)
	}
}

func TestScriptDryRunsChangeNothing(t *testing.T) {
	m := newMachine(t)
	m.write(t, hosts, "mine")
	if out := m.mustRun(t, "containerd.sh", "--dry-run"); !strings.Contains(out, "    server = ") || !strings.Contains(out, "before-larder") {
		t.Errorf("it does not say what would be done: %s", out)
	}
	if content, _ := m.files(t); len(content) != 1 || content[hosts] != "mine" {
		t.Errorf("after --dry-run there is %v", content)
	}
	m.mustRun(t, "containerd.sh")
	before, _ := m.files(t)
	if out := m.mustRun(t, "containerd.sh", "--undo", "--dry-run"); !strings.Contains(out, "put back") {
		t.Errorf("it does not say what would be undone: %s", out)
	}
	if after, _ := m.files(t); len(after) != len(before) || after[hosts] != before[hosts] {
		t.Errorf("after --undo --dry-run there is %v", after)
	}
}

func TestScriptTellsWhatContainerdLacks(t *testing.T) {
	tests := map[string]struct {
		config string
		says   []string // "": not a word
		dir    string
	}{
		"no version":       {"root = \"/r\"\n", []string{"version = 2   # at its top\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]"}, "etc/containerd/certs.d"},
		"nothing":          {"version = 2\n", []string{"restart containerd:\n\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]", `config_path = "/etc/containerd/certs.d"`}, "etc/containerd/certs.d"},
		"an empty path":    {"version = 2\n[x]\n config_path = \"\"\n", []string{"has no config_path"}, "etc/containerd/certs.d"},
		"containerd 2":     {" version = 3\n", []string{"restart containerd:\n\n    [plugins.\"io.containerd.cri.v1.images\".registry]"}, "etc/containerd/certs.d"},
		"there":            {"[x]\n  config_path = \"/etc/containerd/certs.d\"\n", nil, "etc/containerd/certs.d"},
		"elsewhere, first": {"[x]\n  config_path = '/opt/hosts:/etc/docker/certs.d' # ours\n", nil, "opt/hosts"},
		"old mirrors":      {"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n", []string{"remove its tables registry.mirrors"}, "etc/containerd/certs.d"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.write(t, "etc/containerd/config.toml", test.config)
			out := m.mustRun(t, "containerd.sh")
			for _, want := range test.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q: %s", want, out)
				}
			}
			if len(test.says) == 0 && strings.Contains(out, "config_path") {
				t.Errorf("it complains: %s", out)
			}
			content, _ := m.files(t)
			if content[test.dir+"/docker.io/hosts.toml"] == "" || content["etc/containerd/config.toml"] != test.config {
				t.Errorf("got %v", content)
			}
		})
	}
}

func TestScriptRefuses(t *testing.T) {
	m := newMachine(t)
	if out, err := m.run(t, "containerd.sh", "--frobnicate"); err == nil || !strings.Contains(out, "--frobnicate") || !strings.Contains(out, "--dry-run") {
		t.Errorf("got %v: %s", err, out)
	}
	if out, err := m.run(t, "containerd.sh", "--root"); err == nil || !strings.Contains(out, "--root") {
		t.Errorf("got %v: %s", err, out)
	}
	m.write(t, "etc/containerd/certs.d", "a file where a directory should be")
	if out, err := m.run(t, "containerd.sh"); err == nil || !strings.Contains(out, "can't be written") || !strings.Contains(out, "sudo") {
		t.Errorf("got %v: %s", err, out)
	}
	if content, _ := m.files(t); len(content) != 1 {
		t.Errorf("got %v", content)
	}
}

func TestScriptAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	m := newMachine(t)
	m.write(t, "etc/containerd/certs.d/keep", "")
	for _, dir := range []string{m.root, filepath.Dir(m.root)} { // or it could not even look
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-s", "--", "--root", m.root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir, cmd.Stdin = "/", ask(m.cfg, "localhost:5001", "/setup/containerd.sh").Body
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "can't be written. As root: curl") {
		t.Errorf("got %v: %s", err, out)
	}
}

// A download that breaks off does nothing at all.
func TestHalfAScriptDoesNothing(t *testing.T) {
	m := newMachine(t)
	whole := ask(m.cfg, "localhost:5001", "/setup/containerd.sh").Body.Bytes()
	for part := 1; part < 20; part++ {
		cmd := exec.CommandContext(t.Context(), "sh", "-s", "--", "--root", m.root)
		cmd.Stdin = bytes.NewReader(whole[:len(whole)*part/20])
		_ = cmd.Run() // a syntax error is as good as none
		if content, _ := m.files(t); len(content) > 0 {
			t.Fatalf("%d bytes of the script have made %v", len(whole)*part/20, content)
		}
	}
}

func TestScriptsAreCleanShell(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		if os.Getenv("LARDER_TEST_CLIENTS") == "require" {
			t.Fatal(err)
		}
		t.Skip("shellcheck is not installed")
	}
	m := newMachine(t)
	for _, script := range []string{"containerd.sh", "podman.sh", "containerd.sh?fallback=false"} {
		cmd := exec.CommandContext(t.Context(), "shellcheck", "--shell=sh", "-")
		cmd.Stdin = ask(m.cfg, "localhost:5001", "/setup/"+script).Body
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
