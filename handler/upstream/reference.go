package upstream

import (
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ErrReference says that something is no reference to an image.
var ErrReference = errors.New("invalid reference")

// SplitReference takes apart what people and clients write for an image, as in
// alpine, ghcr.io/org/app:1 or quay.io/org/app:1@sha256:…, perhaps with skopeo's
// docker:// before it. What there is of a tag and a digest is valid; what the
// name means, Client.Repository says.
func SplitReference(s string) (name, tag string, d digest.Digest, err error) {
	name, text, pinned := strings.Cut(strings.TrimPrefix(s, "docker://"), "@")
	if pinned {
		if d, err = digest.Parse(text); err != nil || !supported(d) {
			return "", "", "", ErrReference
		}
	}
	// A colon before the last slash is that of a port.
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		if name, tag = name[:i], name[i+1:]; !ValidTag(tag) {
			return "", "", "", ErrReference
		}
	}
	if name == "" {
		return "", "", "", ErrReference
	}
	return name, tag, d, nil
}

func supported(d digest.Digest) bool {
	return d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512
}

// ValidTag reports whether s is of the form [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func ValidTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
