package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"larder/handler/admin/doctor"
)

// askDoctor is GET /doctor.
func (l *larder) askDoctor(t *testing.T, query string) (*http.Response, string) {
	t.Helper()
	resp, body := (&larder{addr: l.admin(t)}).get(t, "/doctor"+query)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/doctor: %s %s", resp.Status, body)
	}
	return resp, string(body)
}

func TestDoctorOfARunningLarder(t *testing.T) {
	t.Parallel()
	hub := newBasicUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	l := startLarder(t, []*testUpstream{hub}, "LARDER_ADMIN_ADDR="+freeAddr(t),
		"LARDER_USERNAME="+username, "LARDER_PASSWORD="+password, "LARDER_DOCTOR_REFERENCE="+hubName+":1")
	resp, text := l.askDoctor(t, "")
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || strings.Contains(text, "failed ") {
		t.Errorf("got %s:\n%s", resp.Header, text)
	}
	for _, want := range []string{
		"ok       upstream docker.io: http://" + hub.addr + " answers, and takes larder's credentials", "sign in",
		"ok       listener registry", "ok       listener admin", "ok       cache directory", "cache disk: ", "/s, with fsync", "write 16 MiB", // how fast is the machine's business
		"ok       pull through larder: " + hubName + ":1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	var stdout, stderr bytes.Buffer
	if err := examineAll(t.Context(), l.environ, &stdout, &stderr); err != nil || stderr.Len() > 0 || !strings.Contains(stdout.String(), "ok       pull through larder") {
		t.Errorf("larder doctor: %v\n%s%s", err, &stdout, &stderr)
	}

	hub.stop()
	_, answer := l.askDoctor(t, "?format=json")
	var report doctor.Report
	if err := json.Unmarshal([]byte(answer), &report); err != nil || report.OK {
		t.Errorf("with the upstream stopped: %v, %v", err, report)
	}
	stdout.Reset()
	err := examineAll(t.Context(), l.environ, &stdout, &stderr)
	if !errors.Is(err, errUnwell) || exitStatus(err) != 1 || !strings.Contains(stdout.String(), "failed   upstream docker.io") ||
		!strings.Contains(stdout.String(), "(stale)") { // a pull of what is cached goes on
		t.Errorf("larder doctor with the upstream stopped: %v\n%s", err, &stdout)
	}
	if all := text + stdout.String() + answer; strings.Contains(all, password) {
		t.Errorf("the password is in:\n%s", all)
	}
}

func TestDoctorIsNotForOtherPages(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil, "LARDER_ADMIN_ADDR="+freeAddr(t))
	for site, want := range map[string]int{"cross-site": http.StatusForbidden, "same-site": http.StatusForbidden, "none": http.StatusOK, "same-origin": http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.admin(t)+"/doctor", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Sec-Fetch-Site", site)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %s, want %d", site, resp.Status, want)
		}
	}
}

// Without a setting, an image that is cached is pulled.
func TestDoctorTakesACachedImage(t *testing.T) {
	t.Parallel()
	ghcr := newUpstream(t, "ghcr.io")
	ghcr.push(t, "larder-test/app:v7", layeredImage(t, 1))
	l := startLarder(t, []*testUpstream{ghcr}, "LARDER_ADMIN_ADDR="+freeAddr(t))
	if _, text := l.askDoctor(t, ""); !strings.Contains(text, "skipped  pull through larder: no image is known") {
		t.Errorf("of an empty cache:\n%s", text)
	}
	if err := craneClient(l.addr).pull(t, "ghcr.io/larder-test/app:v7"); err != nil {
		t.Fatal(err)
	}
	if _, text := l.askDoctor(t, ""); !strings.Contains(text, "ok       pull through larder: ghcr.io/larder-test/app:v7") {
		t.Errorf("got:\n%s", text)
	}
}

// Before larder is started for the first time, its doctor has a larder of its own.
func TestDoctorWithoutARunningLarder(t *testing.T) {
	emptyAfter(t)
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	dir := filepath.Join(t.TempDir(), "cache")
	environ := []string{
		"LARDER_ADDR=" + freeAddr(t), "LARDER_ADMIN_ADDR=" + freeAddr(t), "LARDER_CACHE_DIR=" + dir,
		"LARDER_UPSTREAMS=docker.io=http://" + hub.addr, "LARDER_HTPASSWD=/nonexistent", "LARDER_DOCTOR_REFERENCE=" + hubName + ":1",
	}
	var stdout, stderr bytes.Buffer
	err := examineAll(t.Context(), environ, &stdout, &stderr)
	if err != nil || !strings.Contains(stdout.String(), "ok       pull through larder") || !strings.Contains(stdout.String(), "skipped  listener registry: larder is not running") {
		t.Errorf("got %v:\n%s%s", err, &stdout, &stderr)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cache directory was made: %v", err)
	}
	hub.stop()
	stdout.Reset()
	if err := examineAll(t.Context(), environ, &stdout, &stderr); !errors.Is(err, errUnwell) || !strings.Contains(stdout.String(), "failed   pull through larder") {
		t.Errorf("with the upstream stopped: %v\n%s", err, &stdout)
	}
	if err := examineAll(t.Context(), append(environ, "LARDER_TAG_TTL=x"), &stdout, &stderr); exitStatus(err) != 2 {
		t.Errorf("of a wrong configuration: %v", err)
	}
}

// Who keeps clients out is well all the same: a doctor is no client.
func TestDoctorOfALarderThatKeepsClientsOut(t *testing.T) {
	t.Parallel()
	t.Run("password", func(t *testing.T) {
		t.Parallel()
		l := startLocked(t, "LARDER_ADMIN_ADDR="+freeAddr(t))
		if _, text := l.askDoctor(t, ""); !strings.Contains(text, "ok       listener registry") || strings.Contains(text, "failed   pull") {
			t.Errorf("got:\n%s", text)
		}
	})
	t.Run("token", func(t *testing.T) {
		t.Parallel()
		hub := newUpstream(t, "docker.io")
		l := startWithUsers(t, []*testUpstream{hub}, "LARDER_ADMIN_ADDR="+freeAddr(t), "LARDER_AUTH=token")
		if _, text := l.askDoctor(t, ""); !strings.Contains(text, "ok       listener registry") || !strings.Contains(text, "skipped  pull through larder: not tried: clients must sign in") {
			t.Errorf("got:\n%s", text)
		}
	})
	t.Run("certificate", func(t *testing.T) {
		t.Parallel()
		l, _ := startTLS(t, newAuthority(t, "ca"), "LARDER_ADMIN_ADDR="+freeAddr(t))
		if _, text := l.askDoctor(t, ""); !strings.Contains(text, "ok       listener registry") || !strings.Contains(text, "skipped  pull through larder: not tried: clients must show a certificate") {
			t.Errorf("got:\n%s", text)
		}
	})
}
