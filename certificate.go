package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"

	"go.uber.org/zap"

	"larder/auth/watched"
)

// openCertificate reads what a listener shows.
func openCertificate(cert, key string, log *zap.Logger) (*watched.Files[*tls.Certificate], error) {
	return watched.Open("certificate", log, func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		return &pair, err
	}, cert, key)
}

// openClientCA reads by whom clients' certificates must be signed.
func openClientCA(path string, log *zap.Logger) (*watched.Files[*x509.CertPool], error) {
	return watched.Open("client CA", log, func() (*x509.CertPool, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(data) {
			return nil, errors.New("no certificate in " + path)
		}
		return pool, nil
	}, path)
}

// tlsConfig shows the certificate, and wants one of clients if there is a CA to
// check it with.
func tlsConfig(certificate *watched.Files[*tls.Certificate], clientCA *watched.Files[*x509.CertPool]) *tls.Config {
	cfg := &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.Get(), nil },
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
		cfg.ClientCAs = clientCA.Get()
		return cfg, nil
	}
	return cfg
}
