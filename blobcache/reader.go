package blobcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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

	src   Source
	pass  *pass  // once the fill has given up keeping the blob
	leave func() // the fill; may be called more than once
}

// errMissed says that a fill's file is gone, though the fill has not failed: it
// was completed and removed again just now, or somebody has taken it away.
var errMissed = errors.New("fill's file is gone")

// errNoSize says that there is no seeking from the end of what has none.
var errNoSize = errors.New("size of the blob is not known")

// open waits until f has a first byte of w to show and returns a reader of the
// blob, and its size. There is no reader if the blob is held.
func (f *fill) open(ctx context.Context, w *want) (*reader, int64, error) {
	_, err := f.wait(ctx, w)
	if err != nil && err != io.EOF { // an empty blob is at its end at once
		f.drop(w)
		return nil, 0, err
	}
	if f.held != nil {
		return nil, f.size, nil
	}
	r := &reader{ctx: ctx, fill: f, size: f.knownSize(), stored: f.stored, asked: *w, want: w}
	if f.hasFile() {
		err = r.openFile()
	}
	if err != nil && err != io.EOF {
		f.drop(w)
		return nil, 0, err
	}
	return r, r.size, nil
}

// openFile is done at once if it can be, as an error can still be a clear one
// then. But if nothing has arrived, as is so behind the end, there is no file.
func (r *reader) openFile() (err error) {
	if r.file == nil {
		r.file, err = r.fill.openFile()
	}
	return err
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
		file, fi, err := f.cache.open(name)
		switch {
		case tooManyFiles(err), errors.Is(err, fs.ErrPermission):
			return nil, err
		case err != nil: // gone, or no file
		case os.SameFile(fi, f.info):
			return file, nil
		default:
			file.Close()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, cmp.Or(f.err, errMissed)
}

// await waits for the next bytes, of which the reader can use n.
func (r *reader) await(n int64) (offset, available int64, err error) {
	r.fill.mu.Lock()
	w := r.want
	if end := w.pos + n; end > w.end {
		// A reader that goes on in small steps is on its way through: what it
		// wants grows with what it has had. Who has said what he wants gets that.
		w.end = max(end, w.pos+w.read)
	}
	offset = w.pos
	r.fill.mu.Unlock()
	available, err = r.fill.wait(r.ctx, w)
	if err == nil {
		err = r.openFile()
	}
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
	if r.pass != nil {
		return r.pass.read(r.ctx, p)
	}
	offset, available, err := r.await(int64(len(p)))
	if unkept(err) {
		if err := r.moveOn(offset); err != nil {
			return 0, err
		}
		return r.Read(p)
	}
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

// moveOn leaves a fill that won't have more than was read, up to offset, for a
// pass. What was read from the start is hashed again for that.
func (r *reader) moveOn(offset int64) error {
	if r.src.Fetch == nil {
		return ErrUnkept // see Follow
	}
	r.fill.mu.Lock()
	w := *r.want
	r.fill.mu.Unlock()
	pass := newPass(r.fill.cache, r.fill.digest, &w, r.src)
	pass.size = r.size
	if pass.verifier != nil {
		if _, err := io.Copy(pass.verifier, io.NewSectionReader(r.file, 0, offset)); err != nil {
			return err
		}
	}
	if err := r.fill.cache.follow(pass); err != nil {
		return err
	}
	r.pass = pass
	r.fill.drop(r.want)
	r.leave()
	return nil
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
	if r.pass != nil {
		return r.pass.seek(offset, whence)
	}
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	offset, err := target(offset, whence, r.want.pos, r.size)
	if err != nil {
		return 0, err
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

// target is where a Seek leads, from pos in a blob of the given size.
func target(offset int64, whence int, pos, size int64) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += pos
	case io.SeekEnd:
		if size < 0 {
			return 0, errNoSize
		}
		offset += size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek before the start of a blob: %w", fs.ErrInvalid)
	}
	return offset, nil
}

// SendTo sends the next n bytes to w as they arrive, and returns how many it
// has sent. Each piece goes as an *os.File, which a TCP connection takes
// without copying.
func (r *reader) SendTo(w io.Writer, n int64) (sent int64, err error) {
	for sent < n {
		if r.pass != nil {
			m, err := r.pass.sendTo(r.ctx, w, n-sent)
			return sent + m, err
		}
		offset, available, err := r.await(n - sent)
		if unkept(err) {
			if err := r.moveOn(offset); err != nil {
				return sent, err
			}
			continue
		}
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
	r.leave()
	if r.pass != nil {
		r.pass.leave()
	}
	if r.file == nil {
		return nil
	}
	r.fill.drop(r.want)
	if err := r.file.Close(); !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}
