package upstreamtest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// The ports of tests are not those that the system gives to whoever asks for any, or to
// connections. They are parted into blocks, of which a process has one for itself: tests
// of several packages run at once, and what one of them has stopped must not come back as
// what another has started.
const (
	firstPort = 7_000
	lastPort  = 32_000
	blockSize = 2_500 // more than the tests of any package take
)

// guard listens on the first port of this process's block for as long as the process
// lives, which keeps others out of the block.
var guard = sync.OnceValues(func() (net.Listener, error) {
	for port := firstPort; port+blockSize <= lastPort; port += blockSize {
		if l, err := listenOn(port); err == nil {
			return l, nil
		}
	}
	return nil, errors.New("other processes have all ports")
})

// TakePorts takes the block of this process, which else is taken when a port is first
// asked for. It is for who counts open files before that.
func TakePorts() error {
	_, err := guard()
	return err
}

// handedOut counts how often a port of the block was taken. They go around, so that each
// has rested for long when it is taken again.
var handedOut atomic.Int64

func listenOn(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// FreeAddr is a loopback address that nobody listens on, and that no other test is given
// soon.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	l := listenAnywhere(tb)
	l.Close()
	return l.Addr().String()
}

// listenAnywhere listens on such an address.
func listenAnywhere(tb testing.TB) net.Listener {
	tb.Helper()
	block, err := guard()
	if err != nil {
		tb.Fatal(err)
	}
	for range blockSize {
		port := block.Addr().(*net.TCPAddr).Port + 1 + int(handedOut.Add(1))%(blockSize-1)
		if l, err := listenOn(port); err == nil {
			return l
		}
	}
	tb.Fatal("no port is free")
	return nil
}
