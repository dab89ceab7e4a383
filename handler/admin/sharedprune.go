package admin

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"larder/handler/errcode"
)

// tierShared is the tier of POST /prune that is the fleet's store.
const tierShared = "shared"

// sharedRemoval says what went from the fleet's store, or would, by kind.
type sharedRemoval struct {
	DryRun  bool                      `json:"dryRun"`
	Bytes   int64                     `json:"bytes"`
	Removed map[string]removedObjects `json:"removed"`
	Failed  string                    `json:"failed,omitempty"` // why it is not all
}

type removedObjects struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// pruneShared answers POST /prune?tier=shared. What is in use comes back with the next
// pull of a larder that does not have it.
func (c *Control) pruneShared(r *http.Request) (*reply, error) {
	before, dryRun, err := c.sharedPruning(r)
	if err != nil {
		return nil, err
	}
	if dryRun {
		return c.carryOutShared(r.Context(), before, true), nil
	}
	rep := c.carryOutShared(r.Context(), before, false)
	a := rep.body.(*sharedRemoval)
	c.Logger.Info("removed from the fleet's store, as an operator wants", zap.String("client", r.RemoteAddr), zap.Time("before", before),
		zap.Int64("bytes", a.Bytes), zap.Any("removed", a.Removed), zap.String("failed", a.Failed))
	return rep, nil
}

func (c *Control) sharedPruning(r *http.Request) (before time.Time, dryRun bool, err error) {
	query, err := parameters(r, "tier", "dry-run", "older", "all")
	if err != nil {
		return before, false, err
	}
	if tier := query.Get("tier"); tier != tierShared {
		return before, false, bad(errcode.Unsupported, "unknown tier %.100q; there is %s, and none for the cache", tier, tierShared)
	}
	if c.Shared == nil {
		return before, false, bad(errcode.Unsupported, "there is none: LARDER_SHARED is not set")
	}
	if dryRun, err = flag(query, "dry-run"); err != nil {
		return before, false, err
	}
	all, err := flag(query, "all")
	if err != nil {
		return before, false, err
	}
	age, err := time.ParseDuration(query.Get("older"))
	switch {
	case query.Has("older") && (err != nil || age < 0):
		return before, false, bad(errcode.Unsupported, "older is not a duration like 90m or 72h")
	case age == 0 && !all:
		return before, false, bad(errcode.Unsupported, "this would remove everything: say older, or all=1")
	}
	return time.Now().Add(-age), dryRun, nil
}

// carryOutShared removes what was written before, or says what that is.
func (c *Control) carryOutShared(ctx context.Context, before time.Time, dryRun bool) *reply {
	pruned, err := c.Shared.Prune(ctx, before, !dryRun)
	a := &sharedRemoval{DryRun: dryRun, Removed: make(map[string]removedObjects)}
	for kind, went := range pruned {
		a.Removed[kind] = removedObjects(went)
		a.Bytes += went.Bytes
	}
	if err == nil {
		return &reply{body: a}
	}
	a.Failed = err.Error()
	return &reply{status: http.StatusBadGateway, body: a}
}
