package warm

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
)

// errReference says what a reference looks like. What was written is not repeated:
// it may be anything.
var errReference = errors.New("not a reference like docker.io/library/alpine:3.20, docker.io/library/alpine:3.* or ghcr.io/org/app@sha256:…")

// reference is what is to be warmed: a manifest, or all tags that match a pattern.
type reference struct {
	repo    *upstream.Repository
	tag     string // "" if there is a digest; it may be a pattern
	digest  digest.Digest
	pattern bool
}

// String is the reference with its registry.
func (r reference) String() string {
	if r.digest != "" {
		return r.repo.String() + "@" + string(r.digest)
	}
	return r.repo.String() + ":" + r.tag
}

// name is a tag or a digest.
func (r reference) name() string {
	if r.digest != "" {
		return string(r.digest)
	}
	return r.tag
}

// matches reports whether the pattern is one of the tag.
func (r reference) matches(tag string) bool {
	ok, _ := path.Match(r.tag, tag) // there are only stars in it
	return ok && upstream.ValidTag(tag)
}

// parse reads a reference as people write it. As with clients, a digest wins over
// a tag, and without either it is latest.
func (w *Warmer) parse(text string) (reference, error) {
	plain, tag := text, ""
	i := strings.LastIndexByte(text, ':')
	pattern := i > strings.LastIndexByte(text, '/') && strings.Contains(text[i:], "*")
	if pattern {
		if plain, tag = text[:i], text[i+1:]; !upstream.ValidTag(strings.ReplaceAll(tag, "*", "x")) {
			return reference{}, errReference
		}
	}
	name, exact, d, err := upstream.SplitReference(plain)
	if err != nil || pattern && (exact != "" || d != "") {
		return reference{}, errReference
	}
	r := reference{tag: tag, digest: d, pattern: pattern}
	if !pattern && d == "" {
		if r.tag = exact; exact == "" {
			r.tag = "latest"
		}
	}
	switch r.repo, err = w.cfg.Upstreams.Repository("", name); {
	case errors.Is(err, upstream.ErrNotListed):
		return reference{}, errors.New("of a registry that is not in LARDER_UPSTREAMS")
	case err != nil:
		return reference{}, errReference
	}
	if setting := w.cfg.Denied(r.repo.String()); setting != "" {
		return reference{}, fmt.Errorf("%s is not served: %s", r.repo, setting)
	}
	return r, nil
}

// parseAll reads references, each once. The error has every one that is wrong, by
// its number.
func (w *Warmer) parseAll(texts []string) ([]reference, error) {
	if len(texts) > maxReferences { // nor as many errors
		return nil, fmt.Errorf("more than %d references", maxReferences)
	}
	var list []reference
	var errs []error
	seen := make(map[string]bool)
	for i, text := range texts {
		r, err := w.parse(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		if !seen[r.String()] {
			seen[r.String()] = true
			list = append(list, r)
		}
	}
	if len(list) == 0 && errs == nil {
		errs = append(errs, errors.New("no reference"))
	}
	return list, errors.Join(errs...)
}

// Split takes references apart that are written one a line or with commas between.
// What follows a # on a line is a comment.
func Split(text string) (references []string) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimSpace(one); one != "" {
				references = append(references, one)
			}
		}
	}
	return references
}

// Platforms are those of whose images an index is warmed; nil: all.
type Platforms []ocispec.Platform

// ParsePlatforms reads "linux/amd64,linux/arm/v7", or "all"; "" is this machine's.
func ParsePlatforms(s string) (Platforms, error) {
	if s == "all" {
		return nil, nil
	}
	if s == "" {
		return Platforms{{OS: "linux", Architecture: runtime.GOARCH}}, nil // as images are, whatever larder runs on
	}
	var list Platforms
	for one := range strings.SplitSeq(s, ",") {
		parts := strings.Split(strings.TrimSpace(one), "/")
		if len(parts) < 2 || len(parts) > 3 || len(one) > 100 || strings.Contains("/"+strings.Join(parts, "/")+"/", "//") {
			return nil, errors.New("not a list of platforms like linux/amd64,linux/arm64 or linux/arm/v7, nor all")
		}
		list = append(list, ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: strings.Join(parts[2:], "")})
	}
	return list, nil
}

// want reports whether an image that an index lists is one of these. One that says
// nothing of its platform is not an image to run, or only listed by all.
func (p Platforms) want(of *ocispec.Platform) bool {
	if p == nil {
		return true
	}
	for _, one := range p {
		if of != nil && of.OS == one.OS && of.Architecture == one.Architecture && (one.Variant == "" || one.Variant == of.Variant) {
			return true
		}
	}
	return false
}
