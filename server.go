package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"larder/auth/htpasswd"
	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler"
	"larder/handler/admin"
	"larder/handler/admin/setup"
	"larder/handler/middleware"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/handler/warm"
	"larder/manifestcache"
)

// linger is how long a blob goes on being fetched when the last client that
// wanted it has left.
const linger = 30 * time.Second

// noticing is how long handlers have to notice that their connection is closed.
// They have a word to say about it: that an answer was broken off.
const noticing = 2 * time.Second

// errShuttingDown is what readiness says while larder stops.
var errShuttingDown = errors.New("shutting down")

// program is larder, wired.
type program struct {
	cfg        *config
	log        *zap.Logger
	stdout     io.Writer
	stderr     io.Writer
	dir        *cacheDir
	upstreams  *upstream.Client
	blobs      *blobcache.Cache
	manifests  *manifestcache.Cache
	shared     *shared.Tier // nil: none
	handler    *handler.Handler
	warmer     *warm.Warmer
	warmList   func() []string // nil: there is none
	limit      middleware.LimitCounts
	audit      *auditLog               // nil: off
	memory     *memory.Cache           // of both
	sockets    map[string]net.Listener // handed down, by the variable they stand in for
	servers    []*server
	admin      *admin.Handler // nil: off
	stopping   atomic.Bool
	background sync.WaitGroup
}

// run is larder: it serves until ctx is done, and then stops gracefully. The
// environment is all it reads of the world, stderr where it logs, stdout where
// audit records go if they are wanted there.
func run(ctx context.Context, environ []string, stdout, stderr io.Writer) (err error) {
	cfg, err := readConfig(environ)
	if err != nil {
		return err
	}
	log, closeLog := newLogger(cfg, stderr)
	defer closeLog()
	for _, v := range cfg.unknown {
		if v.didYouMean != "" {
			log.Warn("unknown variable", zap.String("variable", v.name), zap.String("did you mean", v.didYouMean))
		} else {
			log.Warn("unknown variable", zap.String("variable", v.name))
		}
	}
	p := &program{cfg: cfg, log: log, stdout: stdout, stderr: stderr}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.open(); err != nil {
		return err
	}
	return p.serve(ctx)
}

// open makes everything that serving needs, the listeners last: whoever can
// connect gets an answer. Nobody is contacted.
func (p *program) open() (err error) {
	cfg := p.cfg
	if err := p.openSockets(); err != nil {
		return err
	}
	if p.audit, err = openAudit(cfg.AuditLog, p.stdout, p.log.Named("audit")); err != nil {
		return err
	}
	if p.dir, err = openCacheDir(cfg.CacheDir); err != nil {
		return err
	}
	metrics := admin.NewMetrics(version())
	asking := cfg.upstreamConfig()
	asking.Observe, asking.Logger = metrics.Asked, p.log.Named("upstream")
	if p.upstreams, err = upstream.New(asking); err != nil {
		return err
	}
	if err := p.openCaches(metrics); err != nil {
		return err
	}
	registry, err := p.registry(metrics)
	if err != nil {
		return err
	}
	if p.warmList, err = p.openWarmer(); err != nil {
		return err
	}
	metrics.Collect(admin.Sources{
		Blobs: p.blobs, Manifests: p.manifests, Memory: p.memory, Upstreams: p.upstreams, Limit: &p.limit, Warmer: p.warmer, AuditLost: p.audit.lostRecords,
		Prefetched: p.handler.Prefetched, Shared: p.shared, Received: p.handler.Received,
	})
	secure, err := p.tlsConfig()
	if err != nil {
		return err
	}
	if err := p.listen("LARDER_ADDR", cfg.Addr, registry, secure); err != nil {
		return err
	}
	if cfg.AdminAddr == "" {
		return nil
	}
	return p.listenAdmin(metrics)
}

