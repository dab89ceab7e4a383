package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// signaturesHeader is how a registry announces, where it is pinged, that it has
	// signatures at extensionPath. Both are OpenShift's, and containers/image's.
	signaturesHeader = "X-Registry-Supports-Signatures"
	extensionPath    = "/extensions/v2/"
)

// Listing is a page of tags, referrers or signatures, as upstream sent it. A large
// one counts as in memory until the context ends that it was asked for with; see
// ErrBusy.
type Listing struct {
	Body        []byte
	ContentType string
	Filters     string     // OCI-Filters-Applied
	Next        url.Values // the query that gets the next page; nil: this was the last

	// What a parent has said of it: see Repository.Relayed.
	Relayed string
	Age     time.Duration
	Stale   bool
}

// Tags gets a page of the tags; query has n and last.
func (r *Repository) Tags(ctx context.Context, query url.Values) (*Listing, error) {
	return r.list(ctx, "list tags", "tags", func(ctx context.Context, s *session, op string) (*http.Response, error) {
		return r.sendForList(ctx, s, r.path("tags/list"), query, "application/json")
	})
}

// Referrers gets a page of the manifests whose subject is d; query has
// artifactType.
func (r *Repository) Referrers(ctx context.Context, d digest.Digest, query url.Values) (*Listing, error) {
	return r.list(ctx, "list referrers", "manifests", func(ctx context.Context, s *session, op string) (*http.Response, error) {
		return r.sendForList(ctx, s, r.path("referrers/"+d.String()), query, ocispec.MediaTypeImageIndex)
	})
}

// Signatures gets the signatures of the manifest d that upstream keeps beside it.
// It is not asked, and the error is a 404, if it has not announced any.
func (r *Repository) Signatures(ctx context.Context, d digest.Digest) (*Listing, error) {
	return r.list(ctx, "list signatures", "signatures", func(ctx context.Context, s *session, op string) (*http.Response, error) {
		if !s.place.signatures.Load() {
			return nil, &Error{Op: op, Repository: r.String(), Status: http.StatusNotFound}
		}
		return r.sendForList(ctx, s, extensionPath+r.name+"/signatures/"+d.String(), nil, "application/json")
	})
}

func (r *Repository) sendForList(ctx context.Context, s *session, path string, query url.Values, accept string) (*http.Response, error) {
	return r.send(ctx, s, http.MethodGet, path, query, http.Header{bodyHeader: {bodyListing}, "Accept": {accept}})
}

// list gets a list of things. An answer without them is none, whatever its status:
// no digest tells it from the page of somebody in between.
func (r *Repository) list(ctx context.Context, op, things string, send func(ctx context.Context, s *session, op string) (*http.Response, error)) (*Listing, error) {
	var l *Listing
	ctx = r.client.withRoom(ctx)
	r = r.Anew()
	err := r.ask(ctx, op, r.places(), func(ctx context.Context, s *session, _ *exchange) error {
		res, err := send(ctx, s, op)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := readDocument(res.Body, maxListing)
		if err != nil {
			return err
		}
		// Not a map: there may be any number of other fields.
		var doc struct{ Tags, Manifests, Signatures present }
		if err := json.Unmarshal(body, &doc); err != nil || !map[string]present{"tags": doc.Tags, "manifests": doc.Manifests, "signatures": doc.Signatures}[things] {
			return fmt.Errorf("%w: no list of %s", errDocument, things)
		}
		l = &Listing{
			Body:        body,
			ContentType: res.Header.Get("Content-Type"),
			Filters:     res.Header.Get("OCI-Filters-Applied"),
			Next:        nextPage(res.Header.Values("Link")),
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.Relayed, l.Age, l.Stale = r.Relayed()
	return l, nil
}

// present is whether a field is there, with whatever in it.
type present bool

// UnmarshalJSON implements json.Unmarshaler.
func (p *present) UnmarshalJSON([]byte) error {
	*p = true
	return nil
}

// AnnouncesSignatures reports whether larder should say of itself what a registry
// says that has signatures: if there is one registry, and it does. Clients ask
// before they name a repository, then take any answer but a list for an error, and
// look nowhere else, such as where a registry without this keeps its signatures.
func (c *Client) AnnouncesSignatures() bool {
	if len(c.cfg.Registries) > 1 {
		return false
	}
	for _, p := range c.places[c.cfg.Registries[0].Host] {
		if p.signatures.Load() {
			return true
		}
	}
	return false
}
