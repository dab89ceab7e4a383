package memory_test

import (
	"bytes"
	"io"
	"testing"

	"larder/blobcache/memory"
)

// TestSendingMoreThanThereIsSaysSo has who counts what was sent come to an end.
func TestSendingMoreThanThereIsSaysSo(t *testing.T) {
	r := memory.NewReader([]byte("content"))
	for _, test := range []struct {
		n    int64
		want string
		err  error
	}{{3, "con", nil}, {4, "tent", nil}, {0, "", nil}, {1, "", io.EOF}} {
		var got bytes.Buffer
		n, err := r.SendTo(&got, test.n)
		if got.String() != test.want || n != int64(len(test.want)) || err != test.err {
			t.Errorf("sent %d bytes, %q, of %d, and %v; want %q and %v", n, got.String(), test.n, err, test.want, test.err)
		}
	}
}
