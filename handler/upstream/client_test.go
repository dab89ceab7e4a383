package upstream_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

const (
	host     = "registry.example"
	repoName = "team/app"

	// secret is part of every password, token and signature that a test plants. No error may
	// hold it, nor a query: see wantError.
	secret   = "hunter2"
	password = secret + "-password"
)

var (
	ctx      = context.Background()
	blobData = []byte("0123456789abcdefghijklmnopqrstuvwxyz")
	blobSize = int64(len(blobData))
	manifest = []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)
)

// keychain gives everybody one user's credentials, which may change.
type keychain struct {
	mu   sync.Mutex
	auth authn.AuthConfig
}

func user(password string) *keychain {
	k := new(keychain)
	k.set(authn.AuthConfig{Username: "user", Password: password})
	return k
}

func (k *keychain) set(auth authn.AuthConfig) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.auth = auth
}

// Resolve implements upstream.Keychain.
func (k *keychain) Resolve(context.Context, string) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.auth == (authn.AuthConfig{}) {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(k.auth), nil
}

// newClient makes a client of one registry that is closed with the test.
func newClient(tb testing.TB, url string, cfg upstream.Config) *upstream.Client {
	tb.Helper()
	list, err := upstream.ParseList(host + "=" + url)
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Registries = list
	c, err := upstream.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func repository(tb testing.TB, c *upstream.Client) *upstream.Repository {
	tb.Helper()
	r, err := c.Repository("", repoName)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// fill puts a blob and a manifest with the tag v1 into a registry.
func fill(reg *upstreamtest.Registry) (blob, tagged digest.Digest) {
	reg.EnableReferrers()
	return reg.AddBlob(repoName, blobData), reg.AddManifest(repoName, "v1", ocispec.MediaTypeImageManifest, manifest)
}

// start is a registry with something in it and a client of it.
func start(tb testing.TB, cfg upstream.Config) (*upstreamtest.Registry, *upstream.Repository) {
	tb.Helper()
	reg := upstreamtest.New(tb)
	fill(reg)
	return reg, repository(tb, newClient(tb, reg.URL, cfg))
}

// startPipe is start for a bubble.
func startPipe(tb testing.TB, cfg upstream.Config) (*upstreamtest.Registry, *upstream.Repository) {
	tb.Helper()
	reg := upstreamtest.NewPipe(tb)
	fill(reg)
	cfg.Transport = reg.Transport()
	return reg, repository(tb, newClient(tb, reg.URL, cfg))
}

// network is a transport to whom each "host:port" is the registry given, and nobody else is
// there. Its https is plain, too: what counts here is who is asked, and for what.
func network(tb testing.TB, hosts map[string]*upstreamtest.Registry) *http.Transport {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if reg := hosts[addr]; reg != nil {
			return reg.DialContext(ctx, network, addr)
		}
		tb.Errorf("%s was dialled", addr)
		return nil, errors.New("nobody there")
	}
	t := &http.Transport{DialContext: dial, DialTLSContext: dial, DisableCompression: true}
	tb.Cleanup(t.CloseIdleConnections)
	return t
}

// pings counts the handshakes that reg has seen.
func pings(reg *upstreamtest.Registry) int {
	n := 0
	for _, r := range reg.Requests() {
		if r.Path == "/v2/" {
			n++
		}
	}
	return n
}

// bearer makes reg ask for tokens from this realm, which are its own ones.
func bearer(reg *upstreamtest.Registry, user, realm string) {
	reg.RequireBearer(user, password, 0)
	service := strings.TrimPrefix(reg.URL, "http://")
	reg.Fault(upstreamtest.Match{}, onPing(challenge(`Bearer realm="`+realm+`",service="`+service+`"`)))
}

// onPing is f for the ping only: a Match would fit all that is below it, too.
func onPing(f upstreamtest.Fault) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		broken := f(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v2/" {
				broken.ServeHTTP(w, req)
				return
			}
			next.ServeHTTP(w, req)
		})
	}
}

// challenge asks those for credentials who show none.
func challenge(header string) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		refuse := upstreamtest.Status(http.StatusUnauthorized, http.Header{"Www-Authenticate": {header}})(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") == "" {
				refuse.ServeHTTP(w, req)
				return
			}
			next.ServeHTTP(w, req)
		})
	}
}

// answer answers 200 with this body.
func answer(body string) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
	}
}

