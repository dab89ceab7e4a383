package admin

import (
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
)

// pruning is what POST /prune asks for.
type pruning struct {
	repository func(name string) bool // nil: all, and what is nobody's
	before     time.Time              // only what was last used before
	dryRun     bool
}

// prune answers POST /prune.
func (c *Control) prune(r *http.Request) (*reply, error) {
	p, err := c.pruning(r)
	if err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	plan := c.Manifests.PlanPrune(p.repository, p.before)
	orphans := c.orphans(p)
	if !p.dryRun {
		return c.carryOut(r, "", plan, orphans, p.before), nil
	}
	a := answerTo(plan)
	a.DryRun = true
	a.take(orphans, c.foretell)
	a.take(c.unused(plan.Blobs, p.before), c.foretell)
	return &reply{body: a}, nil
}

func (c *Control) pruning(r *http.Request) (*pruning, error) {
	query, err := parameters(r, "dry-run", "older", "repository", "all")
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

// unused are those of the blobs that were last used before then.
func (c *Control) unused(blobs []digest.Digest, before time.Time) []digest.Digest {
	var unused []digest.Digest
	for i, b := range c.Blobs.Items(blobs) {
		if b.Used.Before(before) {
			unused = append(unused, blobs[i])
		}
	}
	return unused
}

// orphans are the blobs that no manifest names, if these are meant too.
func (c *Control) orphans(p *pruning) []digest.Digest {
	if p.repository != nil {
		return nil
	}
	return slices.DeleteFunc(c.Blobs.Unused(p.before), c.Manifests.Named)
}
