package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// certificateCheck is how often the files are looked at, at most.
const certificateCheck = time.Second

// watched is what was read of some files. It is read again when they change, as
// cert-manager and certbot expect.
type watched[T any] struct {
	what  string // for the log
	paths []string
	read  func() (T, error) // reads all of them
	log   *zap.Logger

	mu      sync.Mutex // guards the fields below
	current T
	seen    string // the state that the files were in when they were read last, good or bad
	checked time.Time
}

// load reads the files. If that fails, what was read before stays.
func (w *watched[T]) load() error {
	seen := w.state() // before reading: a change in between is noticed next time
	value, err := w.read()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen, w.checked = seen, time.Now()
	if err == nil {
		w.current = value
	}
	return err
}

// get returns what is in force.
func (w *watched[T]) get() T {
	w.mu.Lock()
	due, seen := time.Since(w.checked) >= certificateCheck, w.seen
	if due {
		w.checked = time.Now() // so that only one caller looks
	}
	w.mu.Unlock()
	if due && w.state() != seen { // an older file may have been put back
		if err := w.load(); err != nil { // half of a new pair, perhaps
			w.log.Error(w.what+" changed and can't be used; going on with the old", zap.Error(err))
		} else {
			w.log.Info(w.what + " read again")
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// state changes whenever the files do.
func (w *watched[T]) state() string {
	var state strings.Builder
	for _, path := range w.paths {
		if fi, err := os.Stat(path); err == nil {
			fmt.Fprintf(&state, "%d bytes of %d; ", fi.Size(), fi.ModTime().UnixNano())
		} else {
			state.WriteString("none; ")
		}
	}
	return state.String()
}

// newCertificate is what a listener shows.
func newCertificate(cert, key string, log *zap.Logger) *watched[*tls.Certificate] {
	return &watched[*tls.Certificate]{
		what: "certificate", paths: []string{cert, key}, log: log,
		read: func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		},
	}
}

// newClientCA is by whom clients' certificates must be signed.
func newClientCA(path string, log *zap.Logger) *watched[*x509.CertPool] {
	return &watched[*x509.CertPool]{
		what: "client CA", paths: []string{path}, log: log,
		read: func() (*x509.CertPool, error) {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(data) {
				return nil, errors.New("no certificate in " + path)
			}
			return pool, nil
		},
	}
}

// tlsConfig shows the certificate, and wants one of clients if there is a CA to
// check it with.
func tlsConfig(certificate *watched[*tls.Certificate], clientCA *watched[*x509.CertPool]) *tls.Config {
	cfg := &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.get(), nil },
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	if clientCA == nil {
		return cfg
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	// A resumed session would be one that an earlier CA has vouched for.
	cfg.SessionTicketsDisabled = true
	each := cfg.Clone()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := each.Clone()
		cfg.ClientCAs = clientCA.get()
		return cfg, nil
	}
	return cfg
}
