package pages

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"
)

const (
	// maxListeners bounds how many pages are live at once. A browser keeps a
	// connection for each.
	maxListeners = 32

	// sending is how long a page may take for one event.
	sending = 10 * time.Second
)

// render makes the parts of the status page that change.
func (p *Handler) render(s *Status) *fragments {
	f := &fragments{at: time.Now(), status: s, html: make(map[string]string)}
	for _, name := range live() {
		var b bytes.Buffer
		if err := p.templates.ExecuteTemplate(&b, name, s); err != nil {
			panic(err) // the templates are embedded, and tested
		}
		f.html[name] = b.String()
	}
	return f
}

// Run makes a new snapshot each second while somebody looks, until ctx is done;
// then it ends what pages listen to. It must be called once only.
func (p *Handler) Run(ctx context.Context) {
	defer close(p.over)
	tick := time.NewTicker(fresh)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if p.watched() {
				p.snapshot()
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *Handler) watched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listeners > 0
}

// enter counts a listener, unless there are too many.
func (p *Handler) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners == maxListeners {
		return false
	}
	p.listeners++
	return true
}

func (p *Handler) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners--
}

// latest is the last snapshot, and what is closed when there is another.
func (p *Handler) latest() (*fragments, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.changed
}

// events sends the parts of the status page that have changed, as they do. Who is
// slow misses some, and never the last.
func (p *Handler) events(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	if !p.enter() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many pages are live", http.StatusServiceUnavailable)
		return
	}
	defer p.leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	shown := make(map[string]string)
	p.snapshot()
	for {
		f, changed := p.latest()
		event, err := json.Marshal(f.news(shown))
		if err != nil {
			panic(err) // strings
		}
		_ = control.SetWriteDeadline(time.Now().Add(sending)) // net/http's can
		if _, err = w.Write([]byte("data: " + string(event) + "\n\n")); err == nil {
			err = control.Flush()
		}
		if err != nil {
			return
		}
		select {
		case <-changed:
		case <-p.over:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// news is what is not shown yet. It is shown then.
func (f *fragments) news(shown map[string]string) map[string]string {
	news := make(map[string]string)
	for id, html := range f.html {
		if before, ok := shown[id]; !ok || before != html {
			shown[id], news[id] = html, html
		}
	}
	return news
}
