package upstreamtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// writer is an http.ResponseWriter that a fault has put its hands on.
type writer struct {
	http.ResponseWriter
	header func(h http.Header)         // before the header goes out; may be nil
	body   func(p []byte) (int, error) // instead of Write; may be nil
	sent   int64                       // body bytes the registry has written, for body
}

func (w *writer) WriteHeader(status int) {
	if w.header != nil {
		w.header(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.body == nil {
		return w.ResponseWriter.Write(p)
	}
	n, err := w.body(p)
	w.sent += int64(n)
	return n, err
}

// Unwrap gives http.ResponseController its Flush and Hijack.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) flush() { http.NewResponseController(w).Flush() }

// spoil is a fault that answers as next does, through a writer that set has changed.
func spoil(set func(w *writer, req *http.Request)) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			w := &writer{ResponseWriter: rw}
			set(w, req)
			next.ServeHTTP(w, req)
		})
	}
}

// wait returns when ch is closed. It breaks the connection if the client leaves or the
// registry stops before that, as they always do if ch is nil.
func wait[T any](ctx context.Context, ch <-chan T) {
	select {
	case <-ch:
	case <-ctx.Done():
		abort()
	}
}

// abort breaks the connection, which is how net/http wants to be told.
func abort() { panic(http.ErrAbortHandler) }

// Status answers with this code, header added, and an OCI error as the body.
func Status(code int, header http.Header) Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			for name, values := range header {
				w.Header()[name] = slices.Clone(values)
			}
			writeError(w, req, code, errorCode(code), "a fault of upstreamtest")
		})
	}
}

// Redirect answers 307 with this Location.
func Redirect(url string) Fault {
	return func(http.Handler) http.Handler { return http.RedirectHandler(url, http.StatusTemporaryRedirect) }
}

// StallHeaders never answers: until the client leaves or the registry stops.
func StallHeaders() Fault { return Gate(nil) }

// Gate answers only after ch is closed.
func Gate(ch <-chan struct{}) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			wait(req.Context(), ch)
			next.ServeHTTP(w, req)
		})
	}
}

// Latency waits d before it answers.
func Latency(d time.Duration) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			timer := time.NewTimer(d)
			defer timer.Stop()
			wait(req.Context(), timer.C)
			next.ServeHTTP(w, req)
		})
	}
}

// ResetConnection closes the connection before any answer, with a TCP RST if it has sockets.
func ResetConnection() Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reset(w) })
	}
}

// reset closes the connection of an answer, with a TCP RST if it has sockets.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		abort()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) // what makes it a RST
	}
	conn.Close()
}

// after is a fault that sends n bytes of the body, sees to it that they leave, and calls then
// before the next one. Nothing happens to a body of n bytes or fewer.
func after(n int64, then func(w http.ResponseWriter, req *http.Request)) Fault {
	return spoil(func(w *writer, req *http.Request) {
		reached := false
		w.body = func(p []byte) (int, error) {
			left := n - w.sent
			if reached || int64(len(p)) <= left {
				return w.ResponseWriter.Write(p)
			}
			reached = true
			if m, err := w.ResponseWriter.Write(p[:left]); err != nil {
				return m, err
			}
			w.flush()
			then(w, req)
			m, err := w.ResponseWriter.Write(p[left:])
			return int(left) + m, err
		}
	})
}

// CutAfter promises the full length and breaks the connection after n bytes of the body.
func CutAfter(n int64) Fault {
	return after(n, func(http.ResponseWriter, *http.Request) { abort() })
}

// ResetAfter promises the full length and resets the connection after n bytes of the body,
// as ResetConnection does.
func ResetAfter(n int64) Fault {
	return after(n, func(w http.ResponseWriter, _ *http.Request) {
		reset(w)
		abort()
	})
}

// StallAfter sends n bytes of the body and then nothing, until the client leaves or the
// registry stops.
func StallAfter(n int64) Fault { return GateAfter(n, nil) }

// GateAfter sends n bytes of the body, and the rest only after ch is closed.
func GateAfter(n int64, ch <-chan struct{}) Fault {
	return after(n, func(_ http.ResponseWriter, req *http.Request) { wait(req.Context(), ch) })
}

// Rate sends the body of each answer at no more than this rate, in pieces of about 10 ms.
func Rate(bytesPerSecond int) Fault {
	piece := max(1, bytesPerSecond/100)
	return spoil(func(w *writer, req *http.Request) {
		limiter := rate.NewLimiter(rate.Limit(bytesPerSecond), piece)
		w.body = func(p []byte) (int, error) {
			sent := 0
			for part := range slices.Chunk(p, piece) {
				if err := limiter.WaitN(req.Context(), len(part)); err != nil {
					return sent, err
				}
				n, err := w.ResponseWriter.Write(part)
				sent += n
				if err != nil {
					return sent, err
				}
				w.flush()
			}
			return sent, nil
		}
	})
}

