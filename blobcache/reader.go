package blobcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// reader follows a fill at its own pace. It holds the file in a named field:
// were it embedded, io.Copy would find the file's own methods and send what
// has not arrived (as zeros, or not at all).
type reader struct {
	ctx  context.Context // of the Get that made it: what its waits end with
	fill *fill
	file *os.File // this reader's own, as sending uses the file's offset
	size int64    // -1: not known when the reader was made

	stored bool // it reads a blob that was on disk before

	asked want  // what it was made for
	want  *want // what it needs now; the fields are guarded by the fill's mu

	once  sync.Once
	close func()
}

// errMissed says that a fill's file is gone, though the fill has not failed: it
// was completed and removed again just now, or somebody has taken it away.
var errMissed = errors.New("fill's file is gone")

// open waits until f has a first byte of w to show and returns a reader of the
// blob, and its size.
func (f *fill) open(ctx context.Context, w *want) (*reader, int64, error) {
	_, err := f.wait(ctx, w)
	if err != nil && err != io.EOF { // an empty blob is at its end at once
		f.drop(w)
		return nil, 0, err
	}
	file, err := f.openFile()
	if err != nil {
		f.drop(w)
		return nil, 0, err
	}
	size := f.knownSize()
	return &reader{ctx: ctx, fill: f, file: file, size: size, stored: f.stored, asked: *w, want: w}, size, nil
}

// openFile opens the file for one more reader, by its old name or by the one
// that a commit has given it meanwhile. What else may have these names by now,
// as the fill has ended, is not taken for its file.
func (f *fill) openFile() (*os.File, error) {
	names := []string{partialName(f.digest), blobName(f.digest)}
	if f.stored {
		names = names[1:]
	}
	for _, name := range names {
		file, err := f.cache.root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if fi, err := file.Stat(); err == nil && os.SameFile(fi, f.info) {
			return file, nil
		}
		file.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, cmp.Or(f.err, errMissed)
}

// await waits for the next bytes, of which the reader can use n.
func (r *reader) await(n int64) (offset, available int64, err error) {
	r.fill.mu.Lock()
	w := r.want
	// A reader that goes on in small steps is on its way through: what it wants
	// grows with what it has had.
	w.end = max(w.end, w.pos+max(n, w.read))
	offset = w.pos
	r.fill.mu.Unlock()
	available, err = r.fill.wait(r.ctx, w)
	return offset, min(available, n), err
}

// advance notes that n bytes were had.
func (r *reader) advance(n int64) {
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	r.want.pos += n
	r.want.read += n
}

// Read waits for bytes to arrive.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	offset, available, err := r.await(int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := r.file.ReadAt(p[:available], offset)
	r.advance(int64(n))
	if n > 0 {
		return n, nil
	}
	return 0, cutOff(err)
}

// cutOff is the error of reading what has arrived: if the file ends before it,
// somebody has cut it, and that is not the end of the blob.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Seek moves within a blob of known size. Moving does not wait.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += r.want.pos
	case io.SeekEnd:
		if r.size < 0 {
			return 0, fmt.Errorf("seek in %s: size not known", r.fill.digest)
		}
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek in %s: %w", r.fill.digest, fs.ErrInvalid)
	}
	switch offset {
	case r.want.pos:
	case r.asked.began:
		*r.want = r.asked
	default:
		*r.want = want{pos: offset, end: offset, began: offset}
	}
	return offset, nil
}

// SendTo sends the next n bytes to w as they arrive, and returns how many it
// has sent. Each piece goes as an *os.File, which a TCP connection takes
// without copying.
func (r *reader) SendTo(w io.Writer, n int64) (sent int64, err error) {
	for sent < n {
		offset, available, err := r.await(n - sent)
		if err != nil {
			return sent, err
		}
		if _, err := r.file.Seek(offset, io.SeekStart); err != nil {
			return sent, err
		}
		m, err := io.CopyN(w, r.file, available)
		r.advance(m)
		sent += m
		if err != nil {
			return sent, cutOff(err)
		}
	}
	return sent, nil
}

// Close lets go of the fill. It may be called more than once.
func (r *reader) Close() error {
	var err error
	r.once.Do(func() {
		r.fill.drop(r.want)
		err = r.file.Close()
		r.close()
	})
	return err
}
