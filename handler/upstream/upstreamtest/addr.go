package upstreamtest

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// ports counts what FreeAddr has handed out.
var ports atomic.Int64

// FreeAddr is a loopback address that nobody listens on. Its port is not one of
// those that the system gives to whoever asks for any, or to connections, and a
// process gets it once: what has been stopped is not taken for what another test
// has started.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	l := listenAnywhere(tb)
	l.Close()
	return l.Addr().String()
}

// listenAnywhere listens on such an address.
func listenAnywhere(tb testing.TB) net.Listener {
	tb.Helper()
	for range 1000 {
		port := 10_000 + (int64(os.Getpid())*331+ports.Add(1))%20_000
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l
		}
	}
	tb.Fatal("no port is free")
	return nil
}
