package setup

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

const (
	dockerHub    = "docker.io"
	dockerHubURL = "https://registry-1.docker.io" // what clients without a mirror ask

	certsDir = "/etc/containerd/certs.d"
	confDir  = "/etc/containers/registries.conf.d"

	// mark begins each file that a script may replace or remove again.
	mark = "# Written by larder"
)

// client is what one kind of client has to be told.
type client struct {
	Name   string
	Script string // that installs the files, or ""
	dir    string // where it puts them
	Files  []file
	Notes  []string
}

// file is one that a client reads.
type file struct {
	Name    string // below /setup/; "": only a part of one
	Path    string // where the client looks for it
	Content string
}

// clients are all there are. Without a fallback, those that can do without.
func (t *target) clients() ([]client, error) {
	makers := []func() (client, error){t.containerd, t.podman, t.k3s}
	if t.Fallback {
		makers = append(makers, t.docker, t.buildkit)
	}
	var list []client
	for _, clientOf := range makers {
		c, err := clientOf()
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// head is the comment at the top of a file.
func (t *target) head() string {
	return mark + ", which is at " + t.URL() + ": see http://" + t.Admin + "/setup\n"
}

// hostsFile is containerd's hosts.toml.
type hostsFile struct {
	Server string              `toml:"server"`
	Host   map[string]hostPart `toml:"host"`
}

type hostPart struct {
	Capabilities []string `toml:"capabilities"`
}

func (t *target) containerd() (client, error) {
	c := client{Name: "containerd", Script: "containerd.sh", dir: certsDir, Notes: []string{
		"Changes of hosts.toml need no restart of containerd. ctr reads it with --hosts-dir " + certsDir + " only.",
	}}
	for _, r := range t.Registries {
		// The table is needed in any case: containerd 1.6 ignores a file that has none.
		hosts := hostsFile{Server: t.URL(), Host: map[string]hostPart{t.URL(): {[]string{"pull", "resolve"}}}}
		if t.Fallback {
			hosts.Server = ownURL(r.Host, r.URLs)
		}
		content, err := toml.Marshal(hosts)
		if err != nil {
			return c, err
		}
		name := path.Join(r.Host, "hosts.toml")
		c.Files = append(c.Files, file{"containerd/" + name, path.Join(certsDir, name), t.head() + string(content)})
	}
	c.Files = append(c.Files, file{"", "/etc/containerd/config.toml, for Kubernetes (CRI); restart containerd if you change it", configPath})
	return c, nil
}

// configPath is for both generations of containerd.
const configPath = `# containerd 1:
version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "` + certsDir + `"

# containerd 2:
version = 3
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "` + certsDir + `"
`

// ownURL is where clients that have no mirror find a registry.
func ownURL(host string, listed []*url.URL) string {
	if host == dockerHub {
		return dockerHubURL
	}
	for _, u := range listed {
		if u.Host == host {
			return u.String()
		}
	}
	return "https://" + host
}

// registriesConf is a drop-in for containers-registries.conf(5).
type registriesConf struct {
	Registry []registryPart `toml:"registry"`
}

type registryPart struct {
	Prefix   string       `toml:"prefix,omitempty"`
	Location string       `toml:"location"`
	Insecure bool         `toml:"insecure,omitempty"`
	Mirror   []mirrorPart `toml:"mirror,omitempty"`
}

type mirrorPart struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure,omitempty"`
}

// podman is for all that read what podman reads. They say nothing like ?ns=, so that
// every registry but the default one is named in the path.
func (t *target) podman() (client, error) {
	c := client{Name: "podman, skopeo, buildah, CRI-O", Script: "podman.sh", dir: confDir, Notes: []string{
		"For one user: put the file into ~/.config/containers/registries.conf.d/.",
		"CRI-O reads it at its start, and at systemctl reload crio.",
	}}
	var conf registriesConf
	for i, r := range t.Registries {
		location := t.Addr
		if i > 0 {
			if strings.Contains(r.Host, ":") {
				c.Notes = append(c.Notes, r.Host+" is left out: a name in a path can have no port. The first of LARDER_UPSTREAMS can.")
				continue
			}
			location += "/" + r.Host
		}
		if t.Fallback {
			conf.Registry = append(conf.Registry, registryPart{Location: r.Host, Mirror: []mirrorPart{{location, !t.TLS}}})
		} else {
			conf.Registry = append(conf.Registry, registryPart{Prefix: r.Host, Location: location, Insecure: !t.TLS})
		}
	}
	if !t.TLS { // for pulls by name
		conf.Registry = append(conf.Registry, registryPart{Location: t.Addr, Insecure: true})
	}
	content, err := toml.Marshal(conf)
	c.Files = []file{{"larder.conf", path.Join(confDir, "larder.conf"), t.head() + string(content)}}
	return c, err
}

// registriesYAML is that of k3s and RKE2.
type registriesYAML struct {
	Mirrors map[string]endpoints `yaml:"mirrors"`
}

type endpoints struct {
	Endpoint []string `yaml:"endpoint"`
}

func (t *target) k3s() (client, error) {
	c := client{Name: "k3s, RKE2", Notes: []string{"Restart k3s or rke2 after a change, on each node. RKE2 reads /etc/rancher/rke2/registries.yaml."}}
	if !t.Fallback {
		c.Notes = append(c.Notes, "The registries themselves are left out by the option --disable-default-registry-endpoint of k3s and rke2 (since January 2024), not by this file.")
	}
	conf := registriesYAML{make(map[string]endpoints)}
	for _, r := range t.Registries {
		conf.Mirrors[r.Host] = endpoints{[]string{t.URL()}}
	}
	content, err := yaml.Marshal(conf)
	c.Files = []file{{"registries.yaml", "/etc/rancher/k3s/registries.yaml", t.head() + string(content)}}
	return c, err
}

// docker uses mirrors for Docker Hub only, and does not say which registry it means.
func (t *target) docker() (client, error) {
	c := client{Name: "docker"}
	if t.Registries[0].Host != dockerHub {
		c.Notes = []string{"docker uses mirrors for Docker Hub only, and needs docker.io to be the first of LARDER_UPSTREAMS, which it is not. Pull by name: docker pull " + t.Addr + "/" + t.Registries[0].Host + "/…"}
		return c, nil
	}
	c.Notes = []string{
		"Add this to what is in the file, then systemctl reload docker.",
		"docker uses mirrors for Docker Hub only, and falls back to it. From other registries pull by name: docker pull " + t.Addr + "/ghcr.io/…",
	}
	conf := struct {
		Mirrors  []string `json:"registry-mirrors"`
		Insecure []string `json:"insecure-registries,omitempty"`
	}{Mirrors: []string{t.URL()}}
	if !t.TLS && !isLoopback(t.Addr) { // from there it takes plain HTTP without a word
		conf.Insecure = []string{t.Addr}
	}
	var content bytes.Buffer
	encoder := json.NewEncoder(&content)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(conf)
	c.Files = []file{{"daemon.json", "/etc/docker/daemon.json", content.String()}}
	return c, err
}

func isLoopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// buildkitd is BuildKit's buildkitd.toml.
type buildkitd struct {
	Registry map[string]buildkitRegistry `toml:"registry"`
}

type buildkitRegistry struct {
	Mirrors []string `toml:"mirrors,omitempty"`
	HTTP    bool     `toml:"http,omitempty"`
}

func (t *target) buildkit() (client, error) {
	c := client{Name: "BuildKit", Notes: []string{
		"Or give the file to docker buildx create --buildkitd-config. BuildKit falls back to the registry itself.",
	}}
	if isLoopback(t.Addr) {
		c.Notes = append(c.Notes, "In a docker-container builder localhost is the builder's own: create it with --driver-opt network=host.")
	}
	conf := buildkitd{make(map[string]buildkitRegistry)}
	for _, r := range t.Registries {
		conf.Registry[r.Host] = buildkitRegistry{Mirrors: []string{t.Addr}}
	}
	if !t.TLS {
		conf.Registry[t.Addr] = buildkitRegistry{HTTP: true}
	}
	content, err := toml.Marshal(conf)
	c.Files = []file{{"buildkitd.toml", "/etc/buildkit/buildkitd.toml", t.head() + string(content)}}
	return c, err
}
