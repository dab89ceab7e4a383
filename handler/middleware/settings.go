package middleware

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// VariablePrefix begins the names of the variables that are options of
// middlewares: LARDER_MIDDLEWARE_<NAME>_<OPTION>.
const VariablePrefix = "LARDER_MIDDLEWARE_"

// Settings are the options of one middleware, by the last part of their
// variables. What its InitFunc asks for is what there is: another one that is
// set is an error.
type Settings struct {
	prefix string            // of the variables
	values map[string]string // not empty
	known  []string
	errs   []error
}

// optionPrefix begins the variables of one middleware.
func optionPrefix(name string) string { return VariablePrefix + strings.ToUpper(name) + "_" }

// newSettings picks those of one middleware.
func newSettings(name string, variables map[string]string) *Settings {
	s := &Settings{prefix: optionPrefix(name), values: make(map[string]string)}
	for variable, value := range variables {
		if option, ok := strings.CutPrefix(variable, s.prefix); ok && value != "" {
			s.values[option] = value
		}
	}
	return s
}

// Text hands the option's value, if it is set, to parse. Form says what one looks
// like, as in "a number, 1 or more", for the operator whose value parse refuses:
// the value is not repeated, as it may be a secret in the wrong place.
func (s *Settings) Text(option, form string, parse func(value string) error) {
	s.known = append(s.known, option)
	if value, ok := s.values[option]; ok && parse(value) != nil {
		s.errs = append(s.errs, fmt.Errorf("%s%s: not %s", s.prefix, option, form))
	}
}

// Int is an option's value, or the fallback. It may not be less than least.
func (s *Settings) Int(option string, fallback, least int) int {
	n := fallback
	s.Text(option, fmt.Sprintf("a number, %d or more", least), func(value string) (err error) {
		n, err = strconv.Atoi(value)
		return cmp.Or(err, atLeast(n, least))
	})
	return n
}

// Duration is an option's value, or the fallback. It may not be less than least.
func (s *Settings) Duration(option string, fallback, least time.Duration) time.Duration {
	d := fallback
	s.Text(option, fmt.Sprintf("a duration like 30s, %v or more", least), func(value string) (err error) {
		d, err = time.ParseDuration(value)
		return cmp.Or(err, atLeast(d, least))
	})
	return d
}

var errTooSmall = errors.New("too small")

func atLeast[T cmp.Ordered](value, least T) error {
	if value < least {
		return errTooSmall
	}
	return nil
}

// problems are the wrong values, and the options that there are not.
func (s *Settings) problems() []error {
	errs := s.errs
	for _, option := range slices.Sorted(maps.Keys(s.values)) {
		if slices.Contains(s.known, option) {
			continue
		}
		known := "there are none"
		if len(s.known) > 0 {
			known = "there are " + s.prefix + strings.Join(s.known, ", "+s.prefix)
		}
		errs = append(errs, fmt.Errorf("%s%s: no such option; %s", s.prefix, option, known))
	}
	return errs
}
