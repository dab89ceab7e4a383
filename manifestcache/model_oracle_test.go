package manifestcache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/manifestcache"
)

// expected is what an answer has to be, and what it may cost.
type expected struct {
	err     error // instead of the rest
	doc     document
	outcome manifestcache.Outcome
	age     time.Time // since when
	asked   int
}

// pullTag has clients pull a tag and compares with what is right.
func (r *modelRepository) pullTag(tag string) {
	r.expire()
	want := r.wantTag(tag)
	r.note("%s: pull %s: %v, %v, %v", r.name, tag, want.err, want.outcome, want.doc.digest)
	got, err := r.herd(func(ctx context.Context) (*manifestcache.Manifest, error) {
		return r.cache.ByTag(ctx, r.name, tag, r)
	})
	r.check(tag, want, got, err)
	switch doc := r.tags[tag]; {
	case errors.Is(want.err, errGone):
		delete(r.linked, tag)
		if r.mood != denying && doc.digest != "" { // upstream does not have what the tag points at
			delete(r.rights, doc.digest)
		}
	case want.err == nil && (want.outcome == manifestcache.Miss || want.outcome == manifestcache.Revalidated):
		r.linked[tag] = linked{want.doc, time.Now()}
		r.allow(want.doc.digest)
	}
}

// pullDigest is the same by digest.
func (r *modelRepository) pullDigest(doc document) {
	r.expire()
	want := r.wantDigest(r.as(doc))
	r.note("%s: pull %s: %v, %v", r.name, doc.digest, want.err, want.outcome)
	got, err := r.herd(func(ctx context.Context) (*manifestcache.Manifest, error) {
		return r.cache.ByDigest(ctx, r.name, doc.digest, r)
	})
	r.check(doc.digest.String(), want, got, err)
	switch {
	case errors.Is(want.err, errGone):
		delete(r.rights, doc.digest)
	case want.err == nil && (want.outcome == manifestcache.Miss || want.outcome == manifestcache.Revalidated):
		r.allow(doc.digest)
	}
}

func (r *modelRepository) allow(d digest.Digest) {
	a := r.rights[d]
	a.at = time.Now()
	if _, err := os.Stat(r.rightPath(d)); err == nil {
		a.removed = false
	}
	r.rights[d] = a
}

// wantTag is the naive cache.
func (r *modelRepository) wantTag(tag string) expected {
	known, ok := r.linked[tag]
	_, allowed := r.rights[known.doc.digest]
	usable := ok && allowed && r.stored(known.doc) == r.mediaType
	if usable && r.cfg.TagTTL > 0 && time.Since(known.at) < r.cfg.TagTTL {
		return expected{doc: known.doc, outcome: manifestcache.Hit, age: known.at}
	}
	stale := func(err error, asked int) expected {
		if usable {
			return expected{doc: known.doc, outcome: manifestcache.Stale, age: known.at, asked: asked}
		}
		return expected{err: err, asked: asked}
	}
	switch r.mood {
	case down, hanging:
		return stale(errDown, 1)
	case odd:
		return expected{err: errOther, asked: 1}
	case denying:
		return expected{err: errGone, asked: 1}
	}
	doc, ok := r.tags[tag]
	switch {
	case !ok:
		return expected{err: errGone, asked: 1}
	case !r.silent && r.stored(doc) == r.mediaType:
		return expected{doc: doc, outcome: manifestcache.Revalidated, asked: 1}
	case !r.silent && !r.has[doc.digest]:
		return expected{err: errGone, asked: 2}
	case r.mood == lying:
		return stale(manifestcache.ErrDigest, 2)
	}
	return expected{doc: doc, outcome: manifestcache.Miss, asked: 2}
}

func (r *modelRepository) wantDigest(doc document) expected {
	right, allowed := r.rights[doc.digest]
	mediaType := r.stored(doc)
	there, asked := mediaType == r.mediaType, 1
	if there && allowed && r.fresh(right.at) {
		return expected{doc: doc, outcome: manifestcache.Hit, age: right.at}
	}
	stale := func(err error) expected {
		if there && allowed {
			return expected{doc: doc, outcome: manifestcache.Stale, age: right.at, asked: asked}
		}
		return expected{err: err, asked: asked}
	}
	switch r.mood {
	case down, hanging:
		return stale(errDown)
	case odd:
		return expected{err: errOther, asked: 1}
	case denying:
		return expected{err: errGone, asked: 1}
	}
	switch {
	case !r.has[doc.digest]:
		return expected{err: errGone, asked: 1}
	case there && !r.silent:
		return expected{doc: doc, outcome: manifestcache.Revalidated, asked: 1}
	case mediaType != "":
		asked = 2 // a HEAD before
	}
	if r.mood == lying {
		return stale(manifestcache.ErrDigest)
	}
	return expected{doc: doc, outcome: manifestcache.Miss, asked: asked}
}

