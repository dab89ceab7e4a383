//go:build !linux

package main

// sendMore sends p by itself.
func (c *conn) sendMore(p []byte) error {
	_, err := c.TCPConn.Write(p)
	return err
}