func (p *program) openCaches(metrics *admin.Metrics) error {
	p.memory = memory.New(int64(p.cfg.Memory))
	blobs, err := p.dir.sub("blobs")
	if err != nil {
		return err
	}
	p.blobs, err = blobcache.Open(blobs, blobcache.Config{
		TTL: p.cfg.BlobTTL, Linger: linger, Connections: int(p.cfg.FetchConnections),
		MaxSize: blobcache.Limit(p.cfg.MaxSize), MinFree: blobcache.Limit(p.cfg.MinFree), Quotas: p.cfg.Quotas,
		ScrubInterval: p.cfg.ScrubInterval, ScrubRate: int64(p.cfg.ScrubRate),
		Pins:   true,
		Memory: p.memory, Observe: metrics.Stored("blob"), Logger: p.log.Named("blobs"),
	})
	if err != nil {
		return err
	}
	if err := p.openShared(metrics); err != nil {
		return err
	}
	manifests, err := p.dir.sub("manifests")
	if err != nil {
		return err
	}
	cfg := manifestcache.Config{
		TTL:     p.cfg.ManifestTTL,
		TagTTL:  p.cfg.TagTTL,
		ListTTL: p.cfg.ListTTL,
		StaleIf: func(err error) bool { // an upstream that lies can't answer either
			return upstream.Unreachable(err) || errors.Is(err, manifestcache.ErrDigest)
		},
		GoneIf:  upstream.Refused,
		Spare:   p.upstreams.Spare,
		Pinned:  p.cfg.pinned(),
		Hold:    p.blobs.Hold,
		Memory:  p.memory,
		Observe: metrics.Stored("manifest"), Logger: p.log.Named("manifests"),
	}
	if p.shared != nil { // or it would be one that is nil
		cfg.Shared = p.shared
	}
	p.manifests, err = manifestcache.Open(manifests, cfg)
	return err
}

// registry is the handler of the registry's listener.
func (p *program) registry(metrics *admin.Metrics) (http.Handler, error) {
	opts, err := p.passwords("LARDER_HTPASSWD", p.cfg.Htpasswd)
	if err != nil {
		return nil, err
	}
	access, err := p.access()
	if err != nil {
		return nil, err
	}
	if opts.Tokens, err = p.tokens(access); err != nil {
		return nil, err
	}
	cfg := handler.Config{Upstreams: p.upstreams, Blobs: p.blobs, Manifests: p.manifests, Shared: p.shared, Redirect: p.cfg.Redirect}
	if p.cfg.Prefetch == prefetchManifest {
		cfg.Prefetch = p.cfg.PrefetchTimeout
	}
	if p.cfg.Catalog {
		cfg.Catalog = access.MayPull
	}
	h := handler.New(cfg)
	p.handler = h
	opts.Logger, opts.Access, opts.Observe = p.log.Named("http"), patient(p.log.Named("http")), metrics.Observe
	opts.Running = metrics.Running
	opts.Identify, opts.MayPull = h.Identify, access.MayPull
	opts.Limit, opts.Variables = &p.limit, p.cfg.settings
	if p.audit != nil {
		opts.Audit = p.audit.logger()
	}
	return middlewares().Chain(h, opts, p.cfg.middlewares...)
}

// passwords are the options of an auth middleware: with a file, or without one.
func (p *program) passwords(variable, path string) (opts middleware.Options, err error) {
	if path == "" {
		return opts, nil
	}
	users, err := htpasswd.Open(path, p.log.Named("auth").With(zap.String("variable", variable)))
	if err != nil {
		return opts, &configError{[]error{fmt.Errorf("%s: %w", variable, err)}}
	}
	opts.Verify = users.Verify
	return opts, nil
}

// control is what shows and prunes the cache.
func (p *program) control() *admin.Control {
	return &admin.Control{
		Blobs: p.blobs, Manifests: p.manifests, Upstreams: p.upstreams, Warmer: p.warmer, Shared: p.shared,
		Addr: p.servers[0].listener.Addr().String(), Denied: p.cfg.denied,
		Pins: warm.Split(p.cfg.Pin),
		Glob: func(pattern string) (func(string) bool, error) {
			glob, err := handler.ParseGlob(pattern)
			return glob.Match, err
		},
		Others: p.pages(),
		Logger: p.log.Named("admin"),
	}
}

// pages help operators to use larder and to find out what is wrong with it.
func (p *program) pages() map[string]http.Handler {
	clients := setup.Handler(setup.Config{
		Registries: p.cfg.upstreams, Addr: p.servers[0].listener.Addr().String(),
		TLS: p.cfg.TLSCert != "", SignIn: p.cfg.Htpasswd != "" || p.cfg.ClientCA != "" || p.cfg.Auth == authToken,
	})
	return map[string]http.Handler{"/setup": clients, "/setup/": clients, "GET /doctor": p.doctor()}
}

