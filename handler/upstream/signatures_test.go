package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestSignatures(t *testing.T) {
	for _, scheme := range []string{"open", "basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			reg, r := start(t, upstream.Config{Keychain: user(password)})
			switch scheme {
			case "basic":
				reg.RequireBasic("user", password)
			case "bearer":
				reg.RequireBearer("user", password, 0)
			}
			reg.EnableSignatures()
			d := digest.FromBytes(manifest)
			reg.AddSignature(repoName, d, []byte("signed"))
			l, err := r.Signatures(t.Context(), d)
			if err != nil || !strings.Contains(string(l.Body), `"content":"c2lnbmVk"`) || l.ContentType != "application/json" {
				t.Errorf("got %+v, %v", l, err)
			}
			_, err = r.Signatures(t.Context(), digest.FromBytes(blobData))
			wantError(t, err, http.StatusNotFound)
		})
	}
}

// Nobody is asked for what he has not announced.
func TestNoSignaturesAnnounced(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	_, err := r.Signatures(t.Context(), digest.FromBytes(manifest))
	wantError(t, err, http.StatusNotFound)
	wantRefused(t, err, true)
	if n := reg.Count("", "/extensions/"); n != 0 {
		t.Errorf("asked %d times", n)
	}
	reg.Fault(upstreamtest.Match{}, upstreamtest.ResetConnection())
	_, err = repository(t, newClient(t, reg.URL, upstream.Config{})).Signatures(t.Context(), digest.FromBytes(manifest))
	wantUnreachable(t, err, true)
}

func TestAnnouncesSignatures(t *testing.T) {
	with, without := upstreamtest.New(t), upstreamtest.New(t)
	with.EnableSignatures()
	tests := map[string]struct {
		list string
		want bool
	}{
		"one with":              {host + "=" + with.URL, true},
		"one without":           {host + "=" + without.URL, false},
		"one with a mirror":     {host + "=" + without.URL + "|" + with.URL, true},
		"two, the default with": {host + "=" + with.URL + ",other.example=" + without.URL, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			list, err := upstream.ParseList(test.list)
			if err != nil {
				t.Fatal(err)
			}
			c, err := upstream.New(upstream.Config{Registries: list})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if c.AnnouncesSignatures() {
				t.Error("announces what nobody has")
			}
			_, err = repository(t, c).Tags(t.Context(), nil)
			wantError(t, err, http.StatusNotFound)
			if got := c.AnnouncesSignatures(); got != test.want {
				t.Errorf("announces: %v, want %v", got, test.want)
			}
		})
	}
}
