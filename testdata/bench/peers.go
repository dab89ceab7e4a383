package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
	"time"

	"larder/testdata/rig"
)

// The peers, as they are called in reports and with -peers.
const (
	direct   = "direct"
	static   = "static"
	nginx    = "nginx"
	dockerIO = "docker-registry"
	larder   = "larder"
)

// options are what a case sets at each peer; else they run as they come.
type options struct {
	TagTTL  time.Duration // 0: tags are always asked for
	MaxSize int64         // of the cache; 0: no limit
}

// place is where a peer runs.
type place struct {
	Dir      string // for its configuration and what it says
	Cache    string
	Content  string
	Addr     string
	Admin    string // where larder has its profiles
	Upstream string // host:port
	Root     bool   // nginx must be told to stay root, or it can't read the directory
	options
}

// peer is one of those that are compared.
type peer struct {
	name    string
	program string
	missing string // why it can't be measured here
	version string
	command func(program string, p place) (*exec.Cmd, error) // nil: upstream itself
}

// findPeers looks for the peers that are asked for. It builds larder unless there is a
// binary already.
func findPeers(ctx context.Context, dir, larderBinary string, names []string) ([]peer, error) {
	var peers []peer
	for _, name := range names {
		p := peer{name: name}
		switch name {
		case direct:
		case static:
			p.find("nginx", "-v")
			p.command = nginxCommand(staticConf)
		case nginx:
			p.find("nginx", "-v")
			p.command = nginxCommand(cacheConf)
		case dockerIO:
			p.find("docker-registry", "--version")
			p.command = registryCommand
		case larder:
			p.program, p.command, p.version = larderBinary, larderCommand, "of this directory"
			if larderBinary == "" {
				p.program = filepath.Join(dir, "larder")
				if err := rig.BuildLarder(ctx, p.program); err != nil {
					return nil, err
				}
			}
		default:
			return nil, fmt.Errorf("no peer is called %q", name)
		}
		peers = append(peers, p)
	}
	return peers, nil
}

// find looks for the program, also where only root has its PATH.
func (p *peer) find(program, versionFlag string) {
	var err error
	if p.program, err = exec.LookPath(program); err != nil {
		p.program, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		p.missing = "not installed"
		return
	}
	said, err := exec.Command(p.program, versionFlag).CombinedOutput()
	if err != nil {
		p.missing = fmt.Sprintf("does not start: %v", err)
	}
	p.version = regexp.MustCompile(`[0-9]+\.[0-9.]+\S*`).FindString(string(said))
}

// running is a peer that answers.
type running struct {
	*rig.Process
	place place
}

