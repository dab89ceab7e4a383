package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
)

const (
	// wellKnown is an image of a few KiB.
	wellKnown     = "docker.io/library/hello-world:latest"
	wellKnownHost = "docker.io"

	maxManifest = 8 << 20  // as larder takes
	maxBlob     = 64 << 20 // a pull that goes on for longer shows nothing new
)

// errSignIn says that who asks has no password.
var errSignIn = errors.New("clients must sign in")

// reference is what to pull: a repository, and a tag or a digest of it. The
// repository is nil if nothing is known.
func (cfg Config) reference() (r *upstream.Repository, reference string) {
	s := cfg.Reference
	if s == "" {
		if !slices.ContainsFunc(cfg.Upstreams.Registries(), func(r upstream.Registry) bool { return r.Host == wellKnownHost }) {
			return nil, ""
		}
		s = wellKnown
	}
	name, tag, d, err := upstream.SplitReference(s)
	if err != nil {
		return nil, ""
	}
	if r, err = cfg.Upstreams.Repository("", name); err != nil {
		return nil, ""
	}
	return r, cmp.Or(string(d), tag, "latest")
}

// pull has larder give an image's manifest and one blob of it, as a client would.
func (cfg Config) pull(ctx context.Context, r *upstream.Repository, reference string) []Check {
	c := Check{Name: "pull through larder", Status: Skipped}
	switch {
	case cfg.Pull == "":
		c.Detail = cfg.NoPull
	case r == nil:
		c.Detail = "no image is known"
		c.Do = "Set LARDER_DOCTOR_REFERENCE to an image that larder may pull, as in ghcr.io/org/app:1."
	default:
		ctx, cancel := context.WithTimeout(ctx, pullTimeout)
		defer cancel()
		cfg.tryPull(ctx, &c, r, reference)
	}
	return []Check{c}
}

func (cfg Config) tryPull(ctx context.Context, c *Check, r *upstream.Repository, reference string) {
	p := &puller{http: newHTTP(), base: cfg.Pull + "/v2/" + strings.TrimPrefix(r.String(), r.Host()+"/") + "/", ns: r.Host()}
	size, err := p.pull(ctx, reference)
	c.Steps = p.steps
	name := r.String() + separator(reference) + reference
	switch {
	case err == nil:
		c.Status, c.Detail = OK, fmt.Sprintf("%s: its manifest (%s) and a blob of %s, whose digest is right (%s)", name, p.outcomes[0], human(size), p.outcomes[len(p.outcomes)-1])
	case errors.Is(err, errSignIn):
		c.Detail = "not tried: clients must sign in, and this is none"
	default:
		c.Status, c.Detail = Failed, fmt.Sprintf("%s: %v", name, err)
		c.Do = "See what is said of its upstream here, ask /why?ref=" + name + " on the admin listener, and set LARDER_DOCTOR_REFERENCE, where larder runs, if there is no such image."
	}
}

func separator(reference string) string {
	if digest.Digest(reference).Validate() == nil {
		return "@"
	}
	return ":"
}

// puller is a client of larder.
type puller struct {
	http     *http.Client
	base, ns string
	steps    []Step
	outcomes []string // what Cache-Status said
}

// pull gets a manifest, for an index that of one image in it, and the least of its
// blobs.
func (p *puller) pull(ctx context.Context, reference string) (size int64, err error) {
	var m struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}
	if err := p.manifest(ctx, "manifest", reference, &m); err != nil {
		return 0, err
	}
	if len(m.Manifests) > 0 {
		i := slices.IndexFunc(m.Manifests, func(d ocispec.Descriptor) bool {
			return d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH
		})
		if err := p.manifest(ctx, "image in the index", string(m.Manifests[max(i, 0)].Digest), &m); err != nil {
			return 0, err
		}
	}
	least := m.Config
	for _, layer := range m.Layers {
		if layer.Size < least.Size || least.Digest == "" {
			least = layer
		}
	}
	switch err := least.Digest.Validate(); {
	case err != nil:
		return 0, fmt.Errorf("the manifest names no blob: %w", err)
	case least.Size > maxBlob:
		return 0, fmt.Errorf("its least blob has %s: take a smaller image", human(least.Size))
	}
	verifier := least.Digest.Verifier()
	size, err = p.get(ctx, "blob", "blobs/"+string(least.Digest), least.Size, verifier)
	if err == nil && !verifier.Verified() {
		err = errors.New("the blob has another digest")
	}
	return size, err
}

func (p *puller) manifest(ctx context.Context, step, reference string, m any) error {
	var body bytes.Buffer
	if _, err := p.get(ctx, step, "manifests/"+reference, maxManifest, &body); err != nil {
		return err
	}
	if err := json.Unmarshal(body.Bytes(), m); err != nil {
		return fmt.Errorf("%s: not JSON", step)
	}
	return nil
}

// get reads what larder answers, a limited part of it.
func (p *puller) get(ctx context.Context, name, path string, limit int64, into io.Writer) (int64, error) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path+"?ns="+url.QueryEscape(p.ns), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "*/*")
	res, err := p.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, withoutURL(err))
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return 0, errSignIn
	default:
		return 0, fmt.Errorf("%s: larder answered %d %s", name, res.StatusCode, errorCode(res.Body))
	}
	n, err := io.Copy(into, io.LimitReader(res.Body, limit+1))
	switch {
	case err != nil:
		return n, fmt.Errorf("%s: %w", name, err)
	case n > limit:
		return n, fmt.Errorf("%s: it is larger than it should be", name)
	}
	p.steps = append(p.steps, step(name, time.Since(began)))
	status := res.Header.Get("Cache-Status") // larder's own is last
	outcome := status[strings.LastIndex(status, "=")+1:]
	p.outcomes = append(p.outcomes, outcome)
	return n, nil
}

// errorCode is what larder calls an error.
func errorCode(body io.Reader) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	data, _ := io.ReadAll(io.LimitReader(body, 64<<10)) // without a code, the status has to do
	if json.Unmarshal(data, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	return doc.Errors[0].Code + ": " + doc.Errors[0].Message
}
