package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/semaphore"

	"larder/handler/admin"
	"larder/handler/middleware"
)

// listenAdmin warns of a listener that tells everybody everything.
func (p *program) listenAdmin(metrics *admin.Metrics) error {
	opts, err := p.passwords("LARDER_ADMIN_HTPASSWD", p.cfg.AdminHtpasswd)
	if err != nil {
		return err
	}
	protect, err := middleware.Builtin().Get("auth", opts)
	if err != nil {
		return err
	}
	p.admin = admin.New(admin.Config{
		Metrics: metrics, Control: p.control(), Ready: p.ready, Protect: protect, Hosts: p.cfg.adminHosts(),
		Version: version(), Chain: p.cfg.middlewares, Settings: p.cfg.shown(),
	})
	if err := p.listen("LARDER_ADMIN_ADDR", p.cfg.AdminAddr, p.admin, nil); err != nil {
		return err
	}
	addr := p.servers[len(p.servers)-1].listener.Addr()
	if tcp, ok := addr.(*net.TCPAddr); opts.Verify == nil && (!ok || !tcp.IP.IsLoopback()) {
		p.log.Warn("ANYBODY WHO REACHES THE ADMIN LISTENER CAN READ METRICS AND MEMORY PROFILES, AND EMPTY THE CACHE: set LARDER_ADMIN_HTPASSWD, or LARDER_ADMIN_ADDR to a loopback address",
			zap.Stringer("addr", addr))
	}
	return nil
}

// tlsConfig is nil if the registry's listener is a plain one.
func (p *program) tlsConfig() (*tls.Config, error) {
	if p.cfg.TLSCert == "" {
		return nil, nil
	}
	log := p.log.Named("tls")
	certificate, err := openCertificate(p.cfg.TLSCert, p.cfg.TLSKey, log)
	if err != nil {
		return nil, &configError{[]error{fmt.Errorf("LARDER_TLS_CERT, LARDER_TLS_KEY: %w", err)}}
	}
	if p.cfg.ClientCA == "" {
		return tlsConfig(certificate, nil), nil
	}
	clientCA, err := openClientCA(p.cfg.ClientCA, log)
	if err != nil {
		return nil, &configError{[]error{fmt.Errorf("LARDER_CLIENT_CA: %w", err)}}
	}
	return tlsConfig(certificate, clientCA), nil
}

// server is an http.Server and the listener it is for.
type server struct {
	http.Server
	listener  net.Listener
	answering *semaphore.Weighted // held once by each handler that runs
}

// listen serves on the socket that was handed down in place of variable, or else
// opens one; for TLS unless that is nil.
func (p *program) listen(variable, addr string, h http.Handler, secure *tls.Config) (err error) {
	l := p.sockets[variable]
	if l == nil {
		if l, err = net.Listen("tcp", addr); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
	}
	// TLS writes when it likes and sets deadlines of its own, from any goroutine;
	// what systemd hands down may be a socket of another kind.
	if tcp, ok := l.(*net.TCPListener); ok && secure == nil {
		l = listener{tcp}
	}
	s := &server{listener: l, answering: semaphore.NewWeighted(math.MaxInt64)}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.answering.TryAcquire(1) {
			panic(http.ErrAbortHandler) // all is being cut off
		}
		defer s.answering.Release(1)
		h.ServeHTTP(w, r)
	})
	s.ReadHeaderTimeout = 10 * time.Second
	s.IdleTimeout = 2 * time.Minute
	s.MaxHeaderBytes = 64 << 10
	s.TLSConfig = secure
	s.ConnContext = middleware.ConnContext
	s.DisableGeneralOptionsHandler = true // it answers before anybody is asked for a password
	// Clients that try TLS on a plain port are no news.
	s.ErrorLog, err = zap.NewStdLogAt(p.log.Named("net"), zapcore.DebugLevel)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	p.servers = append(p.servers, s)
	return nil
}
