package store

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// maxKey is how long a key may be. S3 takes 1,024 bytes with the prefix, most file
// systems 255 per element.
const (
	maxKey     = 512
	maxElement = 200
	maxParts   = 10000 // as S3 has it
)

var errKey = errors.New("no valid key")

// CheckKey says what is wrong with a key, if it is none: keys are relative paths of
// letters, digits, "-", "_" and ".", parted by slashes. An element that begins with a
// dot is a store's own.
func CheckKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("%w: %d bytes", errKey, len(key))
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element[0] == '.' || len(element) > maxElement || strings.ContainsFunc(element, odd) {
			return fmt.Errorf("%w: %.100q", errKey, key)
		}
	}
	return nil
}

// CheckPrefix says what is wrong with the prefix of a listing.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	directory, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fmt.Errorf("%w: the prefix %.100q does not end in a slash", errKey, prefix)
	}
	return CheckKey(directory)
}

// CheckParts says what is wrong with what Compose is given.
func CheckParts(key string, parts []string) error {
	if len(parts) == 0 || len(parts) > maxParts {
		return fmt.Errorf("%d parts", len(parts))
	}
	for _, part := range parts {
		if err := CheckKey(part); err != nil {
			return err
		}
	}
	return CheckKey(key)
}

// CheckRange says what is wrong with what Get is given.
func CheckRange(offset, length int64) error {
	if offset < 0 || length < -1 || length == 0 || length > math.MaxInt64-offset {
		return fmt.Errorf("%w: %d bytes at %d", ErrRange, length, offset)
	}
	return nil
}

// odd reports whether r can't be in a key.
func odd(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_.", r)
}
