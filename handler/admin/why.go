package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// lookUp is how long looking up credentials may take: a helper is a program.
const lookUp = 5 * time.Second

// why is what would happen for a reference now, if the registry still says what
// it last said.
type why struct {
	Reference string `json:"reference"`
	Verdict   string `json:"verdict"`
	// Outcome is what Cache-Status would say: hit, revalidated, stale or miss; or
	// denied, unlisted or refused (the registry is not asked, and what there is
	// does not do).
	Outcome string `json:"outcome"`

	Repository string        `json:"repository,omitempty"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest,omitempty"` // that was given, or that the tag last pointed at
	DeniedBy   string        `json:"deniedBy,omitempty"`

	Asked  []way      `json:"upstream,omitempty"` // where, in this order, if somebody is
	Shared *tierWay   `json:"shared,omitempty"`   // the fleet's store, if the repository is shared
	Known  *knowledge `json:"known,omitempty"`
	Image  *image     `json:"image,omitempty"`
	Blob   *object    `json:"blob,omitempty"` // if that is what the digest is of
	Fetch  *fetched   `json:"fetch,omitempty"`

	outlooks  []upstream.Outlook
	elsewhere bool // another repository has the manifest
	tags      bool // what the fleet's store says of a tag spares the question
}

// knowledge is what the registry has said.
type knowledge struct {
	Validated time.Time `json:"validated"`
	Age       string    `json:"age"`
	Fresh     bool      `json:"fresh"` // it is not asked again yet
}

// fetched is what is not here, as far as manifests that are here say.
type fetched struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// way is one URL of the registry.
type way struct {
	URL         string `json:"url"`
	Parent      bool   `json:"parent,omitempty"` // it is LARDER_PARENT
	Credentials string `json:"credentials"`      // shown, none, or what is wrong with looking them up
	State       string `json:"state"`            // asked, left alone (it has failed) or rate limited
	For         string `json:"for,omitempty"`
	Cause       string `json:"cause,omitempty"`

	RateLimit *rateLimit `json:"rateLimit,omitempty"`
}

// tierWay is the fleet's store, which is asked before the registry.
type tierWay struct {
	Store string `json:"store"`
	State string `json:"state"` // asked, or left alone
	Cause string `json:"cause,omitempty"`
}

type rateLimit struct {
	Limit     int       `json:"limit"`
	Remaining int       `json:"remaining"`
	Seen      time.Time `json:"seen"`
}

