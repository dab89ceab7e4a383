package handler

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
)

// Globs are patterns of canonical repository names, such as
// docker.io/library/*: a * stands for any part of one element of the name, a **
// for anything.
type Globs []*regexp.Regexp

var (
	// globPattern allows what canonical names consist of, and stars.
	globPattern = regexp.MustCompile(`^[a-z0-9._:\[\]*-]+(/[a-z0-9._*-]+)+$|^\*\*$`)

	stars = regexp.MustCompile(`\*+`)
)

// ParseGlobs reads a comma list of globs. One that can match nothing of what the
// registries have is an error: whoever wrote it believes that it does. The error
// has every entry that is wrong, by its number.
func ParseGlobs(s string, registries []upstream.Registry) (Globs, error) {
	var globs Globs
	var errs []error
	for i, entry := range strings.Split(s, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		if err := checkGlob(entry, registries); err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		globs = append(globs, compileGlob(entry))
	}
	if len(globs) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("no repository listed"))
	}
	return globs, errors.Join(errs...)
}

func checkForm(glob string) error {
	if !globPattern.MatchString(glob) || strings.Contains(glob, "***") {
		return errors.New("not of the form host/repository, in lower case, with * for a part of one element and ** for anything")
	}
	return nil
}

func checkGlob(glob string, registries []upstream.Registry) error {
	if err := checkForm(glob); err != nil {
		return err
	}
	host, name, _ := strings.Cut(glob, "/")
	if strings.Contains(host, "**") {
		return nil
	}
	hosts := compileGlob(host)
	matches := func(r upstream.Registry) bool { return hosts.MatchString(r.Host) }
	switch {
	case !slices.ContainsFunc(registries, matches):
		return errors.New("begins with no host of LARDER_UPSTREAMS (Docker Hub's is docker.io)")
	case host == "docker.io" && !strings.Contains(name, "/") && !strings.Contains(name, "**"):
		return errors.New("matches nothing: names at Docker Hub have two elements, as in docker.io/library/alpine; all of it is docker.io/**")
	}
	return nil
}

func compileGlob(glob string) *regexp.Regexp {
	var pattern strings.Builder
	end := 0
	for _, at := range stars.FindAllStringIndex(glob, -1) {
		pattern.WriteString(regexp.QuoteMeta(glob[end:at[0]]))
		if end = at[1]; end-at[0] == 1 {
			pattern.WriteString("[^/]*")
		} else {
			pattern.WriteString(".*")
		}
	}
	pattern.WriteString(regexp.QuoteMeta(glob[end:]))
	return regexp.MustCompile("(?s)^" + pattern.String() + "$") // stars and quoted text alone
}

// ParseGlob reads one glob, of whatever hosts: what is cached may be of others
// than those that are listed now.
func ParseGlob(s string) (Globs, error) {
	if err := checkForm(s); err != nil {
		return nil, err
	}
	return Globs{compileGlob(s)}, nil
}

// Match reports whether one of the globs matches a canonical name.
func (g Globs) Match(repository string) bool {
	return slices.ContainsFunc(g, func(p *regexp.Regexp) bool { return p.MatchString(repository) })
}

// ImageGlobs are patterns of images: of repositories, for all that they have, or
// with a pattern of tags, or a digest, behind that.
type ImageGlobs []imageGlob

type imageGlob struct {
	repository Globs
	reference  *regexp.Regexp // nil: any
}

// ParseImageGlobs reads a comma list such as
// docker.io/library/alpine:3.*,ghcr.io/org/**, as ParseGlobs does.
func ParseImageGlobs(s string, registries []upstream.Registry) (ImageGlobs, error) {
	var globs ImageGlobs
	var errs []error
	for i, entry := range strings.Split(s, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		glob, err := parseImageGlob(entry, registries)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		globs = append(globs, glob)
	}
	if len(globs) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("no image listed"))
	}
	return globs, errors.Join(errs...)
}

func parseImageGlob(entry string, registries []upstream.Registry) (glob imageGlob, err error) {
	repository, d, exact := strings.Cut(entry, "@")
	if i := strings.LastIndexByte(repository, ':'); !exact && i > strings.LastIndexByte(repository, '/') {
		tag := repository[i+1:]
		if !upstream.ValidTag(strings.ReplaceAll(tag, "*", "x")) {
			return glob, errors.New("not a tag, nor a pattern of tags like 3.*")
		}
		repository, glob.reference = repository[:i], compileGlob(tag)
	}
	if exact {
		if digest.Digest(d).Validate() != nil {
			return glob, errors.New("not a digest")
		}
		glob.reference = compileGlob(d)
	}
	if err := checkGlob(repository, registries); err != nil {
		return glob, err
	}
	glob.repository = Globs{compileGlob(repository)}
	return glob, nil
}

// Match reports whether one of the globs matches a canonical name and a tag or
// digest.
func (g ImageGlobs) Match(repository, reference string) bool {
	return slices.ContainsFunc(g, func(one imageGlob) bool {
		return one.repository.Match(repository) && (one.reference == nil || one.reference.MatchString(reference))
	})
}
