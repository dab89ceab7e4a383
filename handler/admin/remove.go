package admin

import (
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/manifestcache"
)

// never is later than anything was used.
var never = time.Unix(1<<40, 0)

// removal is what went, or would go.
type removal struct {
	DryRun bool   `json:"dryRun"`
	Bytes  int64  `json:"bytes"` // of manifests and blobs
	Count  counts `json:"count"`

	// The first of each kind.
	Tags      []removedTag `json:"tags"`
	Manifests []removed    `json:"manifests"`
	Blobs     []removed    `json:"blobs"`

	Busy   int `json:"busy"`   // blobs that stay, as they are being fetched or verified
	Failed int `json:"failed"` // files that can't be removed; the log says why
}

type counts struct {
	Tags      int `json:"tags"`
	Rights    int `json:"rights"` // of repositories to manifests
	Manifests int `json:"manifests"`
	Blobs     int `json:"blobs"`
}

type removedTag struct {
	Repository string        `json:"repository"`
	Tag        string        `json:"tag"`
	Digest     digest.Digest `json:"digest"`
}

type removed struct {
	Digest digest.Digest `json:"digest"`
	Bytes  int64         `json:"bytes"`
}

// remove answers DELETE /cache/<reference> and DELETE /cache/<digest>.
func (c *Control) remove(r *http.Request) (*reply, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	return c.removeNamed(r, r.PathValue("reference"))
}

func (c *Control) removeNamed(r *http.Request, reference string) (*reply, error) {
	t, err := c.parse(reference)
	if err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	var plan *manifestcache.Plan
	var blob []digest.Digest
	switch {
	case t.tag != "" && t.digest != "":
		return nil, bad(errcode.NameInvalid, "name a tag or a digest, not both")
	case t.repository == "":
		plan, blob = c.Manifests.PlanDigest(t.digest), []digest.Digest{t.digest} // it may be there as both
	case t.digest != "":
		plan = c.Manifests.PlanManifest(t.repository, t.digest)
	case t.tag != "":
		plan = c.Manifests.PlanTag(t.repository, t.tag)
	default:
		plan = c.Manifests.PlanRepository(t.repository)
	}
	if plan.Empty() {
		return c.removeBlob(r, reference, t)
	}
	if pin := c.Manifests.PinnedIn(plan); pin != "" {
		return nil, pinnedError(pin)
	}
	return c.carryOut(r, reference, plan, blob, isHeld), nil
}

// isHeld is what stays when an image is removed that has it, too.
func isHeld(b blobcache.Item) bool { return b.Held }

// pinnedError says what to do first.
func pinnedError(what string) error {
	return &errcode.Error{
		Status: http.StatusConflict, Code: errcode.Denied,
		Message: what + " is pinned, or part of what is: unpin that first, with DELETE /pin/… or in LARDER_PIN",
	}
}

// removeBlob removes a blob for all, as its bytes are everybody's.
func (c *Control) removeBlob(r *http.Request, reference string, t target) (*reply, error) {
	if t.digest == "" || t.repository != "" && c.Manifests.Refers(t.repository, t.digest) == manifestcache.Unknown {
		return nil, absent(errcode.NameUnknown, "not in the cache")
	}
	switch b := c.Blobs.Items([]digest.Digest{t.digest})[0]; {
	case b.Filling:
		return nil, &errcode.Error{
			Status: http.StatusConflict, Code: errcode.Unavailable, Message: "the blob is being fetched or verified; try again",
			Header: http.Header{"Retry-After": {"5"}},
		}
	case !b.Whole && b.Size == 0:
		return nil, absent(errcode.BlobUnknown, "not in the cache")
	case b.Held:
		return nil, pinnedError(string(t.digest))
	}
	return c.carryOut(r, reference, new(manifestcache.Plan), []digest.Digest{t.digest}, isHeld), nil
}

// carryOut does what was planned and removes these blobs, and those that no
// manifest names then and that do not stay. reference is what was named.
func (c *Control) carryOut(r *http.Request, reference string, plan *manifestcache.Plan, these []digest.Digest, stays func(b blobcache.Item) bool) *reply {
	went, failed := c.Manifests.Remove(plan)
	a := answerTo(went)
	a.Failed = failed
	a.take(these, c.Blobs.Remove)
	a.take(c.without(went.Blobs, stays), func(d digest.Digest) (int64, error) {
		if c.Manifests.Named(d) { // again: somebody has pulled it since
			return 0, blobcache.ErrAbsent
		}
		return c.Blobs.Remove(d)
	})
	c.Logger.Info("removed from the cache, as an operator wants", zap.String("request", r.Method+" "+r.URL.Path), zap.String("reference", reference), zap.String("client", r.RemoteAddr),
		zap.Int64("bytes", a.Bytes), zap.Int("tags", a.Count.Tags), zap.Int("manifests", a.Count.Manifests), zap.Int("blobs", a.Count.Blobs),
		zap.Int("busy", a.Busy), zap.Int("failed", a.Failed))
	rep := &reply{body: a}
	if a.Failed > 0 {
		rep.status = http.StatusInternalServerError
	}
	return rep
}

// answerTo shows what goes with the manifests.
func answerTo(plan *manifestcache.Plan) *removal {
	a := &removal{
		Count: counts{Tags: len(plan.Tags), Rights: plan.Rights, Manifests: len(plan.Manifests)},
		Tags:  []removedTag{}, Manifests: []removed{}, Blobs: []removed{},
	}
	for _, t := range plan.Tags[:min(len(plan.Tags), maxDetails)] {
		a.Tags = append(a.Tags, removedTag{t.Repository, t.Name, t.Digest})
	}
	for i, m := range plan.Manifests {
		a.Bytes += m.Size
		if i < maxDetails {
			a.Manifests = append(a.Manifests, removed{m.Digest, m.Size})
		}
	}
	return a
}

// take removes blobs, or finds out what that would come to.
func (a *removal) take(blobs []digest.Digest, one func(d digest.Digest) (int64, error)) {
	for _, d := range blobs {
		n, err := one(d)
		switch {
		case errors.Is(err, blobcache.ErrAbsent):
		case errors.Is(err, blobcache.ErrBusy):
			a.Busy++
		case err != nil:
			a.Failed++
		default:
			a.Bytes += n
			if a.Count.Blobs++; a.Count.Blobs <= maxDetails {
				a.Blobs = append(a.Blobs, removed{d, n})
			}
		}
	}
}

// foretell is Blobs.Remove, but that it removes nothing.
func (c *Control) foretell(d digest.Digest) (int64, error) {
	switch b := c.Blobs.Items([]digest.Digest{d})[0]; {
	case b.Filling:
		return 0, blobcache.ErrBusy
	case !b.Whole && b.Size == 0:
		return 0, blobcache.ErrAbsent
	default:
		return b.Size, nil
	}
}
