package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/caarlos0/env/v11"
	"go.uber.org/zap/zapcore"

	"larder/handler"
	"larder/handler/middleware"
	"larder/handler/upstream"
)

// config is the environment, read. It is the program's whole configuration.
type config struct {
	Addr         string `env:"LARDER_ADDR" envDefault:"127.0.0.1:5000"`
	AdminAddr    string `env:"LARDER_ADMIN_ADDR"`
	UpstreamList string `env:"LARDER_UPSTREAMS" envDefault:"docker.io"`
	ParentURL    string `env:"LARDER_PARENT"`
	CacheDir     string `env:"LARDER_CACHE_DIR"`

	Allow string `env:"LARDER_ALLOW"`
	Deny  string `env:"LARDER_DENY"`

	Catalog bool `env:"LARDER_CATALOG" envDefault:"false"`

	Username     string `env:"LARDER_USERNAME"`
	Password     string `env:"LARDER_PASSWORD" secret:"yes"`
	PasswordFile string `env:"LARDER_PASSWORD_FILE"`

	BlobTTL     time.Duration `env:"LARDER_BLOB_TTL" envDefault:"168h"`
	ManifestTTL time.Duration `env:"LARDER_MANIFEST_TTL" envDefault:"168h"`
	TagTTL      time.Duration `env:"LARDER_TAG_TTL" envDefault:"0s"`
	ListTTL     time.Duration `env:"LARDER_LIST_TTL" envDefault:"60s"`

	MaxSize limit  `env:"LARDER_MAX_SIZE" envDefault:"0"`
	MinFree limit  `env:"LARDER_MIN_FREE" envDefault:"1GiB,5%"`
	Quotas  quotas `env:"LARDER_QUOTA"`

	Memory size `env:"LARDER_MEMORY" envDefault:"64MiB"`

	ScrubInterval time.Duration `env:"LARDER_SCRUB_INTERVAL" envDefault:"168h"`
	ScrubRate     size          `env:"LARDER_SCRUB_RATE" envDefault:"16MiB"`

	FetchConnections    connections `env:"LARDER_FETCH_CONNECTIONS" envDefault:"4"`
	UpstreamConnections connections `env:"LARDER_UPSTREAM_CONNECTIONS" envDefault:"32"`
	RateLimitFloor      pulls       `env:"LARDER_RATELIMIT_FLOOR" envDefault:"5"`

	Prefetch        prefetchKind  `env:"LARDER_PREFETCH" envDefault:"off"`
	PrefetchTimeout time.Duration `env:"LARDER_PREFETCH_TIMEOUT" envDefault:"30s"`

	Pin           string    `env:"LARDER_PIN"`
	Warm          string    `env:"LARDER_WARM"`
	WarmPlatforms platforms `env:"LARDER_WARM_PLATFORMS"`

	Shared          string        `env:"LARDER_SHARED"`
	SharedAccessKey string        `env:"LARDER_SHARED_ACCESS_KEY"`
	SharedSecretKey string        `env:"LARDER_SHARED_SECRET_KEY" secret:"yes"`
	SharedOnly      string        `env:"LARDER_SHARED_ONLY"`
	SharedTimeout   time.Duration `env:"LARDER_SHARED_TIMEOUT" envDefault:"2s"`
	SharedWait      time.Duration `env:"LARDER_SHARED_WAIT" envDefault:"30s"`
	SharedRate      size          `env:"LARDER_SHARED_RATE" envDefault:"0"`
	Redirect        bool          `env:"LARDER_REDIRECT" envDefault:"false"`

	TLSCert  string `env:"LARDER_TLS_CERT"`
	TLSKey   string `env:"LARDER_TLS_KEY"`
	ClientCA string `env:"LARDER_CLIENT_CA"`
	Htpasswd string `env:"LARDER_HTPASSWD"`

	Auth          authKind `env:"LARDER_AUTH" envDefault:"basic"`
	TokenKey      string   `env:"LARDER_TOKEN_KEY"`
	AnonymousPull bool     `env:"LARDER_ANONYMOUS_PULL" envDefault:"false"`
	Access        string   `env:"LARDER_ACCESS"`

	AdminHtpasswd string   `env:"LARDER_ADMIN_HTPASSWD"`
	AdminLogin    string   `env:"LARDER_ADMIN_LOGIN" secret:"yes"`
	AdminHosts    []string `env:"LARDER_ADMIN_HOSTS"`

	// Outermost first. Log, audit and metrics are outside of recover, to see the 500
	// that becomes of a panic. Limit is inside of all that refuse, or who is refused would
	// take somebody's place; auth has bounds of its own. Who may not read is not told
	// by readonly what else could be done.
	Middleware string `env:"LARDER_MIDDLEWARE" envDefault:"requestid,log,audit,metrics,recover,auth,allow,readonly,limit"`

	LogLevel  zapcore.Level `env:"LARDER_LOG_LEVEL" envDefault:"info"`
	LogFormat string        `env:"LARDER_LOG_FORMAT" envDefault:"auto"`

	AuditLog string `env:"LARDER_AUDIT_LOG" envDefault:"off"`

	ShutdownGrace time.Duration `env:"LARDER_SHUTDOWN_GRACE" envDefault:"20s"`

	DoctorReference string `env:"LARDER_DOCTOR_REFERENCE"`

	upstreams   []upstream.Registry // of UpstreamList
	parent      *url.URL            // of ParentURL; nil: none
	access      handler.Access      // of Allow and Deny
	pins        handler.ImageGlobs  // of Pin
	shared      handler.Globs       // of SharedOnly
	middlewares []string            // of Middleware
	settings    map[string]string   // of middlewares: variables of their own
	given       map[string]string   // the variables that are set, as they are
	unknown     []unknownVariable
}

