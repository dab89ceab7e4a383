package upstream_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestStatuses(t *testing.T) {
	type verdict struct{ unreachable, refused, timeout bool }
	tests := map[int]struct {
		verdict
		requests int
	}{
		204: {verdict{}, 1},
		400: {verdict{}, 1},
		401: {verdict{refused: true}, 1},
		403: {verdict{refused: true}, 1},
		404: {verdict{refused: true}, 1},
		418: {verdict{}, 1},
		429: {verdict{unreachable: true}, 1},
		500: {verdict{unreachable: true}, 2},
		502: {verdict{unreachable: true}, 2},
		503: {verdict{unreachable: true}, 2},
		504: {verdict{unreachable: true, timeout: true}, 1},
	}
	for status, test := range tests {
		for question, ask := range questions {
			t.Run(fmt.Sprint(question, " ", status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, r := startPipe(t, upstream.Config{})
					header := http.Header{"X-Said": {"so"}}
					fault := upstreamtest.Status(status, header)
					if status >= 400 { // what is said about it does not matter, however long it is
						fault = chain(upstreamtest.Extend(100<<10), fault)
					}
					reg.Fault(upstreamtest.Match{Path: page(question)}, fault)
					err := ask(t.Context(), r)
					e := wantError(t, err, status)
					got := verdict{upstream.Unreachable(err), upstream.Refused(err), e.Timeout()}
					if got != test.verdict {
						t.Errorf("got %+v, want %+v", got, test.verdict)
					}
					if e.Op != question && question != "head blob" || e.Header.Get("X-Said") != "so" || e.Err != nil {
						t.Errorf("got %+v", e)
					}
					want := test.requests
					if question == "head blob" && status == 403 {
						want = 2 // the second is a GET
					}
					if n := reg.Count("", page(question)); n != want {
						t.Errorf("got %d requests, want %d", n, want)
					}
				})
			})
		}
	}
}

func TestErrorCode(t *testing.T) {
	bodies := map[string]string{
		`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m"},{"code":"DENIED"}]}`: "MANIFEST_UNKNOWN",
		`{"errors":[{"code":"no code\nat all"}]}`:                                  "",
		`{"errors":[{"code":"` + strings.Repeat("A", 1000) + `"}]}`:                "",
		`{"errors":[{"code":7}]}`:                                                  "",
		`{"errors":[]}`:                                                            "",
		"Not found":                                                                "",
		"":                                                                         "",
	}
	for body, want := range bodies {
		reg, r := start(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{Path: "/manifests/"}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusNotFound)
				io.WriteString(w, body)
			})
		})
		e := wantError(t, questions["get manifest"](t.Context(), r), http.StatusNotFound)
		if e.Code != want || want != "" && !strings.Contains(e.Error(), want) {
			t.Errorf("%.50s: got code %q, want %q (%v)", body, e.Code, want, e)
		}
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	for _, status := range []int{429, 500, 502, 503} {
		for question, ask := range questions {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: page(question)}, upstreamtest.Status(status, http.Header{"Retry-After": {"120"}}))
			err := ask(t.Context(), r)
			e := wantError(t, err, status)
			wantUnreachable(t, err, true)
			if n := reg.Count("", page(question)); n != 1 || e.Header.Get("Retry-After") != "120" {
				t.Errorf("%s, %d: got %d requests, header %v", question, status, n, e.Header)
			}
		}
	}
}

// passing are faults of which one is not noticed, and two are.
var passing = map[string]upstreamtest.Fault{
	"500":     upstreamtest.Status(500, nil),
	"502":     upstreamtest.Status(502, nil),
	"503":     upstreamtest.Status(503, nil),
	"reset":   upstreamtest.ResetConnection(),
	"garbage": garbage(),
}

// garbage answers what is not HTTP.
func garbage() upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.9\r\n\r\n")
			conn.Close()
		})
	}
}

func TestOneFaultIsNotNoticed(t *testing.T) {
	for name, fault := range passing {
		for question := range questions {
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, r := startPipe(t, upstream.Config{})
					for _, path := range []string{"/v2/", page(question)} {
						remove := reg.Fault(upstreamtest.Match{Path: path, Times: 1}, fault)
						ask(t, r, question)
						remove()
					}
				})
			})
		}
	}
}

func TestTwoFaultsAreNoticed(t *testing.T) {
	for name, fault := range passing {
		for question, ask := range questions {
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					for _, path := range []string{"/v2/", page(question)} {
						reg, r := startPipe(t, upstream.Config{})
						reg.Fault(upstreamtest.Match{Path: path}, fault)
						err := ask(t.Context(), r)
						e, ok := errors.AsType[*upstream.Error](err)
						if !ok || !upstream.Unreachable(err) || e.Timeout() {
							t.Fatalf("%s: got %v, want that upstream can't be reached", path, err)
						}
						wantError(t, err, e.Status)
						if n := reg.Count("", path); n > 4 { // net/http asks again on a reused connection
							t.Errorf("%s: got %d requests", path, n)
						}
						reg.Stop()
					}
				})
			})
		}
	}
}

// The body of a document is part of the answer.
func TestCutDocument(t *testing.T) {
	for _, question := range []string{"get manifest", "list tags", "list referrers"} {
		synctest.Test(t, func(t *testing.T) {
			reg, r := startPipe(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: page(question), Times: 1}, upstreamtest.CutAfter(10))
			ask(t, r, question)
			reg.Fault(upstreamtest.Match{Path: page(question)}, upstreamtest.CutAfter(10))
			err := questions[question](t.Context(), r)
			wantError(t, err, 0)
			wantUnreachable(t, err, true)
		})
	}
}
