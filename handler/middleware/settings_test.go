package middleware_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"larder/handler/middleware"
)

// withOptions is a registry with a middleware that has some, and keeps what it got.
func withOptions(t *testing.T) (r *middleware.Registry, count *int, wait *time.Duration, words *[]string) {
	t.Helper()
	r, count, wait, words = middleware.Builtin(), new(int), new(time.Duration), new([]string)
	err := r.Register("mine", func(opts middleware.Options) (middleware.Middleware, error) {
		*count = opts.Settings.Int("COUNT", 7, 1)
		*wait = opts.Settings.Duration("MAX_WAIT", 5*time.Second, 0)
		opts.Settings.Text("WORDS", "words with commas", func(value string) error {
			*words = strings.Split(value, ",")
			if slices.Contains(*words, "") {
				return errors.New("empty")
			}
			return nil
		})
		return func(h http.Handler) http.Handler { return h }, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, count, wait, words
}

func TestSettings(t *testing.T) {
	r, count, wait, words := withOptions(t)
	get := func(variables map[string]string) {
		t.Helper()
		if _, err := r.Get("mine", middleware.Options{Variables: variables}); err != nil {
			t.Error(err)
		}
	}
	get(map[string]string{"LARDER_MIDDLEWARE_MINE_COUNT": "", "LARDER_MIDDLEWARE_OTHER_COUNT": "x", "LARDER_ADDR": "x"})
	if *count != 7 || *wait != 5*time.Second || *words != nil {
		t.Errorf("got %d, %v, %q; want the defaults", *count, *wait, *words)
	}
	get(map[string]string{"LARDER_MIDDLEWARE_MINE_COUNT": "1", "LARDER_MIDDLEWARE_MINE_MAX_WAIT": "2m", "LARDER_MIDDLEWARE_MINE_WORDS": "a,b"})
	if *count != 1 || *wait != 2*time.Minute || !slices.Equal(*words, []string{"a", "b"}) {
		t.Errorf("got %d, %v, %q; want what is set", *count, *wait, *words)
	}
}

func TestCheck(t *testing.T) {
	tests := map[string]struct {
		variables []string // without LARDER_MIDDLEWARE_
		names     string
		want      []string // what the errors have, in order
	}{
		"fine":           {[]string{"MINE_COUNT=1", "MINE_MAX_WAIT=0s"}, "log mine", nil},
		"not a number":   {[]string{"MINE_COUNT=hush"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_COUNT: not a number, 1 or more"}},
		"too small":      {[]string{"MINE_COUNT=0"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_COUNT: not a number, 1 or more"}},
		"no duration":    {[]string{"MINE_MAX_WAIT=5"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_MAX_WAIT: not a duration like 30s, 0s or more"}},
		"negative":       {[]string{"MINE_MAX_WAIT=-5s"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_MAX_WAIT: not"}},
		"not parsed":     {[]string{"MINE_WORDS=hush,,"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_WORDS: not words with commas"}},
		"no such option": {[]string{"MINE_COUNTER=1"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_COUNTER: no such option; there are LARDER_MIDDLEWARE_MINE_COUNT, LARDER_MIDDLEWARE_MINE_MAX_WAIT, LARDER_MIDDLEWARE_MINE_WORDS"}},
		"no options":     {[]string{"LOG_LEVEL=debug"}, "log", []string{"LARDER_MIDDLEWARE_LOG_LEVEL: no such option; there are none"}},
		"not in chain":   {[]string{"MINE_COUNT=1"}, "log", []string{"LARDER_MIDDLEWARE_MINE_COUNT: set, but LARDER_MIDDLEWARE is without mine"}},
		"nobody's":       {[]string{"HUSK_COUNT=1"}, "mine", []string{"LARDER_MIDDLEWARE_HUSK_COUNT: no option of a middleware; there are allow, audit, auth,"}},
		"no option":      {[]string{"COUNT=1"}, "mine", []string{"LARDER_MIDDLEWARE_COUNT: no option of a middleware"}},
		"name only":      {[]string{"MINE=1"}, "mine", []string{"LARDER_MIDDLEWARE_MINE: no option of a middleware"}},
		"underscore":     {[]string{"MINE_=1"}, "mine", []string{"LARDER_MIDDLEWARE_MINE_: no such option"}},
		"lower case":     {[]string{"mine_COUNT=1"}, "mine", []string{"LARDER_MIDDLEWARE_mine_COUNT: no option of a middleware"}},
		"no name":        {nil, "log hush", []string{"LARDER_MIDDLEWARE: entry 2 is no middleware; there are allow, audit, auth, limit, log, metrics, mine,"}},
		"twice":          {nil, "log mine log", []string{"LARDER_MIDDLEWARE: entry 3 is there twice"}},
		"all at once": {
			[]string{"MINE_COUNT=x", "MINE_MAX_WAIT=x", "MINE_X=x", "AUTH_X=x", "Z_Z=x"},
			"x mine",
			[]string{"entry 1", "MINE_COUNT", "MINE_MAX_WAIT", "MINE_X", "AUTH_X", "Z_Z"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, _, _, _ := withOptions(t)
			variables := make(map[string]string)
			for _, v := range test.variables {
				option, value, _ := strings.Cut(v, "=")
				variables[middleware.VariablePrefix+option] = value
			}
			errs := r.Check(variables, strings.Fields(test.names)...)
			if len(errs) != len(test.want) {
				t.Fatalf("got %q, want %q", errs, test.want)
			}
			for i, want := range test.want {
				if text := errs[i].Error(); !strings.Contains(text, want) || strings.Contains(text, "hush") || !strings.HasPrefix(text, "LARDER_") {
					t.Errorf("got %q, want %q and no value", text, want)
				}
			}
		})
	}
}
