package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/blobcache"
	"larder/manifestcache"
)

const (
	// maxPages bounds how long a list of tags may be.
	maxPages = 1000

	// maxDepth is how many indexes may be in one another, and maxManifests how many
	// manifests one reference may lead to.
	maxDepth     = 4
	maxManifests = 1000

	// maxBlobs is how many blobs they may name, and maxLayers how many different ones
	// an order may lead to. Registries say what these are: without a bound, one could
	// fill the memory.
	maxBlobs  = 10_000
	maxLayers = 100_000
)

// document is what matters here of manifests and indexes.
type document struct {
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Blobs     []ocispec.Descriptor `json:"blobs"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	FSLayers  []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"`
}

// closure is what one reference leads to.
type closure struct {
	seen  map[digest.Digest]bool
	blobs []ocispec.Descriptor
}

// add adds what can be had from a registry, or says that it is too much.
func (c *closure) add(blobs ...ocispec.Descriptor) error {
	for _, b := range blobs {
		if b.Digest.Validate() != nil || len(b.URLs) > 0 || c.seen[b.Digest] {
			continue
		}
		if len(c.blobs) == maxBlobs {
			return fmt.Errorf("it leads to more than %d blobs", maxBlobs)
		}
		c.seen[b.Digest] = true
		c.blobs = append(c.blobs, b)
	}
	return nil
}

// image warms one reference: its manifests one after the other, as they say what
// else there is, and then all blobs.
func (w *Warmer) image(ctx context.Context, j *Job, img *Image) error {
	c := &closure{seen: make(map[digest.Digest]bool)}
	if err := w.walk(ctx, j, img, c, img.ref.name(), 0); err != nil {
		return err
	}
	j.change(&img.seq, func() { img.Blobs = len(c.blobs) })
	var all sync.WaitGroup
	errs := make([]error, len(c.blobs))
	for i, b := range c.blobs {
		l, first := j.layer(b.Digest, b.Size, img.Reference)
		if l == nil {
			errs[i] = fmt.Errorf("the order leads to more than %d blobs", maxLayers)
			break
		}
		if first {
			all.Go(func() { w.blob(ctx, j, img, l) })
		}
		all.Go(func() { errs[i] = j.await(ctx, img, l, first) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// walk gets a manifest and those that it lists.
func (w *Warmer) walk(ctx context.Context, j *Job, img *Image, c *closure, name string, depth int) error {
	m, body, err := w.cfg.Registry.Manifest(ctx, img.ref.repo, name)
	if err != nil {
		return err
	}
	j.change(&img.seq, func() {
		img.Manifests++
		img.Stale = img.Stale || m.Outcome == manifestcache.Stale
		if depth == 0 {
			img.Digest = m.Digest
		}
	})
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil // of a type that nobody here knows; it is here
	}
	blobs := slices.Concat([]ocispec.Descriptor{doc.Config}, doc.Layers, doc.Blobs)
	for _, l := range doc.FSLayers {
		blobs = append(blobs, ocispec.Descriptor{Digest: l.BlobSum, Size: -1})
	}
	if err := c.add(blobs...); err != nil {
		return err
	}
	found := false
	var platforms []string
	for _, child := range doc.Manifests {
		if !j.platforms.want(child.Platform) {
			if p := child.Platform; p != nil && len(platforms) < 20 {
				platforms = append(platforms, strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
			}
			continue
		}
		found = true
		if child.Digest.Validate() != nil || c.seen[child.Digest] {
			continue
		}
		if c.seen[child.Digest] = true; depth == maxDepth || img.Manifests == maxManifests {
			return errors.New("the index leads to too much")
		}
		if err := w.walk(ctx, j, img, c, string(child.Digest), depth+1); err != nil {
			return fmt.Errorf("%s: %w", child.Digest, err)
		}
	}
	if len(doc.Manifests) > 0 && !found {
		return fmt.Errorf("the index has no image for a platform that is wanted; it has %q", platforms)
	}
	return nil
}

// blob has a blob kept, when there is a turn for it.
func (w *Warmer) blob(ctx context.Context, j *Job, img *Image, l *Layer) {
	outcome, err := blobcache.Hit, w.blobs.Acquire(ctx, 1)
	if err == nil {
		j.change(&l.seq, func() { l.State = Running })
		outcome, err = w.cfg.Registry.Fill(ctx, img.ref.repo, l.Digest, func(have, size int64) {
			j.change(&l.seq, func() { l.Have, l.Size = have, max(l.Size, size) })
		})
		w.blobs.Release(1)
	}
	j.change(&l.seq, func() {
		l.err, l.was = err, outcome == blobcache.Hit
		switch {
		case err == nil:
			l.State, l.Have = Done, max(l.Size, 0)
		case ctx.Err() != nil:
			l.State = Stopped
		default:
			l.State = Failed
		}
	})
	if err == nil && outcome != blobcache.Hit {
		w.count.fetched.Add(max(l.Size, 0))
	}
	close(l.done)
}

// await waits for a blob that an image needs, whoever has it fetched. Its bytes
// count as fetched for the first only.
func (j *Job) await(ctx context.Context, img *Image, l *Layer, first bool) error {
	select {
	case <-l.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l.err != nil {
		return fmt.Errorf("blob %s: %w", l.Digest, l.err)
	}
	j.change(&img.seq, func() {
		if first && !l.was {
			img.Fetched += max(l.Size, 0)
		} else {
			img.Cached += max(l.Size, 0)
		}
	})
	return nil
}
