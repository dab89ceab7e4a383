package store

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second // once all was sent
	sendTimeout   = 30 * time.Second // for a piece of what is sent
)

// newTransport makes the connections to a store. Bodies come as they are kept, over
// HTTP/1.1: on one HTTP/2 connection, they would share its window.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: proxy,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return sender{conn}, nil
		},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  answerTimeout,
		DisableCompression:     true,
		MaxIdleConns:           128,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        64 << 10,
	}
}

// proxy is that of the environment, but roles are asked for at an address of the
// machine's own.
func proxy(req *http.Request) (*url.URL, error) {
	if ip := net.ParseIP(req.URL.Hostname()); ip != nil && ip.IsLinkLocalUnicast() {
		return nil, nil
	}
	return http.ProxyFromEnvironment(req)
}

// sender is a connection that breaks if the other side takes nothing any more.
type sender struct{ net.Conn }

// Write implements io.Writer.
func (s sender) Write(p []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return 0, err
	}
	return s.Conn.Write(p)
}
