package upstreamtest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
)

// A reset may overtake what was sent before it, so only the beginning is certain.
func TestResetAfter(t *testing.T) {
	for _, n := range []int64{0, 300, int64(len(blobData)) - 1} {
		r, path := withBlob(t)
		r.Fault(Match{}, ResetAfter(n))
		resp, err := http.Get(r.URL + path)
		if err != nil {
			continue // before the header
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil || int64(len(body)) > n || !bytes.HasPrefix(blobData, body) || resp.ContentLength != int64(len(blobData)) {
			t.Errorf("reset after %d: got %d bytes of %d and error %v", n, len(body), resp.ContentLength, err)
		}
	}
}

func TestCutAtEnd(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, CutAtEnd())
	resp, err := http.Get(r.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil || resp.ContentLength != -1 || !bytes.Equal(body, blobData) {
		t.Errorf("got %d bytes, length %d and error %v, want all, no length and an error", len(body), resp.ContentLength, err)
	}
}

func TestOverrun(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, Overrun(10))
	conn, err := net.Dial("tcp", r.host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
	all, err := io.ReadAll(conn)
	if err != nil || !bytes.HasSuffix(all, append(bytes.Clone(blobData), bytes.Repeat([]byte(" "), 10)...)) ||
		!bytes.Contains(all, []byte("Content-Length: "+strconv.Itoa(len(blobData))+"\r\n")) {
		t.Errorf("got %d bytes (%v), want the promised length, the body and ten spaces", len(all), err)
	}
}

func TestWrongTotal(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, WrongTotal(3))
	a := get(t, r, path, "Range", "bytes=0-9")
	a.want(t, http.StatusPartialContent, blobData[:10])
	a.wantHeader(t, "Content-Range", "bytes 0-9/"+strconv.Itoa(len(blobData)+3))
	get(t, r, path).want(t, http.StatusOK, blobData)
}
