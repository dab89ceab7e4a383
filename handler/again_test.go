package handler_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestBlobThatClientsAskForAgainAtOnceIsVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		data := random(t, 1, 200<<10)
		path := blobPath("library/alpine", l.hub.AddBlob("library/alpine", data))
		ask := func(wantDoubted int64, headers ...string) {
			t.Helper()
			a := l.record(t.Context(), "GET", path, headers...)
			synctest.Wait()
			if a.StatusCode != http.StatusOK && a.StatusCode != http.StatusPartialContent {
				t.Errorf("got %d", a.StatusCode)
			}
			if n := l.blobs.Stats().Doubted; n != wantDoubted {
				t.Errorf("the blob was doubted %d times, want %d", n, wantDoubted)
			}
		}
		ask(0)
		ask(0) // once is no reason
		time.Sleep(2 * time.Minute)
		ask(0)
		ask(0, "Range: bytes=0-") // a part says nothing
		ask(1)
		for range 10 { // it was right: some clients just ask often
			ask(1)
		}
		time.Sleep(2 * time.Hour)
		ask(1)
		ask(1)
		ask(2)
		l.record(t.Context(), "GET", path).wantBody(t, http.StatusOK, data)
	})
}
