package store_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"larder/handler/shared/store"
)

// withoutCredentials leaves nothing in the environment that could be found.
func withoutCredentials(t *testing.T) {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	} {
		t.Setenv(name, "")
	}
}

// keys notes with which access keys requests are signed.
func keys(t *testing.T) (endpoint string, used chan string) {
	used = make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		key, _, _ := strings.Cut(rest, "/")
		used <- key
	}))
	t.Cleanup(server.Close)
	return "s3://bucket?endpoint=" + server.URL, used
}

func TestCredentialsOfTheEnvironment(t *testing.T) {
	withoutCredentials(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "environment")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	endpoint, used := keys(t)
	for want, creds := range map[string]store.Credentials{
		"environment": {},
		"given":       {AccessKey: "given", SecretKey: "hush"},
	} {
		if err := open(t, endpoint, creds).Delete(t.Context(), "key"); err != nil {
			t.Error(err)
		}
		if got := <-used; got != want {
			t.Errorf("signed with %q, want %q", got, want)
		}
	}
}

// role is a container's source of credentials.
func role(t *testing.T, answer func(w http.ResponseWriter)) *atomic.Int32 {
	withoutCredentials(t)
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		answer(w)
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL)
	return &asked
}

func grant(w http.ResponseWriter, key string, valid time.Duration) {
	fmt.Fprintf(w, `{"AccessKeyId": %q, "SecretAccessKey": "hush", "Token": "token", "Expiration": %q}`, key, time.Now().Add(valid).UTC().Format(time.RFC3339Nano))
}

func TestCredentialsOfARoleAreKept(t *testing.T) {
	asked := role(t, func(w http.ResponseWriter) { grant(w, "role", time.Hour) })
	endpoint, used := keys(t)
	s := open(t, endpoint, store.Credentials{})
	for range 5 {
		if err := s.Delete(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		if got := <-used; got != "role" {
			t.Errorf("signed with %q", got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the role was asked for %d times", n)
	}
}

func TestCredentialsOfARoleAreRenewed(t *testing.T) {
	var n atomic.Int32
	role(t, func(w http.ResponseWriter) { grant(w, fmt.Sprint("role", n.Add(1)), time.Nanosecond) })
	endpoint, used := keys(t)
	s := open(t, endpoint, store.Credentials{})
	for i := range 3 {
		if err := s.Delete(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		if got, want := <-used, fmt.Sprint("role", i+1); got < want {
			t.Errorf("signed with %q, want %q or later", got, want)
		}
	}
}

func TestNoCredentialsAreAnError(t *testing.T) {
	role(t, func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) })
	endpoint, used := keys(t)
	err := open(t, endpoint, store.Credentials{}).Delete(t.Context(), "key")
	if err == nil || !strings.Contains(err.Error(), "no credentials") || !strings.Contains(err.Error(), "403") {
		t.Errorf("got %v", err)
	}
	if len(used) > 0 {
		t.Error("a request was sent without")
	}
}

// TestCredentialsThatDoNotCome shows that nobody waits long for them, neither who
// asks first nor who asks meanwhile.
func TestCredentialsThatDoNotCome(t *testing.T) {
	forever := make(chan struct{})
	role(t, func(http.ResponseWriter) { <-forever })
	t.Cleanup(func() { close(forever) }) // before the server is closed
	endpoint, _ := keys(t)
	s := open(t, endpoint, store.Credentials{})
	began := time.Now()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := s.Delete(ctx, "key"); err == nil {
				t.Error("done without credentials")
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}
