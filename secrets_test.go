package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// secrets are what must never be seen, by what they are.
type secrets map[string]string

// plant makes a secret up.
func (s secrets) plant(what string) string {
	s[what] = rand.Text()
	return s[what]
}

// forms are how a secret may look: as it is, and as it is inside of a base64
// text, wherever in that it begins.
func forms(secret string) (list []string) {
	list = []string{secret, url.QueryEscape(secret)}
	for shift := range 3 {
		padded := make([]byte, shift, shift+len(secret))
		padded = append(padded, secret...)
		padded = padded[:len(padded)/3*3] // the last letters depend on what follows, too
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			list = append(list, encoding.EncodeToString(padded)[4*((shift+2)/3):])
		}
	}
	return list
}

// wantNone checks that text, which is of a place, has none of the secrets.
func (s secrets) wantNone(t *testing.T, place string, text []byte) {
	t.Helper()
	for what, secret := range s {
		for _, form := range forms(secret) {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				t.Errorf("%s has the %s: %q", place, what, text[max(0, i-150):min(len(text), i+100)])
				break
			}
		}
	}
}

func TestSecretsAreFoundWhateverTheyLookLike(t *testing.T) {
	const secret = "T0PSECRETT0PSECRETT0PSECRE"
	for _, text := range []string{secret, "x" + secret + "y"} {
		for before := range 4 {
			encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", before) + text + "end"))
			found := false
			for _, form := range forms(secret) {
				found = found || strings.Contains("Basic "+encoded+" ", form) || strings.Contains(text, form) && before == 0
			}
			if !found {
				t.Errorf("not found in %q", encoded)
			}
		}
	}
}

// haunted is a larder among registries that tell their secrets to everybody.
type haunted struct {
	*larder
	t          *testing.T
	secrets    secrets
	hub, ghcr  *upstreamtest.Registry
	cdn        *httptest.Server // where blobs are redirected to, signed
	admin      string
	user, pass string // of clients
	signed     string // a query
	answers    lockedBuffer
}

// newHaunted starts larder as a process, with its password in the environment
// or in a file.
func newHaunted(t *testing.T, inFile bool) *haunted {
	h := &haunted{t: t, secrets: make(secrets), hub: upstreamtest.New(t), ghcr: upstreamtest.New(t), admin: freeAddr(t), user: "alice"}
	h.pass = h.secrets.plant("client's password")
	h.signed = "X-Amz-Credential=" + h.secrets.plant("credential of signed URLs") + "&X-Amz-Signature=" + h.secrets.plant("signature of URLs")
	h.cdn = httptest.NewServer(http.HandlerFunc(h.serveSigned))
	t.Cleanup(h.cdn.Close)

	hubPass, ghcrPass := h.secrets.plant("default upstream's password"), h.secrets.plant("password in Docker's configuration")
	h.hub.RequireBearer("larder", hubPass, 0)
	h.ghcr.RequireBasic("larder", ghcrPass)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { echo(w, r, http.StatusForbidden) }))
	t.Cleanup(store.Close)
	home := t.TempDir()
	basic := base64.StdEncoding.EncodeToString([]byte("larder:" + ghcrPass))
	writeFile(t, filepath.Join(home, "config.json"), fmt.Sprintf(`{"auths": {"ghcr.io": {"auth": %q}}}`, basic))
	environ := []string{
		"LARDER_LOG_LEVEL=debug", "LARDER_ADMIN_ADDR=" + h.admin, "HOME=" + home, "DOCKER_CONFIG=" + home,
		"LARDER_UPSTREAMS=docker.io=" + h.hub.URL + ",ghcr.io=" + h.ghcr.URL + ",far.example=http://far.invalid,safe.example=https://safe.invalid",
		"LARDER_HTPASSWD=" + passwordFile(t, h.user, h.pass), "LARDER_ADMIN_HTPASSWD=" + passwordFile(t, h.user, h.pass),
		"HTTP_PROXY=http://proxy:" + h.secrets.plant("proxy's password") + "@" + freeAddr(t),
		"HTTPS_PROXY=http://proxy:" + h.secrets.plant("wrong proxy's password") + "@%zz",
		"LARDER_USERNAME=larder", "LARDER_SHARED=s3://bucket?endpoint=" + url.QueryEscape(store.URL),
		"LARDER_SHARED_ACCESS_KEY=larder", "LARDER_SHARED_SECRET_KEY=" + h.secrets.plant("key of the store"),
	}
	if inFile {
		environ = append(environ, "LARDER_PASSWORD_FILE="+writeFile(t, filepath.Join(home, "password"), hubPass+"\n"))
	} else {
		environ = append(environ, "LARDER_PASSWORD="+hubPass)
	}
	h.larder = execLarder(t, nil, environ...)
	eventually(t, "larder to answer", func() bool {
		resp, err := http.Get("http://" + h.admin + "/readyz")
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	return h
}

// serveSigned gives what a redirect's path says to who has the signature, and to
// others their own words back.
func (h *haunted) serveSigned(w http.ResponseWriter, r *http.Request) {
	switch mode := strings.Trim(r.URL.Path, "/"); {
	case r.URL.RawQuery != h.signed || r.Header.Get("Authorization") != "":
		h.t.Errorf("redirected with query %q and Authorization %q", r.URL.RawQuery, r.Header.Get("Authorization"))
	case mode == "good":
		_, _ = w.Write(signedBlob)
	case mode == "reset":
		panic(http.ErrAbortHandler)
	case mode == "wrong":
		_, _ = io.WriteString(w, h.signed)
	case mode == "again":
		http.Redirect(w, r, "http://"+h.cdn.Listener.Addr().String()+"/again?"+h.signed, http.StatusFound)
	default:
		echo(w, r, http.StatusForbidden)
	}
}

// signedBlob is what redirects lead to.
var signedBlob = bytes.Repeat([]byte("blob"), 30_000)

// echo is an error that repeats all that it was asked with, everywhere.
func echo(w http.ResponseWriter, r *http.Request, status int) {
	all := fmt.Sprintf("%s %v", r.URL, r.Header["Authorization"])
	w.Header().Set("Www-Authenticate", `Bearer realm="http://user:`+url.QueryEscape(all)+`@127.0.0.1:1/token"`)
	w.Header().Set("X-Echo", all)
	w.Header().Set("Location", "/?"+url.QueryEscape(all))
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%[1]q,"detail":%[1]q}],"token":5,"details":%[1]q}`, all)
}

func echoing(status int) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { echo(w, r, status) })
	}
}

// ask keeps all of an answer but what was asked for. It returns the status.
func (h *haunted) ask(target string, header ...string) int {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Error(err)
		return 0
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if header == nil {
		header = []string{"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(h.user+":"+h.pass))}
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n\r\n", target, strings.Join(header, "\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		h.t.Errorf("GET %s: %v", target, err)
		return 0
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Fprintf(&h.answers, "%s %v %v\n%s\n", resp.Status, resp.Header, err, body)
	return resp.StatusCode
}
