package memory

import (
	"bytes"
	"io"
)

// Reader reads bytes that are in memory and sends them uncopied.
type Reader struct{ bytes.Reader }

// NewReader reads data, which must not be changed.
func NewReader(data []byte) *Reader {
	r := new(Reader)
	r.Reset(data)
	return r
}

// SendTo sends the next n bytes to w as they are. As with io.CopyN, the error is
// io.EOF if there are fewer.
func (r *Reader) SendTo(w io.Writer, n int64) (int64, error) {
	if n < int64(r.Len()) {
		return io.CopyN(w, &r.Reader, n)
	}
	sent, err := r.WriteTo(w)
	if err == nil && sent < n {
		err = io.EOF
	}
	return sent, err
}

// InMemory says that it can leave together with a header.
func (r *Reader) InMemory() bool { return true }

// Close has nothing to do: the bytes are shared.
func (r *Reader) Close() error { return nil }