// questions are all that can be asked of a repository that fill has filled.
var questions = map[string]func(ctx context.Context, r *upstream.Repository) error{
	"head manifest": func(ctx context.Context, r *upstream.Repository) error {
		_, err := r.HeadManifest(ctx, "v1")
		return err
	},
	"get manifest": func(ctx context.Context, r *upstream.Repository) error {
		_, _, err := r.GetManifest(ctx, "v1")
		return err
	},
	"head blob": func(ctx context.Context, r *upstream.Repository) error {
		_, err := r.HeadBlob(ctx, digest.FromBytes(blobData))
		return err
	},
	"get blob": func(ctx context.Context, r *upstream.Repository) error {
		body, _, err := r.OpenBlob(ctx, digest.FromBytes(blobData), 0, -1)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(io.Discard, body)
		return err
	},
	"list tags": func(ctx context.Context, r *upstream.Repository) error {
		_, err := r.Tags(ctx, nil)
		return err
	},
	"list referrers": func(ctx context.Context, r *upstream.Repository) error {
		_, err := r.Referrers(ctx, digest.FromBytes(manifest), nil)
		return err
	},
}

// page is a part of the path of each question.
func page(question string) string {
	return map[string]string{
		"head manifest": "/manifests/", "get manifest": "/manifests/",
		"head blob": "/blobs/", "get blob": "/blobs/",
		"list tags": "/tags/", "list referrers": "/referrers/",
	}[question]
}

func ask(t *testing.T, r *upstream.Repository, question string) {
	t.Helper()
	if err := questions[question](t.Context(), r); err != nil {
		t.Errorf("%s: %v", question, err)
	}
}

func askAll(t *testing.T, r *upstream.Repository) {
	t.Helper()
	for question := range questions {
		ask(t, r, question)
	}
}

// together asks the same by n callers at once and wants an answer for each.
func together(t *testing.T, r *upstream.Repository, n int, question string) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { ask(t, r, question) })
	}
	wg.Wait()
}

// wantError is that err is an *upstream.Error with this status, and gives nothing away.
func wantError(t *testing.T, err error, status int) *upstream.Error {
	t.Helper()
	e, ok := errors.AsType[*upstream.Error](err)
	if !ok {
		t.Fatalf("got error %v (%T), want an *upstream.Error", err, err)
	}
	if e.Status != status {
		t.Errorf("got status %d, want %d (%v)", e.Status, status, err)
	}
	if e.Op == "" || e.Repository != host+"/"+repoName {
		t.Errorf("got an error of %q, %q", e.Op, e.Repository)
	}
	wantDiscreet(t, err)
	return e
}

func wantDiscreet(t *testing.T, err error) {
	t.Helper()
	for ; err != nil; err = errors.Unwrap(err) {
		text := strings.ToLower(err.Error())
		for _, bad := range []string{secret, "://", "?", "sig=", "scope="} {
			if strings.Contains(text, bad) {
				t.Errorf("error gives %q away: %s", bad, text[:min(len(text), 300)])
			}
		}
	}
}

func wantUnreachable(t *testing.T, err error, want bool) {
	t.Helper()
	if got := upstream.Unreachable(err); got != want {
		t.Errorf("Unreachable: got %v, want %v (%v)", got, want, err)
	}
}

func wantRefused(t *testing.T, err error, want bool) {
	t.Helper()
	if got := upstream.Refused(err); got != want {
		t.Errorf("Refused: got %v, want %v (%v)", got, want, err)
	}
}

func TestNewContactsNobody(t *testing.T) {
	if _, err := upstream.New(upstream.Config{}); err == nil {
		t.Error("a client of no registry")
	}
	reg := upstreamtest.New(t)
	c := newClient(t, reg.URL, upstream.Config{Keychain: user(password)})
	repository(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("got %d requests, want none", n)
	}
	if got := c.Registries(); len(got) != 1 || got[0].Host != host {
		t.Errorf("got registries %v", got)
	}
}

func TestStats(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	c := newClient(t, reg.URL, upstream.Config{})
	ask(t, repository(t, c), "get manifest")
	reg.Fault(upstreamtest.Match{Path: "/tags/"}, upstreamtest.Status(http.StatusTeapot, nil))
	questions["list tags"](t.Context(), repository(t, c))
	s := c.Stats()
	if s.Sessions != 1 || s.Answers[host][200] != 2 || s.Answers[host][418] != 1 {
		t.Errorf("got %+v, want one session, two 200 and a 418", s)
	}
	reg.Stop()
	questions["list tags"](t.Context(), repository(t, c))
	if n := c.Stats().Answers[host][0]; cmp.Compare(n, 1) < 0 {
		t.Errorf("got %d missing answers, want some", n)
	}
	if s.Answers[host][0] != 0 {
		t.Error("Stats are not a copy")
	}
}
