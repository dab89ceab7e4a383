package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"larder/handler/shared/store"
)

// fake is an S3 server that answers as handler does.
func fake(t *testing.T, handler http.HandlerFunc) store.Store {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return open(t, "s3://bucket?endpoint="+server.URL, store.Credentials{AccessKey: "access", SecretKey: "secret-of-the-tests"})
}

// answerError is an S3 error.
func answerError(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>as the server says it</Message></Error>`, code)
}

// describe makes an answer that of an object.
func describe(w http.ResponseWriter) {
	w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	w.Header().Set("ETag", `"version"`)
}

func TestS3Errors(t *testing.T) {
	tests := map[string]struct {
		status   int
		code     string
		is       error // of Get
		isChange error // of Replace
		hint     string
	}{
		"absent":            {404, "NoSuchKey", store.ErrNotExist, store.ErrChanged, ""},
		"precondition":      {412, "PreconditionFailed", nil, store.ErrChanged, ""},
		"two at once":       {409, "ConditionalRequestConflict", nil, store.ErrChanged, ""},
		"other conflict":    {409, "BucketNotEmpty", nil, nil, ""},
		"not implemented":   {501, "NotImplemented", store.ErrUnsupported, store.ErrUnsupported, ""},
		"range":             {416, "InvalidRange", store.ErrRange, store.ErrRange, ""},
		"no rights":         {403, "AccessDenied", nil, nil, "s3:GetObject"},
		"clock":             {403, "RequestTimeTooSkewed", nil, nil, "clock"},
		"region":            {400, "AuthorizationHeaderMalformed", nil, nil, "region="},
		"too many requests": {503, "SlowDown", nil, nil, "fewer requests"},
		"full":              {507, "XMinioStorageFull", nil, nil, "full"},
		"something new":     {418, "Teapot", nil, nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := fake(t, func(w http.ResponseWriter, _ *http.Request) { answerError(w, test.status, test.code) })
			_, _, err := s.Get(t.Context(), "key", 5, 5)
			_, change := s.Replace(t.Context(), "key", []byte("x"), "version")
			for _, got := range []struct{ err, want error }{{err, test.is}, {change, test.isChange}} {
				if got.want != nil {
					if got.err != got.want {
						t.Errorf("got %v, want %v", got.err, got.want)
					}
					continue
				}
				if hint := test.hint; hint != "" || got.err == err {
					wantS3Error(t, "error", got.err, test.code, hint)
				}
			}
		})
	}
}

func TestS3AnswerThatIsNoXML(t *testing.T) {
	s := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		w.Write(bytes.Repeat([]byte("<html>a proxy's page</html>"), 100_000))
	})
	_, _, err := s.Get(t.Context(), "key", 0, -1)
	if e, ok := errors.AsType[*store.Error](err); !ok || len(e.Error()) > 500 {
		t.Errorf("Get: %.600v", err)
	}
}

// TestS3BodyThatBreaksOff shows that less than was promised never looks like all.
func TestS3BodyThatBreaksOff(t *testing.T) {
	const size = 100_000
	tests := map[string]func(w http.ResponseWriter){
		"connection closed": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(make([]byte, size/2))
			panic(http.ErrAbortHandler)
		},
		"range in chunks, ended early": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-%d/%d", size-1, size))
			w.WriteHeader(http.StatusPartialContent)
			w.(http.Flusher).Flush()
			w.Write(make([]byte, size/2))
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			s := fake(t, func(w http.ResponseWriter, _ *http.Request) {
				describe(w)
				answer(w)
			})
			offset := int64(strings.Count(name, "range"))
			body, info, err := s.Get(t.Context(), "key", offset, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			n, err := io.Copy(io.Discard, body)
			if _, ok := errors.AsType[*store.Error](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d bytes of %d ended with %v", n, info.Size, err)
			}
		})
	}
}

// TestS3AnotherRange shows that bytes from elsewhere are not taken for those asked for.
func TestS3AnotherRange(t *testing.T) {
	tests := map[string]func(w http.ResponseWriter){
		"ignored": func(w http.ResponseWriter) { w.Write(make([]byte, 100)) },
		"other start": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, 10))
		},
		"shorter": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 50-54/100")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, 5))
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			s := fake(t, func(w http.ResponseWriter, _ *http.Request) {
				describe(w)
				answer(w)
			})
			if _, info, err := s.Get(t.Context(), "key", 50, 10); err == nil {
				t.Errorf("taken, with %+v", info)
			}
		})
	}
}

// TestS3RedirectIsNotFollowed shows that no other host is shown a signature.
func TestS3RedirectIsNotFollowed(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", other.URL+r.URL.Path)
		answerError(w, http.StatusTemporaryRedirect, "TemporaryRedirect")
	})
	_, _, err := s.Get(t.Context(), "key", 0, -1)
	wantS3Error(t, "Get", err, "TemporaryRedirect", "region=")
	err = s.Put(t.Context(), "key", strings.NewReader("x"), store.Label{Size: 1})
	wantS3Error(t, "Put", err, "TemporaryRedirect", "region=")
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("another host was asked %d times", n)
	}
}

func TestS3ServerThatHangs(t *testing.T) {
	s := fake(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for name, operation := range map[string]func(ctx context.Context) error{
		"get": func(ctx context.Context) error { _, _, err := s.Get(ctx, "key", 0, -1); return err },
		"put": func(ctx context.Context) error {
			return s.Put(ctx, "key", &pattern{size: 1 << 20}, store.Label{Size: 1 << 20})
		},
		"create": func(ctx context.Context) error { _, err := s.Create(ctx, "key", []byte("x")); return err },
		"delete": func(ctx context.Context) error { return s.Delete(ctx, "key") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := operation(ctx)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	}
}

// TestS3AsksTwice shows what is sent again after an answer that means later, with
// the content from where it begins: never what has a condition.
func TestS3AsksTwice(t *testing.T) {
	var requests atomic.Int32
	var got atomic.Pointer[[]byte]
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if requests.Add(1) == 1 {
			answerError(w, http.StatusServiceUnavailable, "SlowDown")
			return
		}
		got.Store(&body)
		describe(w)
	})
	if _, err := s.Head(t.Context(), "key"); err != nil {
		t.Errorf("Head: %v", err)
	}
	requests.Store(0)
	content := &pattern{size: 1 << 20}
	if _, err := content.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "key", content, store.Label{Size: 1000}); err != nil {
		t.Errorf("Put: %v", err)
	}
	want := make([]byte, 1000)
	content.Seek(100, io.SeekStart)
	io.ReadFull(content, want)
	if body := got.Load(); body == nil || !bytes.Equal(*body, want) {
		t.Error("another content was sent the second time")
	}
	requests.Store(0)
	_, err := s.Create(t.Context(), "key", []byte("x"))
	wantS3Error(t, "Create", err, "SlowDown", "fewer")
	if n := requests.Load(); n != 1 {
		t.Errorf("Create was sent %d times", n)
	}
}

// TestS3ErrorAfterStatus200 shows that a copy that went wrong late is not taken for
// one that was made.
func TestS3ErrorAfterStatus200(t *testing.T) {
	aborted := make(chan struct{}, 2)
	s := fake(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			fmt.Fprint(w, `<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key><UploadId>upload</UploadId></InitiateMultipartUploadResult>`)
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
			aborted <- struct{}{}
		default:
			answerError(w, http.StatusOK, "InternalError")
		}
	})
	if err := s.Compose(t.Context(), "key", []string{"a"}, store.Label{}); err == nil {
		t.Error("one part was composed")
	}
	if err := s.Compose(t.Context(), "key", []string{"a", "b"}, store.Label{}); err == nil {
		t.Error("two parts were composed")
	}
	select {
	case <-aborted:
	default:
		t.Error("the upload was not aborted")
	}
}
