package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"larder/handler/upstream"
)

// counting is how long a greeting waits until it is known what is in the cache.
const counting = 300 * time.Millisecond

// forPeople reports whether somebody looks at what is written to w.
func (c *config) forPeople(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && c.LogFormat != "json" && term.IsTerminal(int(file.Fd()))
}

// greet says where everything is, and how to go on.
func (p *program) greet(ctx context.Context) {
	adminAddr, next := "off (LARDER_ADMIN_ADDR)", "See the README for what to tell clients."
	if len(p.servers) > 1 {
		addr := shortAddr(p.servers[1].listener.Addr())
		adminAddr = "http://" + addr + "/"
		next = fmt.Sprintf("containerd on this machine:  curl -fsS %[1]s/setup/containerd.sh | sudo sh\n"+
			"  other clients:               http://%[1]s/setup\n  if something is wrong:       %[2]s doctor", addr, os.Args[0])
	}
	var upstreams []string
	for _, r := range p.cfg.upstreams {
		upstreams = append(upstreams, located(r))
	}
	if p.cfg.parent != nil {
		upstreams = append(upstreams, "by way of "+p.cfg.parent.String())
	}
	cache := p.cfg.CacheDir + ", " + p.filled(ctx)
	if p.cfg.Shared != "" {
		cache += "\n  shared       " + p.cfg.Shared
	}
	scheme := "http"
	if p.cfg.TLSCert != "" {
		scheme = "https"
	}
	fmt.Fprintf(p.stderr, "\n  larder %s\n\n  clients      %s://%s\n  status       %s\n  upstreams    %s\n  cache        %s\n\n  %s\n\n",
		version(), scheme, shortAddr(p.servers[0].listener.Addr()), adminAddr, strings.Join(upstreams, ", "), cache, next)
}

// located is a registry with its URLs, if these are not what its name says.
func located(r upstream.Registry) string {
	var urls []string
	for _, u := range r.URLs {
		urls = append(urls, u.String())
	}
	if where := strings.Join(urls, " | "); where != "https://"+r.Host && where != "https://registry-1.docker.io" {
		return r.Host + " (" + where + ")"
	}
	return r.Host
}

// filled is how much of the cache's budget is used.
func (p *program) filled(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, counting)
	defer cancel()
	size := "being counted"
	if err := p.blobs.Scanned(ctx); err == nil {
		size = units.BytesSize(float64(p.blobs.Stats().Bytes))
	}
	if most := p.blobs.Stats().MaxBytes; most > 0 {
		return size + " of " + units.BytesSize(float64(most))
	}
	return size + ", without a limit (LARDER_MAX_SIZE)"
}

// shortAddr is how one writes an address of this machine.
func shortAddr(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); err == nil && (ip.IsUnspecified() || ip.IsLoopback() && ip.To4() != nil) {
		return net.JoinHostPort("localhost", port)
	}
	return addr.String()
}
