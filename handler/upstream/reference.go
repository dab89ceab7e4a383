package upstream

import (
	"crypto/sha256"
	"crypto/sha512"
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

// ValidDigest reports whether d is a sha256 or sha512 digest. It is digest.Validate
// without regular expressions, for each request has one.
func ValidDigest(d digest.Digest) bool {
	encoded, ok := strings.CutPrefix(string(d), "sha256:")
	size := 2 * sha256.Size
	if !ok {
		encoded, ok = strings.CutPrefix(string(d), "sha512:")
		size = 2 * sha512.Size
	}
	if !ok || len(encoded) != size {
		return false
	}
	for _, c := range []byte(encoded) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// validName reports whether s is of the form that the OCI distribution spec gives
// (Pulling manifests, <name>):
// [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*
func validName(s string) bool {
	for component := range strings.SplitSeq(s, "/") {
		if !validComponent(component) {
			return false
		}
	}
	return true
}

func validComponent(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); i++ {
		if alphanumeric(s[i]) {
			continue
		}
		start := i
		for s[i+1] == s[start] {
			i++
		}
		switch separator := s[start : i+1]; {
		case !alphanumeric(s[i+1]):
			return false
		case separator == ".", separator == "_", separator == "__", separator[0] == '-':
		default:
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

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
