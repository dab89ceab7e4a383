package middleware

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// piece is how much is sent under one deadline, and stalled how long a
	// client may take for it: who reads less than 9 kB a second has stalled.
	piece   = 1 << 20
	stalled = 2 * time.Minute

	// unread is how long net/http may wait for a request's body, which nobody
	// reads, before it sends the answer.
	unread = 5 * time.Second
)

// StatusLeft is what log and metrics show for a client that went away before
// its answer. It is never sent.
const StatusLeft = 499

// Recorder is the one http.ResponseWriter that stands between the handlers and
// net/http. It knows what was sent, drops clients that stall, and keeps
// sendfile: an *os.File, or content that sends itself, goes out uncopied.
type Recorder struct {
	http.ResponseWriter
	method  string
	conn    conn   // nil: the connection has no deadlines of its own
	onStart func() // called before the first of an answer is sent; nil: nobody cares
	status  int    // 0: no header yet
	bytes   int64
	first   time.Time // when the answer began; zero: it has not
}

// selfSender is content that is still arriving and sends itself as it does.
type selfSender interface {
	SendTo(w io.Writer, n int64) (int64, error)
}

// conn is a connection that drops clients that stall, and can put off a small write
// until the next one.
type conn interface{ Cork() }

type connKey struct{}

// ConnContext is an http.Server's. A connection with a method Cork has deadlines of
// its own.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(conn); ok {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

func newRecorder(w http.ResponseWriter, r *http.Request) *Recorder {
	rec := &Recorder{ResponseWriter: w, method: r.Method}
	if r.ContentLength == 0 { // or else net/http waits for the body before it ends an answer
		rec.conn, _ = r.Context().Value(connKey{}).(conn)
	}
	return rec
}

// refuseBody sees to it that a request with a body, which no request for a cache
// has, can't hold its connection by never sending it.
func (rec *Recorder) refuseBody(r *http.Request) {
	if r.ContentLength == 0 {
		return
	}
	rec.Header().Set("Connection", "close")
	_ = http.NewResponseController(rec.ResponseWriter).SetReadDeadline(time.Now().Add(unread)) // without deadlines, so be it
}

// WriteHeader implements http.ResponseWriter.
func (rec *Recorder) WriteHeader(status int) {
	if rec.status < 200 {
		rec.start(status)
	}
	rec.ResponseWriter.WriteHeader(status)
}

// start notes the status; one below 200 is not yet the answer's.
func (rec *Recorder) start(status int) {
	rec.status, rec.first = status, time.Now()
	if rec.onStart != nil && status >= 200 {
		rec.onStart()
	}
}

// Write implements http.ResponseWriter.
func (rec *Recorder) Write(p []byte) (int, error) {
	rec.begin()
	n, err := rec.ResponseWriter.Write(p)
	rec.bytes += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom, piece by piece, each under a new deadline.
func (rec *Recorder) ReadFrom(src io.Reader) (sent int64, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	for limited.N > 0 && err == nil {
		rec.begin()
		if rec.bytes == 0 && rec.conn != nil && inMemory(limited.R) {
			rec.conn.Cork()
		}
		n := min(limited.N, piece)
		var m int64
		if s, ok := limited.R.(selfSender); ok {
			m, err = s.SendTo(rec.ResponseWriter, n)
		} else {
			m, err = io.CopyN(rec.ResponseWriter, limited.R, n)
		}
		limited.N -= m
		rec.bytes += m
		sent += m
	}
	if err == io.EOF { // of a source whose length nobody promised
		err = nil
	}
	return sent, err
}

// inMemory reports whether content can leave together with the header. What the
// kernel sends from a file does not: held back for it, a header costs more than by itself.
func inMemory(r io.Reader) bool {
	m, ok := r.(interface{ InMemory() bool })
	return ok && m.InMemory()
}

// Unwrap is for http.ResponseController.
func (rec *Recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// begin is called before bytes are sent. The deadline that it sets ends with
// the request: net/http sees to that.
func (rec *Recorder) begin() {
	if rec.status < 200 {
		rec.start(http.StatusOK)
	}
	if rec.conn == nil {
		_ = http.NewResponseController(rec.ResponseWriter).SetWriteDeadline(time.Now().Add(stalled)) // net/http's can
	}
}

// Status is the answer's status; StatusLeft if there was none.
func (rec *Recorder) Status() int {
	if rec.status == 0 {
		return StatusLeft
	}
	return rec.status
}

// Short reports whether less was sent than the answer's header promised.
func (rec *Recorder) Short() bool {
	if rec.method == http.MethodHead || (rec.status != http.StatusOK && rec.status != http.StatusPartialContent) {
		return false
	}
	length, err := strconv.ParseInt(rec.Header().Get("Content-Length"), 10, 64)
	return err == nil && rec.bytes < length
}
