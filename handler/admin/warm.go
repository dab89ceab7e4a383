package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"larder/handler/errcode"
	"larder/handler/warm"
)

const (
	// maxOrder bounds what is read of an order.
	maxOrder = 1 << 20

	// tellEvery is how often progress is told, at most, and patience how long who is
	// told may take to read it.
	tellEvery = 100 * time.Millisecond
	patience  = 30 * time.Second

	eventStream = "text/event-stream"
	jsonLines   = "application/x-ndjson"
)

// warm answers POST /warm. Who watches has the job stopped by leaving, unless it is
// detached.
func (c *Control) warm(r *http.Request) (*reply, error) {
	query, err := parameters(r, "platform", "detach")
	if err != nil {
		return nil, err
	}
	detach, err := flag(query, "detach")
	if err != nil {
		return nil, err
	}
	platforms := c.Warmer.Default()
	if query.Has("platform") {
		if platforms, err = warm.ParsePlatforms(query.Get("platform")); err != nil {
			return nil, bad(errcode.Unsupported, "platform is %s", err)
		}
	}
	references, err := c.references(r)
	if err != nil {
		return nil, err
	}
	job, err := c.Warmer.Start("admin listener", references, platforms)
	switch {
	case errors.Is(err, warm.ErrBusy), errors.Is(err, warm.ErrClosed):
		return nil, &errcode.Error{
			Status: http.StatusServiceUnavailable, Code: errcode.Unavailable, Message: err.Error(), Header: http.Header{"Retry-After": {"5"}},
		}
	case err != nil:
		return nil, bad(errcode.NameInvalid, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	kind := streamed(r)
	if detach && kind == "" {
		return &reply{status: http.StatusAccepted, body: job.Summary()}, nil
	}
	return &reply{stream: func(w http.ResponseWriter, r *http.Request) {
		watch(w, r, job, kind)
		if !detach {
			job.Stop()
		}
	}}, nil
}

// references reads an order: a JSON list, or lines.
func (c *Control) references(r *http.Request) ([]string, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxOrder+1))
	if err != nil {
		return nil, bad(errcode.Unsupported, "the order could not be read")
	}
	if len(body) > maxOrder {
		return nil, &errcode.Error{Status: http.StatusRequestEntityTooLarge, Code: errcode.Unsupported, Message: "the order is too large"}
	}
	var list []string
	if text := bytes.TrimSpace(body); !bytes.HasPrefix(text, []byte("[")) {
		list = warm.Split(string(text))
	} else if json.Unmarshal(text, &list) != nil {
		return nil, bad(errcode.Unsupported, `not a list of references like ["docker.io/library/alpine:3.20"]`)
	}
	for i, reference := range list {
		list[i] = c.withoutOwn(reference)
	}
	return list, nil
}

// warmJobs answers GET /warm.
func (c *Control) warmJobs(r *http.Request) (*reply, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	list := []warm.Summary{}
	for _, job := range c.Warmer.Jobs() {
		list = append(list, job.Summary())
	}
	return &reply{body: map[string]any{"jobs": list}}, nil
}

// detailed is a job with its references.
type detailed struct {
	warm.Summary
	References []warm.Image `json:"references"`
	Layers     []warm.Layer `json:"layers"` // that are on their way
}

// warmJob answers GET /warm/<id>. Who watches and leaves stops nothing.
func (c *Control) warmJob(r *http.Request) (*reply, error) {
	job, err := c.job(r)
	if err != nil {
		return nil, err
	}
	if kind := streamed(r); kind != "" {
		return &reply{stream: func(w http.ResponseWriter, r *http.Request) { watch(w, r, job, kind) }}, nil
	}
	all := job.Since(0)
	d := detailed{Summary: job.Summary(), References: all.Images, Layers: []warm.Layer{}}
	for _, l := range all.Layers {
		if l.State == warm.Running {
			d.Layers = append(d.Layers, l)
		}
	}
	return &reply{body: d}, nil
}

// stopWarming answers DELETE /warm/<id>.
func (c *Control) stopWarming(r *http.Request) (*reply, error) {
	job, err := c.job(r)
	if err != nil {
		return nil, err
	}
	job.Stop()
	job.Wait(r.Context())
	return &reply{body: job.Summary()}, nil
}

func (c *Control) job(r *http.Request) (*warm.Job, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	id, err := strconv.Atoi(r.PathValue("id"))
	if err == nil {
		if job := c.Warmer.Job(id); job != nil {
			return job, nil
		}
	}
	return nil, absent(errcode.NameUnknown, "no such job, or it is forgotten")
}

// streamed is the form in which r wants to watch progress, "" if it does not say.
func streamed(r *http.Request) string {
	for _, kind := range []string{eventStream, jsonLines} {
		if strings.Contains(r.Header.Get("Accept"), kind) {
			return kind
		}
	}
	return ""
}

// watch tells of a job's progress, until it has ended or the client has left.
func watch(w http.ResponseWriter, r *http.Request, job *warm.Job, kind string) {
	if kind == "" {
		kind = jsonLines
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rest := time.NewTicker(tellEvery)
	defer rest.Stop()
	rc := http.NewResponseController(w)
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // the connection may be used again
	for seq := int64(0); ; {
		changes := job.Since(seq)
		seq = changes.Seq
		text := encode(changes, kind)
		if changes.More == nil {
			text.event(kind, "end", job.Summary())
		}
		_ = rc.SetWriteDeadline(time.Now().Add(patience)) // every connection has one
		if _, err := text.WriteTo(w); err != nil || rc.Flush() != nil || changes.More == nil {
			return
		}
		select {
		case <-changes.More:
		case <-r.Context().Done():
			return
		}
		select {
		case <-rest.C:
		case <-r.Context().Done():
			return
		}
	}
}

// events are written one after the other: server-sent ones, or lines of JSON.
type events struct{ bytes.Buffer }

func encode(changes warm.Changes, kind string) *events {
	text := new(events)
	for _, img := range changes.Images {
		text.event(kind, "image", img)
	}
	for _, l := range changes.Layers {
		text.event(kind, "layer", l)
	}
	return text
}

func (e *events) event(kind, name string, what any) {
	if kind == eventStream {
		e.WriteString("event: " + name + "\ndata: ")
	} else {
		what = map[string]any{name: what}
	}
	_ = json.NewEncoder(&e.Buffer).Encode(what) // structs of strings and numbers, in one line
	if kind == eventStream {
		e.WriteByte('\n')
	}
}
