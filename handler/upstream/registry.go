package upstream

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// dockerHub is the one host with aliases, a URL of another name, and a prefix
// for names of one element.
const (
	dockerHub        = "docker.io"
	dockerHubURL     = "https://registry-1.docker.io"
	dockerHubLibrary = "library/"
)

// maxName bounds a repository's name, as the OCI distribution spec suggests.
const maxName = 255

var (
	// ErrNotListed says that a host is not one that may be contacted.
	ErrNotListed = errors.New("upstream not listed")

	// ErrName says that a repository's name is not of the form that the OCI
	// distribution spec gives (Pulling manifests, <name>).
	ErrName = errors.New("invalid repository name")

	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]{1,5})?$|^\[[0-9a-fA-F:]+\](:[0-9]{1,5})?$`)
)

// Registry is one upstream: what it is called and where it is.
type Registry struct {
	Host string     // as in image references and in containerd's ?ns=
	URLs []*url.URL // scheme and host only; several have the same, the first is preferred
}

// canonicalHost is the one name of a host that has several.
func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return dockerHub
	default:
		return host
	}
}

// ParseList reads a comma list of host, host=url or host=url|url, as in
// "docker.io,ghcr.io=http://127.0.0.1:6000". The error has every entry that is
// wrong.
func ParseList(s string) ([]Registry, error) {
	var list []Registry
	var errs []error
	for i, entry := range strings.Split(s, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		r, err := parseRegistry(entry)
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		if slices.ContainsFunc(list, func(other Registry) bool { return other.Host == r.Host }) {
			errs = append(errs, fmt.Errorf("%q is listed twice", r.Host))
			continue
		}
		list = append(list, r)
	}
	if len(list) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("no upstream listed"))
	}
	return list, errors.Join(errs...)
}

// parseRegistry shows in its errors nothing that may hold a password.
func parseRegistry(entry string) (Registry, error) {
	host, where, given := strings.Cut(entry, "=")
	host = canonicalHost(strings.TrimSpace(host))
	if !isHost(host) {
		return Registry{}, errors.New("not a host name, as in docker.io or registry.example:5000")
	}
	switch {
	case given:
	case host == dockerHub:
		where = dockerHubURL
	default:
		where = "https://" + host
	}
	r := Registry{Host: host}
	for one := range strings.SplitSeq(where, "|") {
		u, err := parseURL(host, one)
		if err != nil {
			return Registry{}, err
		}
		if slices.ContainsFunc(r.URLs, func(other *url.URL) bool { return *other == *u }) {
			return Registry{}, fmt.Errorf("a URL of %s is listed twice", host)
		}
		r.URLs = append(r.URLs, u)
	}
	return r, nil
}

func parseURL(host, where string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(strings.TrimSpace(where), "/"))
	if err != nil {
		return nil, fmt.Errorf("the URL of %s can't be parsed", host)
	}
	if u.User != nil {
		return nil, fmt.Errorf("the URL of %s holds credentials; see LARDER_USERNAME and Docker's config.json", host)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || !isHost(u.Host) || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the URL of %s is not http:// or https:// and a host, and nothing else", host)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// isHost reports whether s is a host name or address, with a port or without.
func isHost(s string) bool {
	if !hostPattern.MatchString(s) {
		return false
	}
	u := url.URL{Host: s}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return u.Port() == "" || (err == nil && port > 0)
}

// resolve finds the registry and the repository's name there, as clients mean
// them: ns (containerd's ?ns=) if it is not empty, else the first element of
// name if that is a host, else the default upstream.
func resolve(list []Registry, ns, name string) (Registry, string, error) {
	registry := list[0]
	first, rest, nested := strings.Cut(name, "/")
	switch {
	case ns != "":
		r, ok := find(list, ns)
		if !ok {
			return Registry{}, "", ErrNotListed
		}
		registry = r
	case nested:
		if r, ok := find(list, first); ok {
			registry, name = r, rest
		} else if looksLikeHost(first) {
			return Registry{}, "", ErrNotListed
		}
	}
	if registry.Host == dockerHub && !strings.Contains(name, "/") {
		name = dockerHubLibrary + name
	}
	if len(name) > maxName || !validName(name) {
		return Registry{}, "", ErrName
	}
	return registry, name, nil
}

func find(list []Registry, host string) (Registry, bool) {
	host = canonicalHost(host)
	i := slices.IndexFunc(list, func(r Registry) bool { return r.Host == host })
	if i < 0 {
		return Registry{}, false
	}
	return list[i], true
}

// looksLikeHost is how Docker's references tell a host from the first element
// of a repository's name.
func looksLikeHost(s string) bool {
	return (strings.ContainsAny(s, ".:") || s == "localhost") && hostPattern.MatchString(s)
}
