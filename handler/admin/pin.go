package admin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/handler/errcode"
	"larder/manifestcache"
)

// pinned is what is to be said of a reference and whether it is pinned.
type pinned struct {
	Reference string        `json:"reference"`
	Pinned    bool          `json:"pinned"`
	ByHand    bool          `json:"byHand"`
	BySetting bool          `json:"bySetting"`        // LARDER_PIN
	Digest    digest.Digest `json:"digest,omitempty"` // what it means, if that is here
	Total     int64         `json:"total"`            // bytes of that which are here
	Missing   int           `json:"missing"`          // blobs of it that are not
}

// allPins is what is pinned and what that takes.
type allPins struct {
	Pins      []pinned `json:"pins"` // by hand
	Settings  []string `json:"settings"`
	Manifests int64    `json:"manifests"` // of all pins
	Blobs     int64    `json:"blobs"`
	Bytes     int64    `json:"bytes"`
	MaxBytes  int64    `json:"maxBytes"` // of blobs that may be kept; 0: no limit
}

// Pin pins an image by hand, or takes that back. A reference without a tag means
// latest.
func (c *Control) Pin(ctx context.Context, reference string, pin bool) error {
	t, err := c.pinTarget(reference)
	if err != nil {
		return err
	}
	if pin {
		return c.addPin(ctx, t)
	}
	return c.removePin(ctx, t)
}

// pinTarget reads what is to be pinned.
func (c *Control) pinTarget(reference string) (target, error) {
	t, err := c.parse(reference)
	switch {
	case err != nil:
		return t, err
	case t.repository == "":
		return t, bad(errcode.NameInvalid, "a digest alone is not pinned: say of which repository, as in docker.io/library/alpine@%s", t.digest)
	case t.tag != "" && t.digest != "":
		return t, bad(errcode.NameInvalid, "name a tag or a digest, not both")
	case t.tag == "" && t.digest == "":
		t.tag = "latest"
	}
	return t, nil
}

// reference is a tag or a digest.
func (t target) reference() string { return t.tag + string(t.digest) }

func (c *Control) addPin(ctx context.Context, t target) error {
	if t.upstream == nil {
		return bad(errcode.NameUnknown, "its registry is not in LARDER_UPSTREAMS: nobody can pull it")
	}
	err := c.Manifests.Pin(ctx, t.repository, t.reference())
	if errors.Is(err, manifestcache.ErrTooManyPins) {
		return &errcode.Error{Status: http.StatusConflict, Code: errcode.Unsupported, Message: "too many pins; see LARDER_PIN, which takes patterns"}
	}
	return pinError(err)
}

// pinError is what who asks is told of a disk that has not taken a change.
func pinError(err error) error {
	if err == nil {
		return nil
	}
	return &errcode.Error{Status: http.StatusInternalServerError, Code: errcode.Unknown, Message: "not recorded on disk, and so not changed; larder's log says why", Err: err}
}

func (c *Control) removePin(ctx context.Context, t target) error {
	byHand, bySetting := c.Manifests.Pinned(t.repository, t.reference())
	if bySetting {
		return &errcode.Error{Status: http.StatusConflict, Code: errcode.Denied, Message: "LARDER_PIN pins it"}
	}
	if !byHand {
		return absent(errcode.NameUnknown, "not pinned")
	}
	return pinError(c.Manifests.Unpin(ctx, t.repository, t.reference()))
}

// pin answers PUT /pin/<reference>.
func (c *Control) pin(r *http.Request) (*reply, error) { return c.change(r, true) }

// unpin answers DELETE /pin/<reference>.
func (c *Control) unpin(r *http.Request) (*reply, error) { return c.change(r, false) }

func (c *Control) change(r *http.Request, pin bool) (*reply, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	if err := c.Pin(r.Context(), r.PathValue("reference"), pin); err != nil {
		return nil, err
	}
	c.Logger.Info("pins changed, as an operator wants", zap.String("request", r.Method+" "+r.URL.Path), zap.String("client", r.RemoteAddr))
	return c.showPin(r)
}

// showPin answers GET /pin/<reference>.
func (c *Control) showPin(r *http.Request) (*reply, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	t, err := c.pinTarget(r.PathValue("reference"))
	if err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	return &reply{body: c.describePin(t.repository, t.reference())}, nil
}

func (c *Control) describePin(repository, reference string) pinned {
	t := target{repository: repository, tag: reference}
	p := pinned{Reference: repository + ":" + reference}
	if strings.Contains(reference, ":") {
		t.tag, t.digest = "", digest.Digest(reference)
		p.Reference = repository + "@" + reference
	}
	p.ByHand, p.BySetting = c.Manifests.Pinned(repository, reference)
	p.Pinned = p.ByHand || p.BySetting
	img, ok := c.image(t)
	if !ok {
		return p
	}
	m := c.measure(img.Digest)
	p.Digest, p.Total = img.Digest, m.total
	for _, b := range m.blobs {
		if !b.Whole {
			p.Missing++
		}
	}
	return p
}

// pins answers GET /pin.
func (c *Control) pins(r *http.Request) (*reply, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	blobs := c.Blobs.Stats()
	all := allPins{
		Pins: []pinned{}, Settings: append([]string{}, c.Pins...), Manifests: c.Manifests.Stats().Held,
		Blobs: blobs.Held, Bytes: blobs.HeldBytes, MaxBytes: blobs.MaxBytes,
	}
	for _, pin := range c.Manifests.Pins() {
		repository, reference, ok := strings.Cut(pin, "@")
		if i := strings.LastIndexByte(pin, ':'); !ok {
			repository, reference = pin[:i], pin[i+1:]
		}
		all.Pins = append(all.Pins, c.describePin(repository, reference))
	}
	return &reply{body: all}, nil
}