// connections is how many there may be: at least one.
type connections int

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *connections) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || n == 0 {
		return strconv.ErrRange
	}
	*c = connections(n)
	return nil
}

// pulls is how many of a rate limit.
type pulls int

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *pulls) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 31)
	*p = pulls(n)
	return err
}

// defaultAdminAddr is not a default of the struct's: the variable may be empty.
const defaultAdminAddr = "127.0.0.1:5001"

// unknownVariable is a LARDER_ variable that larder does not know.
type unknownVariable struct{ name, didYouMean string }

// configError is everything that is wrong with the configuration.
type configError struct{ problems []error }

// Error has a line for each problem.
func (e *configError) Error() string {
	var s strings.Builder
	s.WriteString("wrong configuration:")
	for _, p := range e.problems {
		s.WriteString("\n  " + p.Error())
	}
	return s.String()
}

// kubernetesVariable are those that Kubernetes sets in every pod of a namespace
// that has a Service called larder, or larder-middleware.
var kubernetesVariable = regexp.MustCompile(`^LARDER_(MIDDLEWARE_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// readConfig reads the environment. The error is a *configError with all that
// is wrong.
func readConfig(environ []string) (*config, error) {
	vars := make(map[string]string)
	for _, v := range environ {
		if name, value, ok := strings.Cut(v, "="); ok && strings.HasPrefix(name, "LARDER_") {
			vars[name] = value
		}
	}
	cfg := &config{settings: settings(vars)}
	var problems []error
	if err := env.ParseWithOptions(cfg, env.Options{Environment: vars}); err != nil {
		problems = namedProblems(err)
	}
	if _, ok := vars["LARDER_ADMIN_ADDR"]; !ok {
		cfg.AdminAddr = defaultAdminAddr
	}
	problems = append(problems, cfg.check()...)
	if len(problems) > 0 {
		return nil, &configError{problems}
	}
	cfg.unknown = unknownVariables(vars)
	maps.DeleteFunc(vars, func(_, value string) bool { return value == "" })
	cfg.given = vars
	return cfg, nil
}

// namedProblems makes the parser's errors, which are about Go fields, about
// variables. A value is not repeated: it may be a secret in the wrong place.
func namedProblems(err error) []error {
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		return []error{err}
	}
	var problems []error
	for _, err := range all.Errors {
		if p, ok := errors.AsType[env.ParseError](err); ok {
			err = fmt.Errorf("%s: not %s", variable(p.Name), form(p.Type))
		}
		problems = append(problems, err)
	}
	return problems
}

// form says what a value of the type looks like.
func form(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration like 30s, 20m or 168h"
	case reflect.TypeFor[zapcore.Level]():
		return "one of debug, info, warn, error"
	case reflect.TypeFor[authKind]():
		return "one of basic, token"
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[connections]():
		return "a number of connections, 1 or more"
	case reflect.TypeFor[size]():
		return "a size like 16MiB"
	case reflect.TypeFor[limit]():
		return "a size like 50GiB or 80%"
	case reflect.TypeFor[quotas]():
		return "a list like ghcr.io=20GiB,docker.io/library=5GiB"
	case reflect.TypeFor[prefetchKind]():
		return "one of off, manifest"
	case reflect.TypeFor[platforms]():
		return "a list of platforms like linux/amd64,linux/arm64, or all"
	case reflect.TypeFor[pulls]():
		return "a number of pulls, 0 or more"
	default:
		return "a " + t.String()
	}
}

// variable is the environment variable that a field of config is read from.
func variable(field string) string {
	if f, ok := reflect.TypeFor[config]().FieldByName(field); ok {
		return f.Tag.Get("env")
	}
	return field
}

func validAddr(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil && port != ""
}

// unknownVariables finds misspelt ones. They are worth a warning, never an
// error: others may set variables of that prefix.
func unknownVariables(vars map[string]string) []unknownVariable {
	var known []string
	for f := range reflect.TypeFor[config]().Fields() {
		if name := f.Tag.Get("env"); name != "" {
			known = append(known, name)
		}
	}
	var unknown []unknownVariable
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if slices.Contains(known, name) || kubernetesVariable.MatchString(name) || strings.HasPrefix(name, middleware.VariablePrefix) {
			continue
		}
		nearest := slices.MinFunc(known, func(a, b string) int {
			return levenshtein.ComputeDistance(name, a) - levenshtein.ComputeDistance(name, b)
		})
		if levenshtein.ComputeDistance(name, nearest) > len(name)/3 {
			nearest = ""
		}
		unknown = append(unknown, unknownVariable{name, nearest})
	}
	return unknown
}
