package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// connected returns both ends of a connection.
func connected(t *testing.T) (c *conn, client *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := listener{l.(*net.TCPListener)}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near.(*conn), far.(*net.TCPConn)
}

// wantSilence checks that nothing has arrived: what is sent over the loopback is
// there when the sender goes on.
func wantSilence(t *testing.T, client *net.TCPConn) {
	t.Helper()
	if err := client.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(make([]byte, 100)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v; want none yet", n, err)
	}
}

func wantBytes(t *testing.T, client *net.TCPConn, want []byte) {
	t.Helper()
	if err := client.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v; want the %d that were written", n, err, len(want))
	}
}

// TestCorkedWriteWaitsForTheNext has the first of an answer wait, and what follows
// it come in all the ways that there are.
func TestCorkedWriteWaitsForTheNext(t *testing.T) {
	header := bytes.Repeat([]byte("h"), firstWrite)
	body := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		rest []byte
		send func(c *conn, rest []byte) error
	}{
		"a little": {body[:500], func(c *conn, rest []byte) error { return written(c.Write(rest)) }},
		"much":     {body, func(c *conn, rest []byte) error { return written(c.Write(rest)) }},
		"a file": {body, func(c *conn, rest []byte) error {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer f.Close()
			n, err := c.ReadFrom(io.LimitReader(f, int64(len(rest))))
			return written(int(n), err)
		}},
		"the end of the answer": {nil, func(c *conn, _ []byte) error { return c.SetWriteDeadline(time.Time{}) }},
	} {
		t.Run(name, func(t *testing.T) {
			c, client := connected(t)
			for range 2 {
				c.Cork()
				if n, err := c.Write(header); n != len(header) || err != nil {
					t.Fatalf("write: %d, %v", n, err)
				}
				wantSilence(t, client)
				sent := make(chan error, 1)
				go func() { sent <- test.send(c, test.rest) }()
				wantBytes(t, client, append(bytes.Clone(header), test.rest...))
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Write([]byte("uncorked")); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, client, []byte("uncorked"))
		})
	}
}

func written(_ int, err error) error { return err }

func TestLargeWriteIsNotHeldBack(t *testing.T) {
	c, client := connected(t)
	c.Cork()
	large := bytes.Repeat([]byte("x"), firstWrite+1)
	if _, err := c.Write(large); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, client, large)
}

func TestStalledClientIsDropped(t *testing.T) {
	for name, send := range map[string]func(c *conn, p []byte) error{
		"written": func(c *conn, p []byte) error { return written(c.Write(p)) },
		"copied":  func(c *conn, p []byte) error { n, err := c.ReadFrom(bytes.NewReader(p)); return written(int(n), err) },
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := connected(t)
			c.patience = 50 * time.Millisecond
			var err error
			for err == nil { // until all buffers are full
				err = send(c, make([]byte, 1<<20))
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a client that does not read: %v, want it to be given up", err)
			}
		})
	}
}

func TestClientThatGoesOnIsNotDropped(t *testing.T) {
	t.Parallel()
	c, client := connected(t)
	c.patience = time.Second // which a write must not take on a busy machine
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range 10 { // twice its patience
		<-tick.C
		if _, err := c.Write([]byte("piece")); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, client, []byte("piece"))
	}
}

// TestSmallAnswerHasTimeAgain has nothing sent for longer than a client may take,
// and then an answer that is held back to its end.
func TestSmallAnswerHasTimeAgain(t *testing.T) {
	t.Parallel()
	c, client := connected(t)
	c.patience = time.Second // as above
	for range 2 {
		if _, err := c.Write([]byte("large")); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, client, []byte("large"))
		<-time.After(c.patience + 10*time.Millisecond)
		wantSilence(t, client)
		c.Cork()
		if _, err := c.Write([]byte("small")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, client, []byte("small"))
	}
}

// TestAnswerThatCantBeSentIsAnEnd has the kernel refuse what was held back, which
// net/http does not look at.
func TestAnswerThatCantBeSentIsAnEnd(t *testing.T) {
	c, client := connected(t)
	c.Cork()
	if _, err := c.Write([]byte("small")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := c.uncork(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want it to be too late", err)
	}
	client.SetReadDeadline(time.Now().Add(patience))
	if n, err := client.Read(make([]byte, 10)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v; want the end", n, err)
	}
}

func TestDeadlineThatIsGivenCounts(t *testing.T) {
	c, client := connected(t)
	if err := c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var err error
	for began := time.Now(); err == nil && time.Since(began) < patience; {
		if _, err = c.Write([]byte("piece")); err == nil {
			wantBytes(t, client, []byte("piece"))
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing after a deadline that was given: %v, want it to be over", err)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("the next answer")); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, client, []byte("the next answer"))
}

// TestReadDeadlines tells net/http's deadlines, which are set when somebody reads.
func TestReadDeadlines(t *testing.T) {
	soon, never := 50*time.Millisecond, time.Time{}
	for name, test := range map[string]struct {
		before func(c *conn) time.Time   // what is set before the read
		during func(c *conn) []time.Time // and while it waits
		late   bool                      // the read comes to its deadline
	}{
		"one that comes": {before: func(*conn) time.Time { return time.Now().Add(soon) }, late: true},
		"one that is over": {
			before: func(*conn) time.Time { return time.Now().Add(-time.Hour) }, late: true,
		},
		"one that is lifted": {before: func(*conn) time.Time { return never }},
		"one that is put off": {
			before: func(*conn) time.Time { return time.Now().Add(time.Hour) },
		},
		"one that is lifted in the meantime": {
			before: func(*conn) time.Time { return time.Now().Add(soon) }, during: func(*conn) []time.Time { return []time.Time{never} },
		},
		"one that comes in the meantime": {
			before: func(*conn) time.Time { return never }, during: func(*conn) []time.Time { return []time.Time{time.Now()} }, late: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, client := connected(t)
			// A deadline that is set and does not count any more.
			if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("1")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(test.before(c)); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() { read <- written(c.Read(make([]byte, 1))) }()
			if test.during != nil {
				eventually(t, "somebody to read", func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return c.reading
				})
				for _, deadline := range test.during(c) {
					if err := c.SetReadDeadline(deadline); err != nil {
						t.Fatal(err)
					}
				}
			}
			if !test.late {
				time.AfterFunc(3*soon, func() { _, _ = client.Write([]byte("2")) })
			}
			if err := <-read; test.late != errors.Is(err, os.ErrDeadlineExceeded) || !test.late && err != nil {
				t.Errorf("read: %v", err)
			}
		})
	}
}