// why answers GET /why. Nobody is asked for that.
func (c *Control) why(r *http.Request) (*reply, error) {
	query, err := parameters(r, "ref")
	if err != nil {
		return nil, err
	}
	t, err := c.parse(query.Get("ref"))
	if err != nil {
		return nil, err
	}
	if t.repository == "" {
		return nil, bad(errcode.NameInvalid, "a digest alone is not pulled: say of which repository, as in docker.io/library/alpine@%s", t.digest)
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	if t.tag == "" && t.digest == "" {
		t.tag = "latest"
	}
	a := &why{Reference: query.Get("ref"), Repository: t.repository, Tag: t.tag, Digest: t.digest}
	switch setting := c.Denied(t.repository); {
	case t.upstream == nil:
		a.Repository, a.Outcome = "", "unlisted"
		a.Verdict = "404 NAME_UNKNOWN: its registry is not in LARDER_UPSTREAMS; clients with a fallback go on to the registry itself"
	case setting != "":
		a.DeniedBy, a.Outcome = setting, "denied"
		a.Verdict = fmt.Sprintf("403 DENIED: %s says that %s is not served, be it cached or not; nobody is asked", setting, t.repository)
	default:
		c.decide(r.Context(), a, t)
	}
	return &reply{body: a}, nil
}

// decide finds out for a repository that is served.
func (c *Control) decide(ctx context.Context, a *why, t target) {
	ctx, cancel := context.WithTimeout(ctx, lookUp)
	defer cancel()
	a.outlooks = t.upstream.Outlooks(ctx)
	for _, o := range a.outlooks {
		a.Asked = append(a.Asked, wayOf(o))
	}
	c.tier(a)
	if t.digest != "" {
		a.Tag = "" // clients ask for the digest
	}
	if img, ok := c.image(t); ok {
		if shown, ok := c.describe(img); ok {
			a.Image, a.Digest = &shown, img.Digest
			a.Fetch = c.missing(img.Digest)
		}
	}
	right, validated := c.Manifests.Right(a.Repository, a.Digest)
	fresh := right == manifestcache.Granted
	if a.Image == nil && t.digest != "" {
		o, ok := c.object(t.digest)
		if right := c.Manifests.Refers(a.Repository, t.digest); ok && o.Kind == "blob" || !ok && right != manifestcache.Unknown {
			a.Blob = &o
			a.judgeBlob(right)
			return
		}
	}
	_, a.elsewhere = c.Manifests.Manifest(a.Digest)
	if a.Tag != "" {
		known, ok := c.Manifests.Tag(a.Repository, a.Tag)
		validated, fresh = known.Validated, known.Fresh
		if !ok {
			a.Image = nil
		}
	}
	if a.Image != nil {
		a.Known = &knowledge{second(validated), time.Since(validated).Round(time.Second).String(), fresh}
	}
	a.judge(fresh, c.Upstreams.Spare(a.Repository))
	a.Verdict += "; " + a.contents()
}

// judge says how the manifest would be answered. spare is why the registry is not
// asked about what is known.
func (a *why) judge(fresh bool, spare error) {
	host, _, _ := strings.Cut(a.Repository, "/")
	here := a.Image != nil
	alone := a.alone()
	switch {
	case here && fresh:
		a.Outcome = "hit"
		a.Verdict = fmt.Sprintf("200 from the cache, without asking %s, which confirmed it %s ago", host, a.Known.Age)
	case here && a.Tag != "" && spare != nil:
		a.Outcome = "stale"
		a.Verdict = fmt.Sprintf("200 from the cache, as it was %s ago: %s is not asked, to save its rate limit", a.Known.Age, host)
	case here && alone != "":
		a.Outcome = "stale"
		a.Verdict = fmt.Sprintf("200 from the cache, as it was %s ago: %s is left alone for %s", a.Known.Age, host, alone)
	case here && a.Tag != "":
		a.Outcome = "revalidated"
		a.Verdict = fmt.Sprintf("%s is asked (HEAD) what the tag points at, which it last said %s ago%s; the manifest for that is here", host, a.Known.Age, a.unlessTag())
	case here:
		a.Outcome = "revalidated"
		a.Verdict = fmt.Sprintf("%s is asked (HEAD) whether it still has this, which it last said %s ago%s", host, a.Known.Age, a.unless())
	case alone == "" && a.elsewhere:
		a.Outcome = "revalidated"
		a.Verdict = fmt.Sprintf("%s is asked (HEAD) whether %s has this, which is here from another repository%s", host, a.Repository, a.unless())
	case alone != "":
		a.Outcome = "refused"
		a.Verdict = fmt.Sprintf("an error: it is not in the cache for %s, and %s is left alone for %s%s", a.Repository, host, alone, a.unless())
	default:
		a.Outcome = "miss"
		a.Verdict = fmt.Sprintf("the manifest is fetched from %s%s", host, a.unless())
	}
}

// tier finds out whether the fleet's store is asked.
func (c *Control) tier(a *why) {
	if c.Shared == nil {
		return
	}
	o, ok := c.Shared.Outlook(a.Repository)
	if !ok {
		return
	}
	a.Shared, a.tags = &tierWay{Store: o.Store, State: "asked"}, o.Tags
	if o.Out != nil {
		a.Shared.State, a.Shared.Cause = "left alone", o.Out.Error()
	}
}

// unless is what spares the registry a question, or the client an error.
func (a *why) unless() string {
	if a.Shared == nil || a.Shared.State != "asked" {
		return ""
	}
	return ", unless the shared store has it"
}

// unlessTag is that for a tag that is known.
func (a *why) unlessTag() string {
	if !a.tags || a.unless() == "" {
		return ""
	}
	return ", unless the shared store says what another larder has heard since"
}

// contents says what of the image is here.
func (a *why) contents() string {
	img := a.Image
	switch {
	case img == nil:
		return "nothing is known of what it consists of"
	case img.ManifestCount > 0 && len(img.Manifests) > 0 && img.Blobs == 0:
		return "it is an index, and none of its images is here"
	case img.MissingCount == 0:
		return fmt.Sprintf("all %d blobs are here", img.Blobs)
	default:
		return fmt.Sprintf("%d of %d blobs are here, and %d (%d bytes) are fetched", img.Blobs-img.MissingCount, img.Blobs, a.Fetch.Blobs, a.Fetch.Bytes)
	}
}

// judgeBlob says how a.Blob would be answered.
func (a *why) judgeBlob(right manifestcache.Right) {
	host, _, _ := strings.Cut(a.Repository, "/")
	alone := a.alone()
	switch {
	case right == manifestcache.Granted && a.Blob.Complete:
		a.Outcome, a.Verdict = "hit", "a blob: 200 from the cache, without asking "+host
	case right == manifestcache.Unrenewed && a.Blob.Complete && alone != "":
		a.Outcome, a.Verdict = "hit", fmt.Sprintf("a blob: 200 from the cache, as %s is left alone for %s", host, alone)
	case alone != "":
		a.Outcome, a.Verdict = "refused", fmt.Sprintf("a blob: an error, as it would have to be asked for, and %s is left alone for %s%s", host, alone, a.unless())
	case a.Blob.Complete:
		a.Outcome, a.Verdict = "hit", fmt.Sprintf("a blob: %s is asked (HEAD) whether %s has it, and then it is given from the cache", host, a.Repository)
	default:
		a.Outcome, a.Verdict = "miss", fmt.Sprintf("a blob: fetched from %s, but for the %d bytes that are here%s", host, a.Blob.Size, a.unless())
	}
}

// alone is for how long none of the registry's URLs is asked, and why; "" if one
// is.
func (a *why) alone() string {
	least := time.Duration(0)
	var cause error
	for i, o := range a.outlooks {
		if o.Wait == 0 {
			return ""
		}
		if i == 0 || o.Wait < least {
			least, cause = o.Wait, o.Cause
		}
	}
	return fmt.Sprintf("another %v (%v)", least.Round(time.Second), cause)
}

func wayOf(o upstream.Outlook) way {
	w := way{URL: o.URL, Parent: o.Parent, Credentials: "none", State: "asked"}
	switch {
	case o.CredentialsErr != nil:
		w.Credentials = o.CredentialsErr.Error()
	case o.Credentials:
		w.Credentials = "shown"
	}
	if o.Wait > 0 {
		w.State, w.For, w.Cause = "left alone", o.Wait.Round(time.Second).String(), fmt.Sprint(o.Cause)
		if o.Limited {
			w.State = "rate limited"
		}
	}
	if q := o.Quota; !q.Seen.IsZero() {
		w.RateLimit = &rateLimit{q.Limit, q.Remaining, second(q.Seen)}
	}
	return w
}

// missing is what of an image would be fetched, as far as its manifests are here.
func (c *Control) missing(d digest.Digest) *fetched {
	m := c.measure(d)
	sizes := make(map[digest.Digest]int64)
	for _, d := range m.tree.Manifests {
		var doc document
		if body := c.Manifests.Peek(d); body != nil && json.Unmarshal(body.Body, &doc) == nil {
			for _, b := range append(doc.Layers, doc.Config) {
				sizes[b.Digest] = max(b.Size, 0)
			}
		}
	}
	f := new(fetched)
	for i, b := range m.blobs {
		if !b.Whole {
			f.Blobs++
			f.Bytes += max(sizes[m.tree.Blobs[i]]-b.Size, 0)
		}
	}
	return f
}
