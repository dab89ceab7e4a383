package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// smallDocument is how much of a manifest or a list is read without asking
	// for room. Hardly any is larger.
	smallDocument = 32 << 10

	// allRoom bounds what larger ones may take together, whatever registries
	// send and however slowly clients read it.
	allRoom = 12 << 20

	// roomPatience is how long one waits for room.
	roomPatience = 5 * time.Second
)

// ErrBusy says that there was no room for a large document.
var ErrBusy = errors.New("too many large documents at a time")

// room is the memory for one document.
type room struct {
	all   *semaphore.Weighted
	owner context.Context // of who asked for the document; when it ends, it is not needed any more
	taken bool
}

type roomKey struct{}

// withRoom lets the answer to a question be a large document, which takes room
// until ctx ends.
func (c *Client) withRoom(ctx context.Context) context.Context {
	return context.WithValue(ctx, roomKey{}, &room{all: c.room, owner: ctx})
}

// take waits for as much room as the document can need. For a second attempt
// there is that of the first.
func (r *room) take(ctx context.Context, most int64) error {
	if r.taken {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, roomPatience, ErrBusy)
	defer cancel()
	if err := r.all.Acquire(ctx, most); err != nil {
		return context.Cause(ctx)
	}
	r.taken = true
	context.AfterFunc(r.owner, func() { r.all.Release(most) })
	return nil
}

// readDocument reads all of a document, which the transport has limited to most
// bytes. A large one gets all the room there is for it at once: io.ReadAll would
// need it twice.
func readDocument(body io.Reader, most int) ([]byte, error) {
	beginning, err := io.ReadAll(io.LimitReader(body, smallDocument+1))
	if err != nil || len(beginning) <= smallDocument {
		return beginning, err
	}
	all := bytes.NewBuffer(append(make([]byte, 0, most+bytes.MinRead), beginning...))
	_, err = all.ReadFrom(body)
	if err != nil {
		return nil, err
	}
	if all.Len() > most/2 { // little would be won
		return all.Bytes(), nil
	}
	return bytes.Clone(all.Bytes()), nil
}
