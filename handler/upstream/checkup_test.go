package upstream_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func names(c *upstream.Checkup) string {
	var list []string
	for _, s := range c.Steps {
		list = append(list, string(s.Name))
	}
	return strings.Join(list, ", ")
}

// Each trouble shows at the step where it is, and with nothing secret.
func TestCheckUp(t *testing.T) {
	gone := upstreamtest.New(t)
	gone.Stop()
	tests := map[string]struct {
		url      func(reg *upstreamtest.Registry) string // nil: its own
		prepare  func(reg *upstreamtest.Registry)
		keychain upstream.Keychain
		known    bool
		failed   upstream.StepName
		steps    string
		says     string
	}{
		"to anybody":           {steps: "connect, answer"},
		"a name":               {url: func(reg *upstreamtest.Registry) string { return strings.Replace(reg.URL, "127.0.0.1", "localhost", 1) }, steps: "resolve, connect, answer"},
		"an image of it":       {known: true, steps: "connect, answer, sign in"},
		"no such image":        {known: true, prepare: func(reg *upstreamtest.Registry) { reg.Delete(repoName, "v1") }, steps: "connect, answer, sign in"},
		"Basic":                {prepare: func(reg *upstreamtest.Registry) { reg.RequireBasic("user", password) }, keychain: user(password), steps: "connect, answer, sign in"},
		"Basic, wrong":         {prepare: func(reg *upstreamtest.Registry) { reg.RequireBasic("user", "x") }, keychain: user(password), failed: "sign in", steps: "connect, answer", says: "401"},
		"Basic, none":          {prepare: func(reg *upstreamtest.Registry) { reg.RequireBasic("user", "x") }, known: true, failed: "sign in", steps: "connect, answer", says: "401"},
		"Bearer":               {prepare: func(reg *upstreamtest.Registry) { reg.RequireBearer("user", password, 0) }, keychain: user(password), known: true, steps: "connect, answer, sign in"},
		"Bearer, wrong":        {prepare: func(reg *upstreamtest.Registry) { reg.RequireBearer("user", "x", 0) }, keychain: user(password), known: true, failed: "sign in", steps: "connect, answer", says: "authentication"},
		"no credentials to be": {keychain: refusing{}, failed: "credentials"},
		"nobody":               {url: func(*upstreamtest.Registry) string { return gone.URL }, failed: "connect", says: "refused"},
		"no such name":         {url: func(*upstreamtest.Registry) string { return "http://nowhere.invalid" }, failed: "resolve"},
		"no TLS there":         {url: func(reg *upstreamtest.Registry) string { return strings.Replace(reg.URL, "http", "https", 1) }, failed: "tls", steps: "connect"},
		"5xx":                  {prepare: fails(503), failed: "answer", steps: "connect, answer", says: "503"},
		"no registry":          {prepare: fails(404), failed: "answer", steps: "connect, answer", says: "404"},
		"429":                  {prepare: fails(429), failed: "answer", steps: "connect, answer", says: "429"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := upstreamtest.New(t)
			fill(reg)
			if test.prepare != nil {
				test.prepare(reg)
			}
			url := reg.URL
			if test.url != nil {
				url = test.url(reg)
			}
			c := newClient(t, url, upstream.Config{Keychain: test.keychain})
			var known *upstream.Repository
			if test.known {
				known = repository(t, c)
			}
			list := c.CheckUp(t.Context(), known, "v1")
			if len(list) != 1 || list[0].Host != host || list[0].URL != url {
				t.Fatalf("got %v", list)
			}
			got := list[0]
			if got.Failed != test.failed || (got.Err == nil) != (test.failed == "") || names(got) != test.steps {
				t.Errorf("failed at %q after %s (%v), want %q after %s", got.Failed, names(got), got.Err, test.failed, test.steps)
			}
			if got.Err != nil && (!strings.Contains(got.Err.Error(), test.says) || strings.Contains(got.Err.Error(), secret)) {
				t.Errorf("it says %v, want %s and no secret", got.Err, test.says)
			}
			if got.Credentials != (test.keychain != nil && test.failed != "credentials") {
				t.Errorf("credentials shown: %v", got.Credentials)
			}
		})
	}
}

// refusing is a keychain whose helper is broken.
type refusing struct{}

func (refusing) Resolve(context.Context, string) (authn.Authenticator, error) {
	return nil, context.DeadlineExceeded
}

func fails(status int) func(*upstreamtest.Registry) {
	return func(reg *upstreamtest.Registry) {
		reg.Fault(upstreamtest.Match{}, upstreamtest.Status(status, nil))
	}
}

// What a healthy registry says beside: its clock, and how much may still be asked.
func TestCheckUpReadsClockAndQuota(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	reg.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)))
	reg.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.SetHeader("RateLimit-Limit", "100;w=21600"), upstreamtest.SetHeader("RateLimit-Remaining", "42;w=21600"))
	c := newClient(t, reg.URL, upstream.Config{})
	got := c.CheckUp(t.Context(), repository(t, c), "v1")[0]
	if got.Err != nil || !got.Dated || (got.Skew+time.Hour).Abs() > 5*time.Second {
		t.Errorf("skew %v (%v), %v; want -1h", got.Skew, got.Dated, got.Err)
	}
	if got.Quota.Limit != 100 || got.Quota.Remaining != 42 {
		t.Errorf("quota %v, want 42 of 100", got.Quota)
	}
	if n := reg.Count("GET", "/manifests/"); n > 0 {
		t.Errorf("%d pulls were used up", n)
	}
}

// A registry that says nothing is waited for as long as the caller wants, and no
// other waits for it.
func TestCheckUpEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent, well := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
		silent.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		fill(well)
		list, err := upstream.ParseList("silent.example=http://silent.example,well.example=http://well.example|http://silent.example")
		if err != nil {
			t.Fatal(err)
		}
		c, err := upstream.New(upstream.Config{Registries: list, Transport: network(t, map[string]*upstreamtest.Registry{"silent.example:80": silent, "well.example:80": well})})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const patience = 5 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		began := time.Now()
		got := c.CheckUp(ctx, nil, "")
		if len(got) != 3 || got[0].Failed != upstream.StepAnswer || got[1].Failed != "" || got[2].Failed != upstream.StepAnswer {
			t.Errorf("got %v, %v, %v", got[0], got[1], got[2])
		}
		if took := time.Since(began); took != patience {
			t.Errorf("took %v, want %v", took, patience)
		}
	})
}

// Nobody is dialled who is not listed, wherever a registry points.
func TestCheckUpStaysAtListedRegistries(t *testing.T) {
	reg, foreign := upstreamtest.New(t), upstreamtest.New(t)
	reg.AddManifest(repoName, "v1", ocispec.MediaTypeImageManifest, manifest)
	reg.Fault(upstreamtest.Match{}, upstreamtest.Status(http.StatusUnauthorized, http.Header{
		"Www-Authenticate": {`Bearer realm="` + foreign.URL + `/token",service="x"`},
	}))
	var dialled []string
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled = append(dialled, addr)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	c := newClient(t, reg.URL, upstream.Config{Keychain: user(password), Transport: transport})
	got := c.CheckUp(t.Context(), repository(t, c), "v1")[0]
	if got.Failed != upstream.StepSignIn || len(foreign.Requests()) > 0 {
		t.Errorf("failed at %q (%v); the foreign server saw %v", got.Failed, got.Err, foreign.Requests())
	}
	for _, addr := range dialled {
		if "http://"+addr != reg.URL {
			t.Errorf("dialled %s", addr)
		}
	}
}
