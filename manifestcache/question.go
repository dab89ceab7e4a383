package manifestcache

import (
	"context"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Question is what came of asking upstream, or those who share, for an answer.
type Question struct {
	Took    time.Duration // upstream, to answer
	Known   bool          // an answer of the past was there
	Stored  bool          // what was sent is kept
	Unasked bool          // others had the answer: upstream was not asked
	Relayed string        // the Cache-Status of another cache that was asked; see Relay
	Err     error         // why there is no answer
}

// questioned is an Upstream that keeps account of what it is asked.
type questioned struct {
	Upstream
	Question
	repository, reference string // what the question is about

	asked   bool
	age     time.Duration // of what upstream says; see Relay
	stale   bool          // it could not ask the registry
	fetched bool          // it has sent the manifest
	others  bool          // others who share know more than this cache did
	taken   bool          // the manifest is from them
	done    func()        // ends the claim; nil: there is none
}

// known is the outcome if upstream need not be asked.
func (q *questioned) known() Outcome {
	if q.others || q.taken {
		return SharedHit
	}
	return Hit
}

// confirmed is the outcome if upstream has said that what is known is right.
func (q *questioned) confirmed() Outcome {
	if q.taken {
		return SharedHit
	}
	return Revalidated
}

// HeadManifest implements Upstream.
func (q *questioned) HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	began := time.Now()
	desc, err := q.Upstream.HeadManifest(ctx, reference)
	q.account(began, err)
	return desc, err
}

// GetManifest implements Upstream.
func (q *questioned) GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	began := time.Now()
	desc, body, err := q.Upstream.GetManifest(ctx, reference)
	q.account(began, err)
	q.fetched = err == nil
	return desc, body, err
}

func (q *questioned) account(began time.Time, err error) {
	q.Took += time.Since(began)
	q.Err, q.asked = err, true
	if relay, ok := q.Upstream.(Relay); ok {
		q.Relayed, q.age, q.stale = relay.Relayed()
	}
}

// dated is for what upstream has just said of m.
func (q *questioned) dated(m *Manifest, outcome Outcome) *Manifest {
	return dated(m, q.outcome(outcome), time.Now().Add(-q.age))
}

// outcome is Stale if the registry could not be asked, by whoever was.
func (q *questioned) outcome(otherwise Outcome) Outcome {
	if q.stale {
		return Stale
	}
	return otherwise
}
