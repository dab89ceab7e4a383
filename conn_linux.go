package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// sendMore sends p together with what follows it, or soon (tcp(7), MSG_MORE).
func (c *conn) sendMore(p []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		n, sendErr = unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	if err = errors.Join(err, sendErr); err == nil && n < len(p) {
		_, err = c.TCPConn.Write(p[n:])
	}
	return err
}
