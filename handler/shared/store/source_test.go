package store

import (
	"io"
	"testing"
)

// blocking is a content whose reading begins and ends when the test says so.
type blocking struct{ began, end chan struct{} }

func (b blocking) Read(p []byte) (int, error) {
	b.began <- struct{}{}
	<-b.end
	return len(p), nil
}

func (b blocking) Seek(int64, int) (int64, error) { return 0, nil }

// TestContentIsGivenBack shows that nobody reads a content once an attempt to send it
// is over, though a connection may still try to.
func TestContentIsGivenBack(t *testing.T) {
	content := blocking{make(chan struct{}), make(chan struct{})}
	src, err := newSource(t.Context(), content, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		_, err := src.Read(make([]byte, 10))
		read <- err
	}()
	<-content.began
	if src.mu.TryLock() {
		t.Error("stop would not wait for a read")
		src.mu.Unlock()
	}
	close(content.end)
	if err := <-read; err != nil {
		t.Error(err)
	}
	src.stop()
	if n, err := src.Read(make([]byte, 10)); n > 0 || err != errStopped {
		t.Errorf("read %d bytes afterwards, %v", n, err)
	}
	if _, err := src.Seek(0, io.SeekStart); err != errStopped {
		t.Errorf("sought afterwards, %v", err)
	}
}