// FlipByte inverts byte at. It counts from the start of the blob, so that a range has the same
// wrong byte as the whole.
func FlipByte(at int64) Fault {
	return spoil(func(w *writer, _ *http.Request) {
		w.body = func(p []byte) (int, error) {
			first, _, _ := contentRange(w.Header())
			if i := at - first - w.sent; 0 <= i && i < int64(len(p)) {
				p = slices.Clone(p) // a Writer must not change what it is given
				p[i] ^= 0xff
			}
			return w.ResponseWriter.Write(p)
		}
	})
}

// Truncate ends the body after n bytes, as if there were no more: Content-Length agrees.
func Truncate(n int64) Fault {
	return spoil(func(w *writer, _ *http.Request) {
		w.header = func(h http.Header) { changeLength(h, func(length int64) int64 { return min(length, n) }) }
		w.body = func(p []byte) (int, error) {
			left := min(max(0, n-w.sent), int64(len(p)))
			if m, err := w.ResponseWriter.Write(p[:left]); err != nil {
				return m, err
			}
			return len(p), nil
		}
	})
}

// Extend appends n bytes to the body, as if they belonged to it: Content-Length
// agrees. They are spaces: JSON remains what it was.
func Extend(n int64) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			w := &writer{ResponseWriter: rw}
			w.header = func(h http.Header) { changeLength(h, func(length int64) int64 { return length + n }) }
			next.ServeHTTP(w, req)
			if req.Method != http.MethodHead {
				io.Copy(w, io.LimitReader(spaces{}, n))
			}
		})
	}
}

// Overrun sends n bytes more than the header promises, and closes the connection.
func Overrun(n int64) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(w, req)
			http.NewResponseController(w).Flush()
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				abort()
			}
			defer conn.Close()
			io.Copy(conn, io.LimitReader(spaces{}, n))
		})
	}
}

// CutAtEnd sends the whole body in chunks, and breaks the connection where the last one would
// say that this was all.
func CutAtEnd() Fault {
	return func(next http.Handler) http.Handler {
		return NoContentLength()(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(w, req)
			http.NewResponseController(w).Flush()
			abort()
		}))
	}
}

// spaces has no end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// changeLength changes the Content-Length in h, if there is one.
func changeLength(h http.Header, change func(int64) int64) {
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		h.Set("Content-Length", strconv.FormatInt(change(n), 10))
	}
}

// NoContentLength does not say how long the body is: it goes out chunked.
func NoContentLength() Fault { return DropHeader("Content-Length") }

// DropHeader answers without this header, even if net/http would add it.
func DropHeader(name string) Fault {
	return spoil(func(w *writer, _ *http.Request) {
		// Present without a value is what keeps net/http from working out its own.
		w.header = func(h http.Header) { h[http.CanonicalHeaderKey(name)] = nil }
	})
}

// SetHeader answers with this value of the header, and no other.
func SetHeader(name, value string) Fault {
	return spoil(func(w *writer, _ *http.Request) {
		w.header = func(h http.Header) { h.Set(name, value) }
	})
}

// IgnoreRange answers every request for a range with 200 and everything.
func IgnoreRange() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req = req.Clone(req.Context())
			req.Header.Del("Range")
			next.ServeHTTP(w, req)
		})
	}
}

// WrongContentRange sends the range asked for and says that it is the one a byte further on.
func WrongContentRange() Fault {
	return spoil(func(w *writer, _ *http.Request) {
		w.header = func(h http.Header) {
			if first, last, size := contentRange(h); size != "" {
				h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", first+1, last+1, size))
			}
		}
	})
}

// WrongTotal sends the range asked for and says that it is one of a blob n bytes larger.
func WrongTotal(n int64) Fault {
	return spoil(func(w *writer, _ *http.Request) {
		w.header = func(h http.Header) {
			first, last, size := contentRange(h)
			if total, err := strconv.ParseInt(size, 10, 64); err == nil {
				h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, total+n))
			}
		}
	})
}

// contentRange reads the Content-Range that the registry itself has set; size is "" if none.
func contentRange(h http.Header) (first, last int64, size string) {
	span, size, ok := strings.Cut(strings.TrimPrefix(h.Get("Content-Range"), "bytes "), "/")
	from, to, isRange := strings.Cut(span, "-")
	if !ok || !isRange {
		return 0, 0, ""
	}
	first, _ = strconv.ParseInt(from, 10, 64)
	last, _ = strconv.ParseInt(to, 10, 64)
	return first, last, size
}
