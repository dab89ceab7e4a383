package main

import (
	"crypto/tls"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// certificateCheck is how often the files are looked at, at most.
const certificateCheck = time.Second

// certificate is what the registry's listener shows. It is read again when its
// files change, as cert-manager and certbot expect.
type certificate struct {
	cert, key string // paths
	log       *zap.Logger

	mu      sync.Mutex // guards the fields below
	current *tls.Certificate
	changed time.Time // of the younger file
	checked time.Time
}

// load reads the files.
func (c *certificate) load() error {
	changed := c.mtime()
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.changed, c.checked = &pair, changed, time.Now()
	return nil
}

// get is for tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	due, changed := time.Since(c.checked) >= certificateCheck, c.changed
	if due {
		c.checked = time.Now()
	}
	c.mu.Unlock()
	if due && !c.mtime().Equal(changed) { // an older pair may have been put back
		if err := c.load(); err != nil { // half of a new pair, perhaps
			c.log.Error("changed certificate can't be used; going on with the old one", zap.Error(err))
		} else {
			c.log.Info("certificate read again")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, nil
}

func (c *certificate) mtime() time.Time {
	var last time.Time
	for _, path := range []string{c.cert, c.key} {
		if fi, err := os.Stat(path); err == nil && fi.ModTime().After(last) {
			last = fi.ModTime()
		}
	}
	return last
}
