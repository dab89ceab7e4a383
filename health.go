package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"
)

// healthTimeout bounds the question of larder health.
const healthTimeout = 5 * time.Second

// health asks the larder that the environment configures whether it is well:
// on its admin listener or, if that is off, on the registry's.
func health(ctx context.Context, environ []string) error {
	cfg, err := readConfig(environ)
	if err != nil {
		return err
	}
	addr, path, scheme := cfg.AdminAddr, "/healthz", "http"
	if addr == "" {
		addr, path = cfg.Addr, "/v2/"
		if cfg.TLSCert != "" {
			scheme = "https"
		}
	}
	local := reachable(addr)
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	// It is this machine that is asked; what name its certificate has matters not.
	insecure := &tls.Config{InsecureSkipVerify: true}
	if scheme == "https" && cfg.ClientCA != "" { // who has no certificate gets no further than this
		conn, err := (&tls.Dialer{Config: insecure}).DialContext(ctx, "tcp", local)
		if err != nil {
			return fmt.Errorf("health: %w", err)
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+local+path, nil)
	if err != nil {
		return fmt.Errorf("health: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("health: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
		return fmt.Errorf("health: %s answers %s", addr, res.Status)
	}
	return nil
}
