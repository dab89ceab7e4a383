package main

import (
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Names that the real registries do not have.
const (
	hubName  = "docker.io/library/larder-test-hello"
	ghcrName = "ghcr.io/larder-test/multi"
)

// testClient pulls as a user who has larder at an address; each starts with
// empty stores.
type testClient interface {
	pull(t *testing.T, reference string) error
}

// runner is a client that can run what it pulled.
type runner interface {
	run(t *testing.T, reference string) (stdout string, err error)
}

// testPulls pulls by tag and by digest from two upstreams through one larder:
// cold, then without any upstream into empty stores; and runs the images.
func testPulls(t *testing.T, newClient func(t *testing.T, addr string) testClient) {
	t.Helper()
	upstreams := []*testUpstream{newUpstream(t, "docker.io"), newUpstream(t, "ghcr.io")}
	hub, ghcr := upstreams[0], upstreams[1]
	single, index := bootableImage(t), multiArchIndex(t)
	hub.push(t, "library/larder-test-hello:1", single)
	hub.push(t, "library/larder-test-hello:unpulled", layeredImage(t, 1))
	ghcr.push(t, "larder-test/multi:v1", index)
	references := []string{
		hubName + ":1", hubName + "@" + digestOf(t, single),
		ghcrName + ":v1", ghcrName + "@" + digestOf(t, index),
	}
	l := startLarder(t, upstreams)

	pullAll := func(t *testing.T) {
		c := newClient(t, l.addr)
		for _, reference := range references {
			if err := c.pull(t, reference); err != nil {
				t.Fatal(err)
			}
			if r, ok := c.(runner); ok {
				if got, err := r.run(t, reference); err != nil || got != greeting {
					t.Fatalf("run %s: got %q, want %q (%v)", reference, got, greeting, err)
				}
			}
		}
	}
	if !t.Run("cold", pullAll) {
		return
	}
	for _, u := range upstreams {
		u.wantExchanges(t, "^GET .*/blobs/", 1, 100)
	}
	stopAll(upstreams)
	t.Run("upstreams stopped", pullAll)
	t.Run("never pulled", func(t *testing.T) {
		if newClient(t, l.addr).pull(t, hubName+":unpulled") == nil {
			t.Error("pulled what nobody could have")
		}
	})
}

func TestContainerdPullsFromTwoUpstreamsAndRuns(t *testing.T) {
	t.Parallel()
	requireContainerd(t)
	testPulls(t, func(t *testing.T, addr string) testClient {
		return newContainerd(t, addr, "docker.io", "ghcr.io")
	})
}

func TestSkopeoPullsThroughMirrorAndPrefix(t *testing.T) {
	t.Parallel()
	requireProgram(t, "skopeo")
	testPulls(t, func(t *testing.T, addr string) testClient {
		return &skopeo{home: containersHome(t, addr), dir: t.TempDir()}
	})
}

func TestPodmanPullsThroughMirrorAndPrefixAndRuns(t *testing.T) {
	t.Parallel()
	requireProgram(t, "podman", "runc", "conmon")
	requireRoot(t)
	testPulls(t, func(t *testing.T, addr string) testClient {
		return &podman{home: containersHome(t, addr), dir: shortDir(t)}
	})
}

func TestCranePullsByPrefix(t *testing.T) {
	t.Parallel()
	testPulls(t, func(_ *testing.T, addr string) testClient { return craneClient(addr) })
}

// containersHome is a home directory with the configuration of skopeo, podman
// and buildah: larder is the mirror of docker.io, and of ghcr.io by prefix.
func containersHome(t *testing.T, addr string) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, ".config", "containers")
	writeFile(t, filepath.Join(dir, "policy.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
	conf := setupFile(t, addr, []string{"docker.io", "ghcr.io"}, "larder.conf")
	// Behind the mirror is a port where nobody listens, not the real registry.
	conf = regexp.MustCompile(`(?m)^location = '(docker|ghcr)\.io'$`).ReplaceAllString(conf, "prefix = '$1.io'\nlocation = '127.0.0.1:1'")
	writeFile(t, filepath.Join(dir, "registries.conf"), conf)
	return home
}

func containersEnviron(home string) []string {
	return []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + home, "XDG_CONFIG_HOME=", "CONTAINERS_REGISTRIES_CONF=", "REGISTRY_AUTH_FILE="}
}

type skopeo struct {
	home, dir string
	pulled    int
}

// pull copies every platform's image.
func (s *skopeo) pull(t *testing.T, reference string) error {
	t.Helper()
	s.pulled++
	_, err := runCommand(t, containersEnviron(s.home), "skopeo", "copy", "--quiet", "--all",
		"docker://"+reference, fmt.Sprintf("dir:%s/%d", s.dir, s.pulled))
	return err
}

func (s *skopeo) login(t *testing.T, addr, user, pass string) (string, error) {
	t.Helper()
	return runCommand(t, containersEnviron(s.home), "skopeo", "login", "--tls-verify=false", "--username", user, "--password", pass, addr)
}

type podman struct{ home, dir string }

func (p *podman) podman(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return runCommand(t, containersEnviron(p.home), "podman", append([]string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"),
		"--tmpdir", filepath.Join(p.dir, "tmp"), "--storage-driver", "vfs",
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc",
	}, args...)...)
}

func (p *podman) pull(t *testing.T, reference string) error {
	t.Helper()
	_, err := p.podman(t, "pull", "--quiet", reference)
	return err
}

func (p *podman) login(t *testing.T, addr, user, pass string) (string, error) {
	t.Helper()
	return p.podman(t, "login", "--tls-verify=false", "--username", user, "--password", pass, addr)
}

// run asks for limits that are allowed in a sandbox without CAP_SYS_RESOURCE.
func (p *podman) run(t *testing.T, reference string) (string, error) {
	t.Helper()
	return p.podman(t, "run", "--rm", "--pull", "never", "--network", "host",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", reference)
}

// craneClient is the address of a larder that crane is pointed at by name.
type craneClient string

// pull reads everything; ggcr checks digests and sizes as it goes.
func (c craneClient) pull(t *testing.T, reference string) error {
	t.Helper()
	return c.pullAs(t, authn.Anonymous, reference)
}

func (c craneClient) pullAs(t *testing.T, user authn.Authenticator, reference string) error {
	t.Helper()
	ref, err := name.ParseReference(string(c)+"/"+strings.TrimPrefix(reference, "docker.io/"), name.Insecure)
	if err != nil {
		return err
	}
	desc, err := remote.Get(ref, remote.WithContext(t.Context()), remote.WithAuth(user))
	if err != nil {
		return err
	}
	if !desc.MediaType.IsIndex() {
		img, err := desc.Image()
		if err != nil {
			return err
		}
		return readImage(img)
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, m := range list.Manifests {
		img, err := index.Image(m.Digest)
		if err == nil {
			err = readImage(img)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readImage(img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if _, err := img.ConfigFile(); err != nil {
		return err
	}
	for _, layer := range layers {
		if err := readLayer(layer); err != nil {
			return err
		}
	}
	return nil
}

func readLayer(layer v1.Layer) error {
	content, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(io.Discard, content)
	return err
}