func (r *modelRepository) check(reference string, want expected, got *manifestcache.Manifest, err error) {
	switch {
	case want.err != nil || err != nil:
		if want.err == nil || !errors.Is(err, want.err) {
			r.t.Errorf("%s %s: %v, %v; want %v, %v", r.name, reference, got, err, want.outcome, want.err)
		}
	case got.Digest != want.doc.digest || got.MediaType != want.doc.mediaType || got.Size != int64(len(got.Body)) || !bytes.Equal(got.Body, want.doc.body):
		r.t.Errorf("%s %s: %s %q %q, want %s %q", r.name, reference, got.Digest, got.MediaType, got.Body, want.doc.digest, want.doc.mediaType)
	case got.Outcome != want.outcome:
		r.t.Errorf("%s %s: %v, want %v", r.name, reference, got.Outcome, want.outcome)
	case !want.age.IsZero() && got.Age != time.Since(want.age), want.age.IsZero() && got.Age != 0:
		r.t.Errorf("%s %s: of age %v, want what has been since %v", r.name, reference, got.Age, want.age)
	}
	if len(r.asked) != want.asked {
		r.t.Errorf("%s %s: upstream was asked %q, want %d questions", r.name, reference, r.asked, want.asked)
	}
}

// wantRight is whether a blob may be given out: by the word of upstream, or as
// a manifest that the repository has names it. That of one whose file is damaged
// counts until that is noticed.
func (r *modelRepository) wantRight(b digest.Digest) (least, most manifestcache.Right) {
	r.expire()
	if r.refused[b] {
		return least, most
	}
	judge := func(at time.Time) manifestcache.Right {
		if r.fresh(at) {
			return manifestcache.Granted
		}
		return manifestcache.Unrenewed
	}
	if at, ok := r.proven[b]; ok {
		if most = judge(at); !r.bounded {
			least = most
		}
	}
	for _, doc := range r.documents {
		a, ok := r.rights[doc.digest]
		if !ok || !bytes.Contains(doc.body, []byte(b)) {
			continue
		}
		if most = max(most, judge(a.at)); r.stored(doc) != "" && !r.bounded {
			least = max(least, judge(a.at))
		}
	}
	return least, most
}

func (r *modelRepository) rightPath(d digest.Digest) string {
	return rightPath(r.dir, &repository{name: r.name}, d)
}

func (r *modelRepository) tagPath(tag string) string {
	return tagPath(r.dir, &repository{name: r.name}, tag)
}

// expire notes which files are gone. Without a time to live none may be.
func (r *modelRepository) expire() {
	gone := func(path string) bool {
		_, err := os.Stat(path)
		if err != nil && r.cfg.TTL == 0 {
			r.t.Errorf("%s is gone", path)
		}
		return err != nil
	}
	for d, a := range r.rights {
		if !a.removed && gone(r.rightPath(d)) {
			delete(r.rights, d)
		}
	}
	for tag := range r.linked {
		if gone(r.tagPath(tag)) {
			delete(r.linked, tag)
		}
	}
}

// refuse notes that upstream has said no to a blob. What is one too many ends the
// rights to the manifests that name it, and perhaps to others.
func (r *modelRepository) refuse(b digest.Digest) {
	n := 0
	for _, other := range r.repositories {
		n += len(other.refused)
	}
	delete(r.proven, b)
	if !r.bounded || r.refused[b] || n < maxRefused {
		r.refused[b] = true
		return
	}
	for _, doc := range r.documents {
		if _, err := os.Stat(r.rightPath(doc.digest)); err != nil {
			delete(r.rights, doc.digest)
		} else if bytes.Contains(doc.body, []byte(b)) {
			r.t.Errorf("%s has a right to %s, which names a blob that it has not", r.name, doc.digest)
		}
	}
}

// reread is what is known after a restart: what the files say, and when.
func (r *modelRepository) reread() {
	clear(r.proven)
	clear(r.refused)
	for d := range r.rights {
		if fi, err := os.Stat(r.rightPath(d)); err == nil {
			r.rights[d] = allowed{at: fi.ModTime()}
		} else {
			delete(r.rights, d)
		}
	}
}

// relearn takes what the files say for what is known.
func (r *modelRepository) relearn() {
	clear(r.rights)
	clear(r.linked)
	for _, doc := range r.documents {
		if fi, err := os.Stat(r.rightPath(doc.digest)); err == nil {
			if !r.ever[doc.digest.String()] {
				r.t.Errorf("%s has a right to %s", r.name, doc.digest)
			}
			r.rights[doc.digest] = allowed{at: fi.ModTime()}
		}
	}
	for _, tag := range tags {
		data, err := os.ReadFile(r.tagPath(tag))
		var content struct {
			Reference  string             `json:"reference"`
			Descriptor ocispec.Descriptor `json:"descriptor"`
		}
		if err != nil || json.Unmarshal(data, &content) != nil || content.Reference != r.name+":"+tag {
			continue // or another tag's
		}
		fi, err := os.Stat(r.tagPath(tag))
		r.must(err)
		for _, doc := range r.documents {
			if doc.digest == content.Descriptor.Digest && r.ever[tag+"@"+doc.digest.String()] {
				r.linked[tag] = linked{r.as(doc), fi.ModTime()}
			}
		}
	}
}
