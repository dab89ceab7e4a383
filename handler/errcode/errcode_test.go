package errcode_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"larder/handler/errcode"
)

func TestWrite(t *testing.T) {
	e := &errcode.Error{
		Status:  http.StatusTooManyRequests,
		Code:    errcode.TooManyRequests,
		Message: `upstream "docker.io" is busy`,
		Header:  http.Header{"Retry-After": {"7"}},
		Err:     errors.New("secret detail"),
	}
	want := `{"errors":[{"code":"TOOMANYREQUESTS","message":"upstream \"docker.io\" is busy"}]}` + "\n"
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		rec := httptest.NewRecorder()
		rec.Header().Set("ETag", `"sha256:abc"`) // of an answer that was not to be
		errcode.Write(rec, httptest.NewRequest(method, "/v2/", nil), e)
		res := rec.Result()
		if res.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: status %d, want 429", method, res.StatusCode)
		}
		for key, value := range map[string]string{
			"Content-Type": "application/json", "Content-Length": strconv.Itoa(len(want)), "Retry-After": "7", "Etag": "",
		} {
			if got := res.Header.Get(key); got != value {
				t.Errorf("%s: %s is %q, want %q", method, key, got, value)
			}
		}
		body := want
		if method == http.MethodHead {
			body = ""
		}
		if got := rec.Body.String(); got != body {
			t.Errorf("%s: body %q, want %q", method, got, body)
		}
	}
}

func TestErrorIsForTheLogAndUnwraps(t *testing.T) {
	cause := errors.New("connection refused")
	e := &errcode.Error{Message: "no answer", Err: cause}
	if got := e.Error(); got != "no answer: connection refused" || !errors.Is(e, cause) {
		t.Errorf("Error() = %q, unwraps to the cause: %v", got, errors.Is(e, cause))
	}
}