// start starts the peer with an empty cache.
func (p *peer) start(ctx context.Context, dir string, up *rig.Upstream, c *rig.Content, o options) (*running, error) {
	if p.command == nil {
		return &running{Process: up.Process}, nil
	}
	at := place{Dir: dir, Cache: filepath.Join(dir, "cache"), Content: c.Dir, Upstream: up.Addr, Root: os.Geteuid() == 0, options: o}
	var err error
	if at.Addr, err = rig.FreeAddr(); err != nil {
		return nil, err
	}
	if at.Admin, err = rig.FreeAddr(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(at.Cache, 0o755); err != nil {
		return nil, err
	}
	cmd, err := p.command(p.program, at)
	if err != nil {
		return nil, err
	}
	proc, err := rig.StartProcess(ctx, cmd, at.Addr, filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	return &running{proc, at}, nil
}

// stop ends the peer. Upstream is not the peer's to end.
func (r *running) stop() {
	if r.place.Dir != "" {
		r.Process.Stop()
	}
}

// nginxConf is what both have in common: Debian's, but that a connection is not closed after 1000
// requests, as the others don't do that either, and that there is no tcp_nopush. With it, answers
// of a little more than loopback's 64 KiB packets wait for an ACK, 40 ms each.
const nginxConf = `
{{if .Root}}user root;{{end}}
daemon off;
worker_processes auto;
pid {{.Dir}}/pid;
error_log {{.Dir}}/error.log;
events { worker_connections 4096; }
http {
	sendfile on;
	types_hash_max_size 2048;
	default_type application/octet-stream;
	access_log {{.Dir}}/access.log;
	keepalive_requests 1000000000;
	client_body_temp_path {{.Dir}}/body;
	proxy_temp_path {{.Dir}}/proxy;
	fastcgi_temp_path {{.Dir}}/fastcgi;
	uwsgi_temp_path {{.Dir}}/uwsgi;
	scgi_temp_path {{.Dir}}/scgi;
	{{template "server" .}}
}
`

const staticConf = `{{define "server"}}
	server {
		listen {{.Addr}};
		root {{.Content}};
	}
{{end}}`

// cacheConf waits for whoever fetches for as long as it takes: with nginx's own 5 s, clients of a
// large blob would all go to upstream.
const cacheConf = `{{define "server"}}
	proxy_cache_path {{.Cache}} levels=1:2 keys_zone=cache:64m inactive=7d use_temp_path=off{{if .MaxSize}} max_size={{.MaxSize}}{{end}};
	upstream registry {
		server {{.Upstream}};
		keepalive 64;
		keepalive_requests 1000000000;
	}
	server {
		listen {{.Addr}};
		proxy_http_version 1.1;
		proxy_set_header Connection "";
		location / {
			proxy_pass http://registry;
			{{if .TagTTL}}
			proxy_cache cache;
			proxy_cache_lock on;
			proxy_cache_valid 200 {{.TagTTL.Seconds}}s;
			{{end}}
		}
		location ~ /(blobs|manifests)/sha256: {
			proxy_pass http://registry;
			proxy_cache cache;
			proxy_cache_lock on;
			proxy_cache_lock_timeout 1h;
			proxy_cache_lock_age 1h;
			proxy_cache_valid 200 7d;
		}
	}
{{end}}`

func nginxCommand(server string) func(string, place) (*exec.Cmd, error) {
	conf := template.Must(template.Must(template.New("nginx.conf").Parse(nginxConf)).Parse(server))
	return func(program string, p place) (*exec.Cmd, error) {
		var s strings.Builder
		if err := conf.ExecuteTemplate(&s, "nginx.conf", p); err != nil {
			return nil, err
		}
		name := filepath.Join(p.Dir, "nginx.conf")
		return exec.Command(program, "-p", p.Dir, "-e", p.Dir+"/error.log", "-c", name), os.WriteFile(name, []byte(s.String()), 0o644)
	}
}

const registryConf = `version: 0.1
log: {level: info}
storage:
  filesystem: {rootdirectory: %s}
  cache: {blobdescriptor: inmemory}
http: {addr: %q}
proxy: {remoteurl: %q}
`

func registryCommand(program string, p place) (*exec.Cmd, error) {
	name := filepath.Join(p.Dir, "config.yml")
	conf := fmt.Sprintf(registryConf, p.Cache, p.Addr, "http://"+p.Upstream)
	cmd := exec.Command(program, "serve", name)
	return cmd, os.WriteFile(name, []byte(conf), 0o644)
}

func larderCommand(program string, p place) (*exec.Cmd, error) {
	environ := []string{
		"LARDER_ADDR=" + p.Addr, "LARDER_ADMIN_ADDR=" + p.Admin, "LARDER_CACHE_DIR=" + p.Cache,
		"LARDER_UPSTREAMS=registry.test=http://" + p.Upstream,
	}
	if p.TagTTL > 0 {
		environ = append(environ, "LARDER_TAG_TTL="+p.TagTTL.String())
	}
	if p.MaxSize > 0 {
		environ = append(environ, fmt.Sprintf("LARDER_MAX_SIZE=%d", p.MaxSize))
	}
	return rig.CommandLarder(program, environ...), nil
}
