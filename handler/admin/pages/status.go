package pages

import (
	"net/http"
	"time"

	"larder/blobcache"
	"larder/handler/admin/history"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// Status is all that the status page shows.
type Status struct {
	Version string
	Detail  string // what is less than well, or ""
	Failing bool   // larder should not be sent requests, for Detail

	History   history.Report
	Upstreams []upstream.Place
	Fills     []Fill
	MoreFills int // that are not in Fills

	Blobs               blobcache.Stats
	Manifests           manifestcache.Stats
	Received            int64         // bytes of blobs that registries have sent
	Shared              *shared.Stats // nil: this larder is alone
	DiskTotal, DiskFree int64         // 0: not known
	Next                []Ending
	Gone                []Gone

	Chain    []string // the middlewares, outermost first
	Settings []Setting
}

// Fill is a blob on its way.
type Fill struct {
	blobcache.Fill
	Speed float64 // bytes per second
}

// Arrived is how many bytes are there.
func (f Fill) Arrived() (n int64) {
	for _, e := range f.Have {
		n += e.End - e.Start
	}
	return n
}

// Percent is how much of it is there, 0 if its size is not known.
func (f Fill) Percent() int {
	if f.Size <= 0 {
		return 0
	}
	return int(f.Arrived() * 100 / f.Size)
}

// Left is how long the rest will take, 0 if that can't be said.
func (f Fill) Left() time.Duration {
	rest := f.Size - f.Arrived()
	if f.Speed < 1 || rest <= 0 {
		return 0
	}
	return max(time.Duration(float64(rest)/f.Speed*float64(time.Second)).Round(time.Second), time.Second)
}

// Ending is a blob that is due to go, and a repository that has it, if one does.
type Ending struct {
	blobcache.Ending
	Repository string
}

// Gone is a blob that went, and a repository that had it, if that is known.
type Gone struct {
	blobcache.Gone
	Repository string
}

// Setting is a variable of the configuration. The value of a secret is not in it.
type Setting struct {
	Name, Value string
	Default     bool // nobody has set it
}

// fresh is for how long a snapshot is good.
const fresh = time.Second

func (p *Handler) status(w http.ResponseWriter, r *http.Request) {
	p.show(w, r, http.StatusOK, "status.html", p.snapshot().status)
}

// fragments is a Status, and those parts of the page that change, by their id.
type fragments struct {
	at     time.Time
	status *Status
	html   map[string]string
}

// live are the parts of the status page that change: a template and an element's
// id each.
func live() []string {
	return []string{"clock", "health", "totals", "charts", "fills", "upstreams", "shared", "space", "next", "gone", "slowest", "failures"}
}

// snapshot returns the current one, or makes it if that is too old. It is made
// outside of the lock: two who need it at once make two.
func (p *Handler) snapshot() *fragments {
	p.mu.Lock()
	f := p.current
	p.mu.Unlock()
	if f != nil && time.Since(f.at).Abs() < fresh {
		return f
	}
	f = p.render(p.cfg.Status())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = f
	close(p.changed)
	p.changed = make(chan struct{})
	return f
}