// serve runs until ctx is done or a listener fails.
func (p *program) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, s := range p.servers {
		p.background.Go(func() { cancel(s.run()) }) // ends with the server's Shutdown or Close
	}
	p.background.Go(func() { _ = p.manifests.Run(ctx) }) // the error is ctx's
	p.background.Go(func() {
		// One looks through its directory at a time: two would keep two CPUs from who
		// is served meanwhile.
		_ = p.manifests.Scanned(ctx)
		_ = p.blobs.Run(ctx)
	})
	p.background.Go(func() { _ = p.blobs.Scrub(ctx) })
	if p.shared != nil {
		p.background.Go(func() { p.runShared(ctx) })
	}
	p.background.Go(func() { p.tidy(ctx) })
	p.background.Go(func() { p.checkCredentials(ctx) })
	if p.audit != nil {
		p.background.Go(func() { p.audit.run(ctx) })
	}
	if p.warmList != nil {
		p.background.Go(func() { p.warmer.Follow(ctx, p.warmList) })
	}
	if p.admin != nil {
		p.background.Go(func() { p.admin.Run(ctx) })
	}
	adminAddr := "" // off
	if len(p.servers) > 1 {
		adminAddr = p.servers[1].listener.Addr().String()
	}
	if p.cfg.forPeople(p.stderr) {
		p.greet(ctx)
	} else {
		p.log.Info("larder started", zap.String("version", version()), zap.Stringer("addr", p.servers[0].listener.Addr()),
			zap.String("admin", adminAddr), zap.Bool("tls", p.cfg.TLSCert != ""), zap.Bool("client certificates", p.cfg.ClientCA != ""),
			zap.Bool("password", p.cfg.Htpasswd != ""),
			zap.String("cache", p.cfg.CacheDir), zap.String("upstreams", p.cfg.UpstreamList), zap.String("parent", p.cfg.ParentURL), zap.String("shared", p.cfg.Shared))
	}
	p.tellSystemd(daemon.SdNotifyReady, "STATUS=answering on "+p.servers[0].listener.Addr().String())
	<-ctx.Done()
	err := context.Cause(ctx)
	p.warmer.Close() // nobody has to be waited for who watches
	p.shutdown()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *server) run() error {
	if s.TLSConfig != nil {
		return s.ServeTLS(s.listener, "", "")
	}
	return s.Serve(s.listener)
}

// checkCredentials tells the operator of wrong ones before the first pull.
func (p *program) checkCredentials(ctx context.Context) {
	if err := p.upstreams.CheckCredentials(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("the default upstream can't be signed in to; pulls that need that will fail",
			zap.String("upstream", p.cfg.upstreams[0].Host), zap.Error(err))
	}
}

// ready says why larder should not be sent requests. A cache that can't be
// written is no reason, but a detail: blobs are passed on.
func (p *program) ready() (detail string, err error) {
	if p.stopping.Load() {
		return "", errShuttingDown
	}
	if err := p.blobs.Stats().StoreError; err != nil {
		detail = fmt.Sprintf("the cache can't be written, and blobs are passed on without being kept: %v", err)
	}
	return detail, p.dir.usable()
}

// shutdown lets the answers that have begun come to their end, for as long as
// the grace period.
func (p *program) shutdown() {
	p.stopping.Store(true)
	p.tellSystemd(daemon.SdNotifyStopping)
	p.log.Info("larder stopping", zap.Duration("grace", p.cfg.ShutdownGrace))
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.ShutdownGrace)
	defer cancel()
	for _, s := range p.servers {
		if err := s.Shutdown(ctx); err != nil {
			p.log.Warn("answers cut short", zap.Stringer("addr", s.listener.Addr()), zap.Error(err))
			s.cut()
		}
	}
}

// cut closes all connections, and waits for the handlers to notice.
func (s *server) cut() {
	_ = s.Close() // its listener is closed already
	ctx, cancel := context.WithTimeout(context.Background(), noticing)
	defer cancel()
	_ = s.answering.Acquire(ctx, math.MaxInt64) // who has not noticed by then has to be left behind
}

// close ends what open has made, in the opposite order.
func (p *program) close() error {
	var errs []error
	for _, s := range p.servers {
		if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.background.Wait()
	if p.warmer != nil {
		p.warmer.Close()
	}
	if p.handler != nil {
		p.handler.Close()
	}
	if p.blobs != nil {
		errs = append(errs, p.blobs.Close())
	}
	if p.manifests != nil {
		errs = append(errs, p.manifests.Close())
	}
	if p.shared != nil { // the caches' fills and questions use it
		errs = append(errs, p.shared.Close())
	}
	if p.upstreams != nil {
		errs = append(errs, p.upstreams.Close())
	}
	if p.dir != nil {
		errs = append(errs, p.dir.close())
	}
	if p.audit != nil {
		errs = append(errs, p.audit.close())
	}
	return errors.Join(errs...)
}
