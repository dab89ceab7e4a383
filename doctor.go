package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"larder/auth"
	"larder/blobcache"
	"larder/handler/admin/doctor"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// examination bounds all that a doctor does: a pull waits for several upstreams.
const examination = time.Minute

// errUnwell says that a check has failed. The report says which.
var errUnwell = errors.New("not all is well")

// upstreamConfig is how upstreams are asked.
func (c *config) upstreamConfig() upstream.Config {
	return upstream.Config{
		Registries: c.upstreams,
		Parent:     c.parent,
		Keychain: &auth.Keychain{
			Host: c.upstreams[0].Host, Username: c.Username, Password: c.Password, PasswordFile: c.PasswordFile,
		},
		UserAgent:   "larder/" + version(),
		Connections: int(c.UpstreamConnections),
		Floor:       int(c.RateLimitFloor),
	}
}

// examine looks at everything that a configuration needs. cached is a reference
// for want of one that is set; pull is where larder is, or "", for noPull.
func (c *config) examine(ctx context.Context, listeners []doctor.Listener, cached, pull, noPull string) (*doctor.Report, error) {
	upstreams, err := upstream.New(c.upstreamConfig())
	if err != nil {
		return nil, err
	}
	reference := c.DoctorReference
	if reference == "" {
		reference = cached
	}
	cfg := doctor.Config{
		Version: version(), Upstreams: upstreams, CacheDir: c.CacheDir, MinFree: blobcache.Limit(c.MinFree),
		Listeners: listeners, Reference: reference, Pull: pull, NoPull: noPull,
	}
	if c.Shared != "" {
		if cfg.Shared, err = c.openStore(); err != nil {
			return nil, errors.Join(err, upstreams.Close())
		}
		defer cfg.Shared.Close()
	}
	return doctor.Examine(ctx, cfg), upstreams.Close()
}

// listenersAt are larder's, at these addresses.
func (c *config) listenersAt(addr, adminAddr string) []doctor.Listener {
	list := []doctor.Listener{{
		Name: doctor.Registry, Variable: "LARDER_ADDR", URL: c.registryURL(addr) + "/v2/", Certificate: c.ClientCA != "",
	}}
	if adminAddr != "" {
		list = append(list, doctor.Listener{Name: "admin", Variable: "LARDER_ADMIN_ADDR", URL: "http://" + reachable(adminAddr) + "/healthz"})
	}
	return list
}

// registryURL is where clients of a listener find it, from this machine.
func (c *config) registryURL(addr string) string {
	if c.TLSCert != "" {
		return "https://" + reachable(addr)
	}
	return "http://" + reachable(addr)
}

// pullFrom is where a doctor pulls from a listener, or why it does not.
func (c *config) pullFrom(addr string) (url, why string) {
	if c.ClientCA != "" {
		return "", "not tried: clients must show a certificate, and this is none"
	}
	return c.registryURL(addr), ""
}

// doctor answers GET /doctor, all who ask meanwhile with the same report.
func (p *program) doctor() http.Handler {
	var flights singleflight.Group
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result := <-flights.DoChan("", func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), examination)
			defer cancel()
			addr := p.servers[0].listener.Addr().String()
			listeners := p.cfg.listenersAt(addr, p.servers[1].listener.Addr().String())
			for i := range listeners {
				listeners[i].Running = true
			}
			pull, noPull := p.cfg.pullFrom(addr)
			return p.cfg.examine(ctx, listeners, p.firstCached(), pull, noPull)
		})
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		if result.Err != nil {
			http.Error(w, result.Err.Error(), http.StatusInternalServerError)
			return
		}
		report := result.Val.(*doctor.Report)
		if r.URL.Query().Get("format") == "json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
			h.Set("Content-Type", "application/json")
			_ = report.WriteJSON(w) // a client that has left needs no answer
			return
		}
		h.Set("Content-Type", "text/plain; charset=utf-8")
		_ = report.WriteText(w)
	})
}

// firstCached is an image that is in the cache, under a tag, or "".
func (p *program) firstCached() string {
	for _, repository := range p.manifests.Repositories() {
		if manifestcache.Unnamed(repository) || p.cfg.denied(repository) != "" {
			continue
		}
		if _, err := p.upstreams.Repository("", repository); err != nil {
			continue
		}
		for _, img := range p.manifests.Images(repository) {
			if len(img.Tags) > 0 {
				return repository + ":" + img.Tags[0].Name
			}
		}
	}
	return ""
}

// examineAll is larder doctor: the running larder's report, or one without it.
func examineAll(ctx context.Context, environ []string, stdout, stderr io.Writer) error {
	cfg, err := readConfig(environ)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*examination)
	defer cancel()
	report, err := cfg.askRunning(ctx)
	if err != nil {
		fmt.Fprintln(stderr, "larder: "+err.Error()+"; this report is made without it")
		if report, err = cfg.examineWithout(ctx, environ, stderr); err != nil {
			return err
		}
	}
	if err := report.WriteText(stdout); err != nil {
		return err
	}
	if !report.OK {
		return errUnwell
	}
	return nil
}

// askRunning gets the report of a larder that runs with this configuration.
func (c *config) askRunning(ctx context.Context) (*doctor.Report, error) {
	res, err := c.askAdmin(ctx, http.MethodGet, "/doctor", url.Values{"format": {"json"}}, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", c.AdminAddr, res.Status)
	}
	report := new(doctor.Report)
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(report); err != nil || len(report.Checks) == 0 {
		return nil, fmt.Errorf("%s answers something else", c.AdminAddr)
	}
	return report, nil
}

// examineWithout tries a pull through a larder of its own if none runs.
func (c *config) examineWithout(ctx context.Context, environ []string, stderr io.Writer) (*doctor.Report, error) {
	listeners := c.listenersAt(c.Addr, c.AdminAddr)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", reachable(c.Addr))
	if err == nil {
		conn.Close()
		pull, noPull := c.pullFrom(c.Addr)
		return c.examine(ctx, listeners, "", pull, noPull)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return c.examine(ctx, listeners, "", "", "not tried: "+err.Error())
	}
	addr, err := freePort(ctx, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	stop, err := startTemporary(ctx, addr, openedUp(environ), stderr)
	if err != nil {
		return c.examine(ctx, listeners, "", "", "not tried: "+err.Error())
	}
	report, err := c.examine(ctx, listeners, "", "http://"+addr, "")
	return report, errors.Join(err, stop())
}

// openedUp is an environment without what keeps clients out: nobody else will have
// the address.
func openedUp(environ []string) []string {
	return append(environ[:len(environ):len(environ)],
		"LARDER_TLS_CERT=", "LARDER_TLS_KEY=", "LARDER_CLIENT_CA=", "LARDER_HTPASSWD=", "LARDER_AUTH=", "LARDER_TOKEN_KEY=",
		"LARDER_ANONYMOUS_PULL=", "LARDER_ACCESS=", "LARDER_AUDIT_LOG=", "LARDER_MAX_SIZE=", "LARDER_QUOTA=", "LARDER_MIN_FREE=")
}
