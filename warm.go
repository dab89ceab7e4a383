package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"larder/auth/watched"
	"larder/handler/warm"
)

// maxWarmFile bounds a list of references.
const maxWarmFile = 1 << 20

// platforms are those of the images that are warmed.
type platforms string

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *platforms) UnmarshalText(text []byte) error {
	*p = platforms(text)
	_, err := warm.ParsePlatforms(string(text))
	return err
}

// openWarmer needs the handler. list is what LARDER_WARM says, nil if that is
// nothing.
func (p *program) openWarmer() (list func() []string, err error) {
	wanted, err := warm.ParsePlatforms(string(p.cfg.WarmPlatforms))
	if err != nil {
		return nil, err // it was checked
	}
	p.warmer = warm.New(warm.Config{
		Registry: p.handler, Upstreams: p.upstreams, Platforms: wanted, Denied: p.cfg.denied, Logger: p.log.Named("warm"),
	})
	if p.cfg.Warm == "" {
		return nil, nil
	}
	path, named := strings.CutPrefix(p.cfg.Warm, "@")
	if !named && !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, ".") {
		references := warm.Split(p.cfg.Warm)
		if err := p.warmer.Check(references); err != nil {
			return nil, &configError{[]error{fmt.Errorf("LARDER_WARM: %w", err)}}
		}
		return func() []string { return references }, nil
	}
	file, err := watched.Open("list of what to warm", p.log.Named("warm"), func() ([]string, error) { return p.readWarmList(path) }, path)
	if err != nil {
		return nil, &configError{[]error{fmt.Errorf("LARDER_WARM: %w", err)}}
	}
	return file.Get, nil
}

// readWarmList reads a list that may be empty: nothing is to be warmed for now.
func (p *program) readWarmList(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxWarmFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxWarmFile {
		return nil, errors.New("too large")
	}
	references := warm.Split(string(text))
	if len(references) == 0 {
		return nil, nil
	}
	return references, p.warmer.Check(references)
}

// prefetchKind is what has a pull begin before it is asked for.
type prefetchKind string

const (
	prefetchOff      prefetchKind = "off"
	prefetchManifest prefetchKind = "manifest"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *prefetchKind) UnmarshalText(text []byte) error {
	if *k = prefetchKind(text); *k != prefetchOff && *k != prefetchManifest {
		return errors.New("no such kind")
	}
	return nil
}
