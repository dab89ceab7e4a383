package admin

import (
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/manifestcache"
)

// pruning is what POST /prune asks for.
type pruning struct {
	repository func(name string) bool // nil: all, and what is nobody's
	before     time.Time              // only what was last used before
	pinned     manifestcache.Pinned
	dryRun     bool
}

// prune answers POST /prune.
func (c *Control) prune(r *http.Request) (*reply, error) {
	if r.URL.Query().Has("tier") {
		return c.pruneShared(r)
	}
	p, err := c.pruning(r)
	if err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	plan := c.Manifests.PlanPrune(p.repository, p.before, p.pinned)
	orphans := c.orphans(p)
	if !p.dryRun {
		return c.carryOut(r, "", plan, orphans, p.leaves), nil
	}
	a := answerTo(plan)
	a.DryRun = true
	a.take(orphans, c.foretell)
	a.take(c.without(plan.Blobs, p.leaves), c.foretell)
	return &reply{body: a}, nil
}

func (c *Control) pruning(r *http.Request) (*pruning, error) {
	query, err := parameters(r, "dry-run", "older", "repository", "all", "pinned")
	if err != nil {
		return nil, err
	}
	p := &pruning{before: never}
	if p.dryRun, err = flag(query, "dry-run"); err != nil {
		return nil, err
	}
	all, err := flag(query, "all")
	if err != nil {
		return nil, err
	}
	pinned, err := flag(query, "pinned")
	if err != nil {
		return nil, err
	}
	if pinned {
		p.pinned = manifestcache.Include
	}
	everything := true
	if query.Has("older") {
		age, err := time.ParseDuration(query.Get("older"))
		if err != nil || age < 0 {
			return nil, bad(errcode.Unsupported, "older is not a duration like 90m or 72h")
		}
		p.before, everything = time.Now().Add(-age), age == 0
	}
	if query.Has("repository") {
		if p.repository, err = c.matcher(query.Get("repository")); err != nil {
			return nil, err
		}
		// What matches these is not there for any name's sake.
		everything = everything && p.repository("-/-") && p.repository("-/-/-")
	}
	if everything && !all {
		return nil, bad(errcode.Unsupported, "this would remove everything: say older, repository, or all=1")
	}
	return p, nil
}

// leaves reports whether a blob stays.
func (p *pruning) leaves(b blobcache.Item) bool {
	return !b.Used.Before(p.before) || b.Held && p.pinned == manifestcache.Spare
}

// without are those of the blobs that do not stay.
func (c *Control) without(blobs []digest.Digest, stays func(b blobcache.Item) bool) []digest.Digest {
	var list []digest.Digest
	for i, b := range c.Blobs.Items(blobs) {
		if !stays(b) {
			list = append(list, blobs[i])
		}
	}
	return list
}

// orphans are the blobs that no manifest names, if these are meant too.
func (c *Control) orphans(p *pruning) []digest.Digest {
	if p.repository != nil {
		return nil
	}
	return c.without(slices.DeleteFunc(c.Blobs.Unused(p.before), c.Manifests.Named), p.leaves)
}
