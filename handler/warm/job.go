package warm

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// State is how far something is.
type State string

// What is warmed waits, runs, and then is done, has failed, or was stopped.
const (
	Waiting State = "waiting"
	Running State = "running"
	Done    State = "done"
	Failed  State = "failed"
	Stopped State = "stopped"
)

// Image is what has become of a reference.
type Image struct {
	Reference string        `json:"reference"`
	State     State         `json:"state"`
	Digest    digest.Digest `json:"digest,omitempty"`
	Matched   int           `json:"matched,omitempty"` // tags of a pattern; each is an Image of its own
	Manifests int           `json:"manifests"`
	Blobs     int           `json:"blobs"`
	Fetched   int64         `json:"fetchedBytes"`    // of blobs that were not there
	Cached    int64         `json:"cachedBytes"`     // of blobs that were
	Stale     bool          `json:"stale,omitempty"` // the registry could not say whether it is current
	Error     string        `json:"error,omitempty"`

	ref reference
	seq int64
}

// Layer is how far a blob is. A config is one, too.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	Reference string        `json:"reference"` // the first that needs it
	State     State         `json:"state"`
	Size      int64         `json:"size"`
	Have      int64         `json:"have"`

	seq  int64
	done chan struct{} // closed when it is no longer running; fetched and err are set before
	was  bool          // it was there before
	err  error
}

// Summary is what a job comes to.
type Summary struct {
	ID      int        `json:"id"`
	Origin  string     `json:"origin"` // who has ordered it
	State   State      `json:"state"`
	Began   time.Time  `json:"began"`
	Ended   *time.Time `json:"ended"`
	Images  int        `json:"images"`
	Done    int        `json:"done"`
	Failed  int        `json:"failed"`
	Stopped int        `json:"stopped"`
	Fetched int64      `json:"fetchedBytes"`
	Cached  int64      `json:"cachedBytes"`
}

// Changes is what is new of a job since it was last looked at.
type Changes struct {
	Images []Image
	Layers []Layer
	Seq    int64           // where to look from next time
	More   <-chan struct{} // closed when there is more; nil: the job has ended
}

// Job is an order that is carried out. Its methods may be called concurrently.
type Job struct {
	id        int
	origin    string
	platforms Platforms
	began     time.Time
	cancel    context.CancelCauseFunc
	done      chan struct{} // closed at the end

	mu      sync.Mutex // guards what follows
	seq     int64      // of the last change
	changed chan struct{}
	images  []*Image
	layers  []*Layer
	byBlob  map[digest.Digest]*Layer
	ended   time.Time
}

// ID is the job's number.
func (j *Job) ID() int { return j.id }

// Stop ends the job early. What has arrived stays.
func (j *Job) Stop() { j.cancel(errStopped) }

// Wait waits for the job's end, or that of ctx.
func (j *Job) Wait(ctx context.Context) {
	select {
	case <-j.done:
	case <-ctx.Done():
	}
}

// Since says what has changed since a Seq of earlier Changes; 0 is everything.
func (j *Job) Since(seq int64) Changes {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := Changes{Seq: j.seq, More: j.changed}
	if !j.ended.IsZero() {
		c.More = nil
	}
	for _, img := range j.images {
		if img.seq > seq {
			c.Images = append(c.Images, *img)
		}
	}
	for _, l := range j.layers {
		if l.seq > seq {
			c.Layers = append(c.Layers, *l)
		}
	}
	return c
}

// Summary says what the job has come to.
func (j *Job) Summary() Summary {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := Summary{ID: j.id, Origin: j.origin, Began: j.began, State: Running}
	for _, img := range j.images {
		if img.Matched > 0 {
			continue // its tags count
		}
		s.Images++
		s.Fetched += img.Fetched
		s.Cached += img.Cached
		switch img.State {
		case Done:
			s.Done++
		case Failed:
			s.Failed++
		case Stopped:
			s.Stopped++
		}
	}
	if j.ended.IsZero() {
		return s
	}
	s.Ended, s.State = new(j.ended), Done
	switch {
	case s.Stopped > 0:
		s.State = Stopped
	case s.Failed > 0:
		s.State = Failed
	}
	return s
}

// failed are the references that could not be warmed.
func (j *Job) failed() (list []reference) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, img := range j.images {
		if img.State == Failed {
			list = append(list, img.ref)
		}
	}
	return list
}

// change notes a change, of what has this seq.
func (j *Job) change(seq *int64, change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
	j.changes(seq)
}

// changes needs mu.
func (j *Job) changes(seq *int64) {
	j.seq++
	*seq = j.seq
	close(j.changed)
	j.changed = make(chan struct{})
}

// add adds a reference to the job, unless it is there or there are too many.
func (j *Job) add(r reference) *Image {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, img := range j.images {
		if img.Reference == r.String() {
			return nil
		}
	}
	img := &Image{Reference: r.String(), State: Waiting, ref: r}
	j.images = append(j.images, img)
	j.changes(&img.seq)
	return img
}

// layer is the blob's, first if nobody has asked for it before; then it has to be
// fetched. It is nil if there are too many.
func (j *Job) layer(d digest.Digest, size int64, reference string) (l *Layer, first bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l = j.byBlob[d]; l != nil {
		return l, false
	}
	if len(j.layers) == maxLayers {
		return nil, false
	}
	l = &Layer{Digest: d, Reference: reference, State: Waiting, Size: size, done: make(chan struct{})}
	j.byBlob[d] = l
	j.layers = append(j.layers, l)
	j.changes(&l.seq)
	return l, true
}

// end notes the end. How far each blob is matters no more.
func (j *Job) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended = time.Now()
	clear(j.byBlob)
	close(j.changed)
	close(j.done)
}

// forgetLayers gives up what only those need who have watched the job.
func (j *Job) forgetLayers() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.layers = nil
}

func (j *Job) size() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.images)
}
