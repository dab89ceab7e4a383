package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"larder/blobcache"
	"larder/handler/upstream"
)

// limit is a number of bytes like 50GiB, a share of the file system like 80%, or
// both with a comma between, of which the lesser counts.
type limit blobcache.Limit

var errLimit = errors.New("not a size")

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *limit) UnmarshalText(text []byte) error {
	*l = limit{}
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if share, ok := strings.CutSuffix(part, "%"); ok {
			percent, err := strconv.ParseFloat(share, 64)
			if err != nil || !(percent > 0 && percent <= 100) {
				return errLimit
			}
			l.Percent = percent
			continue
		}
		bytes, err := parseSize(part)
		if err != nil {
			return err
		}
		l.Bytes = bytes
	}
	return nil
}

// size is a number of bytes like 16MiB.
type size int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *size) UnmarshalText(text []byte) error {
	bytes, err := parseSize(string(text))
	*s = size(bytes)
	return err
}

func parseSize(s string) (int64, error) {
	bytes, err := units.RAMInBytes(s)
	if err != nil || bytes < 0 {
		return 0, errLimit
	}
	return bytes, nil
}

// quotas are what may be kept of registries and repositories, as in
// "ghcr.io=20GiB,docker.io/library=5GiB".
type quotas []blobcache.Quota

// UnmarshalText implements encoding.TextUnmarshaler.
func (q *quotas) UnmarshalText(text []byte) error {
	*q = nil
	for part := range strings.SplitSeq(string(text), ",") {
		owner, size, ok := strings.Cut(strings.TrimSpace(part), "=")
		bytes, err := parseSize(size)
		if !ok || owner == "" || err != nil || bytes == 0 {
			return errLimit
		}
		*q = append(*q, blobcache.Quota{Owner: owner, Bytes: bytes})
	}
	return nil
}

// check finds quotas that can never count.
func (q quotas) check(upstreams []upstream.Registry) (problems []error) {
	seen := make(map[string]bool)
	for _, quota := range q {
		host, _, _ := strings.Cut(quota.Owner, "/")
		listed := false
		for _, u := range upstreams {
			listed = listed || u.Host == host
		}
		if !listed {
			problems = append(problems, fmt.Errorf("LARDER_QUOTA: %s is not in LARDER_UPSTREAMS", host))
		}
		if seen[quota.Owner] {
			problems = append(problems, fmt.Errorf("LARDER_QUOTA: %s is there twice", quota.Owner))
		}
		seen[quota.Owner] = true
	}
	return problems
}
