package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
)

func TestConfigDefaults(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", "")
	defaults := config{
		Addr: "127.0.0.1:5000", AdminAddr: "127.0.0.1:5001", UpstreamList: "docker.io", CacheDir: filepath.Join(home, ".cache", "larder"),
		Memory: 64 << 20, ScrubInterval: 168 * time.Hour, ScrubRate: 16 << 20,
		MinFree: limit{Bytes: 1 << 30, Percent: 5},
		BlobTTL: 168 * time.Hour, ManifestTTL: 168 * time.Hour, ListTTL: time.Minute, FetchConnections: 4, UpstreamConnections: 32, RateLimitFloor: 5,
		Auth:        authBasic,
		Middleware:  "requestid,log,audit,metrics,recover,auth,allow,readonly,limit",
		middlewares: []string{"requestid", "log", "audit", "metrics", "recover", "auth", "allow", "readonly", "limit"}, settings: map[string]string{},
		LogLevel: zapcore.InfoLevel, LogFormat: "auto", Prefetch: "off", PrefetchTimeout: 30 * time.Second, AuditLog: "off", ShutdownGrace: 20 * time.Second,
		SharedTimeout: 2 * time.Second, SharedWait: 30 * time.Second,
	}
	var empty []string // a variable that is there and empty is one that is not there
	for f := range reflect.TypeFor[config]().Fields() {
		if name := f.Tag.Get("env"); name != "" && name != "LARDER_ADMIN_ADDR" {
			empty = append(empty, name+"=")
		}
	}
	for name, environ := range map[string][]string{"nothing": nil, "others": {"PATH=/bin", "LARDERADDR=x", "larder_addr=x", "LARDER_"}, "empty": empty} {
		t.Run(name, func(t *testing.T) {
			cfg, err := readConfig(environ)
			if err != nil {
				t.Fatal(err)
			}
			if len(cfg.upstreams) != 1 || cfg.upstreams[0].Host != "docker.io" || cfg.upstreams[0].URLs[0].String() != "https://registry-1.docker.io" {
				t.Errorf("upstreams are %v", cfg.upstreams)
			}
			cfg.upstreams = nil
			if got, want := fmt.Sprintf("%+v", *cfg), fmt.Sprintf("%+v", defaults); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestConfigValues(t *testing.T) {
	tests := map[string]struct {
		environ []string
		get     func(c *config) any
		want    any
	}{
		"addr":            {[]string{"LARDER_ADDR=:80"}, func(c *config) any { return c.Addr }, ":80"},
		"addr IPv6":       {[]string{"LARDER_ADDR=[::1]:5000"}, func(c *config) any { return c.Addr }, "[::1]:5000"},
		"addr, any port":  {[]string{"LARDER_ADDR=localhost:0"}, func(c *config) any { return c.Addr }, "localhost:0"},
		"admin addr":      {[]string{"LARDER_ADMIN_ADDR=0.0.0.0:9090"}, func(c *config) any { return c.AdminAddr }, "0.0.0.0:9090"},
		"admin off":       {[]string{"LARDER_ADMIN_ADDR="}, func(c *config) any { return c.AdminAddr }, ""},
		"upstreams":       {[]string{"LARDER_UPSTREAMS=ghcr.io, docker.io=http://127.0.0.1:6000"}, func(c *config) any { return c.upstreams[1].URLs[0].String() }, "http://127.0.0.1:6000"},
		"parent":          {[]string{"LARDER_PARENT=http://larder.infra:5000/"}, func(c *config) any { return c.parent.String() }, "http://larder.infra:5000"},
		"cache dir":       {[]string{"LARDER_CACHE_DIR=/var/cache/larder"}, func(c *config) any { return c.CacheDir }, "/var/cache/larder"},
		"password":        {[]string{"LARDER_USERNAME=u", "LARDER_PASSWORD=a=b c"}, func(c *config) any { return c.Password }, "a=b c"},
		"password file":   {[]string{"LARDER_USERNAME=u", "LARDER_PASSWORD_FILE=/run/secret"}, func(c *config) any { return c.PasswordFile }, "/run/secret"},
		"blob TTL":        {[]string{"LARDER_BLOB_TTL=1h30m"}, func(c *config) any { return c.BlobTTL }, 90 * time.Minute},
		"never":           {[]string{"LARDER_BLOB_TTL=0"}, func(c *config) any { return c.BlobTTL }, time.Duration(0)},
		"manifest TTL":    {[]string{"LARDER_MANIFEST_TTL=24h"}, func(c *config) any { return c.ManifestTTL }, 24 * time.Hour},
		"tag TTL":         {[]string{"LARDER_TAG_TTL=5m"}, func(c *config) any { return c.TagTTL }, 5 * time.Minute},
		"list TTL":        {[]string{"LARDER_LIST_TTL=0"}, func(c *config) any { return c.ListTTL }, time.Duration(0)},
		"max size":        {[]string{"LARDER_MAX_SIZE=50GiB"}, func(c *config) any { return c.MaxSize }, limit{Bytes: 50 << 30}},
		"max size, share": {[]string{"LARDER_MAX_SIZE=80%"}, func(c *config) any { return c.MaxSize }, limit{Percent: 80}},
		"max size, both":  {[]string{"LARDER_MAX_SIZE=1.5g, 12.5%"}, func(c *config) any { return c.MaxSize }, limit{Bytes: 3 << 29, Percent: 12.5}},
		"scrub":           {[]string{"LARDER_SCRUB_INTERVAL=24h", "LARDER_SCRUB_RATE=1GiB"}, func(c *config) any { return c.ScrubRate }, size(1 << 30)},
		"memory":          {[]string{"LARDER_MEMORY=1GiB"}, func(c *config) any { return c.Memory }, size(1 << 30)},
		"no memory":       {[]string{"LARDER_MEMORY=0"}, func(c *config) any { return c.Memory }, size(0)},
		"no min free":     {[]string{"LARDER_MIN_FREE=0"}, func(c *config) any { return c.MinFree }, limit{}},
		"quota": {
			[]string{"LARDER_UPSTREAMS=docker.io,ghcr.io", "LARDER_QUOTA=ghcr.io=20GiB, docker.io/library=5MiB"},
			func(c *config) any { return fmt.Sprint(c.Quotas) }, fmt.Sprint(quotas{{Owner: "ghcr.io", Bytes: 20 << 30}, {Owner: "docker.io/library", Bytes: 5 << 20}}),
		},
		"catalog":    {[]string{"LARDER_CATALOG=true"}, func(c *config) any { return c.Catalog }, true},
		"no catalog": {[]string{"LARDER_CATALOG=false"}, func(c *config) any { return c.Catalog }, false},
		"TLS":        {[]string{"LARDER_TLS_CERT=c", "LARDER_TLS_KEY=k"}, func(c *config) any { return c.TLSCert + c.TLSKey }, "ck"},
		"htpasswd":   {[]string{"LARDER_HTPASSWD=/etc/users"}, func(c *config) any { return c.Htpasswd }, "/etc/users"},
		"auth": {
			[]string{"LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true", "LARDER_TOKEN_KEY=/k", "LARDER_ACCESS=/a"},
			func(c *config) any { return fmt.Sprint(c.Auth, c.AnonymousPull, c.TokenKey, c.Access) }, "tokentrue/k/a",
		},
		"middleware": {
			[]string{"LARDER_MIDDLEWARE=recover, readonly"}, func(c *config) any { return strings.Join(c.middlewares, "|") }, "recover|readonly",
		},
		"prefetch":        {[]string{"LARDER_PREFETCH=manifest", "LARDER_PREFETCH_TIMEOUT=5s"}, func(c *config) any { return c.Prefetch }, prefetchManifest},
		"pins":            {[]string{"LARDER_PIN=docker.io/library/alpine:3.*"}, func(c *config) any { return c.pinned()("docker.io/library/alpine", "3.20") }, true},
		"warm":            {[]string{"LARDER_WARM=alpine:3.*", "LARDER_WARM_PLATFORMS=all"}, func(c *config) any { return c.Warm + string(c.WarmPlatforms) }, "alpine:3.*all"},
		"shared":          {[]string{"LARDER_SHARED=s3://bucket/prefix?region=eu-central-1", "LARDER_REDIRECT=true"}, func(c *config) any { return c.Shared }, "s3://bucket/prefix?region=eu-central-1"},
		"shared only":     {[]string{"LARDER_SHARED=file:///mnt", "LARDER_SHARED_ONLY=docker.io/library/*"}, func(c *config) any { return c.shared.Match("docker.io/library/alpine") }, true},
		"shared keys":     {[]string{"LARDER_SHARED=s3://bucket?region=us-east-1", "LARDER_SHARED_ACCESS_KEY=a", "LARDER_SHARED_SECRET_KEY=s"}, func(c *config) any { return c.SharedAccessKey + c.SharedSecretKey }, "as"},
		"shared limits":   {[]string{"LARDER_SHARED=file:///mnt", "LARDER_SHARED_TIMEOUT=1s", "LARDER_SHARED_WAIT=0s", "LARDER_SHARED_RATE=1MiB"}, func(c *config) any { return fmt.Sprint(c.SharedTimeout, c.SharedWait, c.SharedRate) }, fmt.Sprint(time.Second, time.Duration(0), 1<<20)},
		"admin login":     {[]string{"LARDER_ADMIN_LOGIN=u:p:w"}, func(c *config) any { return c.AdminLogin }, "u:p:w"},
		"level":           {[]string{"LARDER_LOG_LEVEL=debug"}, func(c *config) any { return c.LogLevel }, zapcore.DebugLevel},
		"level shouted":   {[]string{"LARDER_LOG_LEVEL=ERROR"}, func(c *config) any { return c.LogLevel }, zapcore.ErrorLevel},
		"audit log":       {[]string{"LARDER_AUDIT_LOG=/var/log/audit.json"}, func(c *config) any { return c.AuditLog }, "/var/log/audit.json"},
		"doctor":          {[]string{"LARDER_DOCTOR_REFERENCE=alpine:3.20"}, func(c *config) any { return c.DoctorReference }, "alpine:3.20"},
		"format":          {[]string{"LARDER_LOG_FORMAT=console"}, func(c *config) any { return c.LogFormat }, "console"},
		"grace":           {[]string{"LARDER_SHUTDOWN_GRACE=0s"}, func(c *config) any { return c.ShutdownGrace }, time.Duration(0)},
		"twice: the last": {[]string{"LARDER_ADDR=:1", "LARDER_ADDR=:2"}, func(c *config) any { return c.Addr }, ":2"},
		"twice: emptied":  {[]string{"LARDER_TAG_TTL=5m", "LARDER_TAG_TTL="}, func(c *config) any { return c.TagTTL }, time.Duration(0)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, err := readConfig(append([]string{"LARDER_CACHE_DIR=/c"}, test.environ...))
			if err != nil {
				t.Fatal(err)
			}
			if got := test.get(cfg); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// bad are configurations that are wrong, and the variables that the error has
// to name. The word hush is a secret wherever it stands.
var bad = map[string]struct {
	environ []string
	names   []string
}{
	"addr":                  {[]string{"LARDER_ADDR=hush"}, []string{"LARDER_ADDR"}},
	"addr without port":     {[]string{"LARDER_ADDR=127.0.0.1:"}, []string{"LARDER_ADDR"}},
	"addr, wrong port":      {[]string{"LARDER_ADDR=127.0.0.1:hush"}, []string{"LARDER_ADDR"}},
	"addr, great port":      {[]string{"LARDER_ADDR=127.0.0.1:65536"}, []string{"LARDER_ADDR"}},
	"addr with scheme":      {[]string{"LARDER_ADDR=http://hush:5000"}, []string{"LARDER_ADDR"}},
	"admin addr":            {[]string{"LARDER_ADMIN_ADDR=5001"}, []string{"LARDER_ADMIN_ADDR"}},
	"upstreams":             {[]string{"LARDER_UPSTREAMS=docker.io=ftp://x"}, []string{"LARDER_UPSTREAMS"}},
	"upstreams, none":       {[]string{"LARDER_UPSTREAMS=,"}, []string{"LARDER_UPSTREAMS"}},
	"upstreams, twice":      {[]string{"LARDER_UPSTREAMS=docker.io,index.docker.io"}, []string{"LARDER_UPSTREAMS"}},
	"upstreams with secret": {[]string{"LARDER_UPSTREAMS=ghcr.io=https://user:hush@ghcr.io"}, []string{"LARDER_UPSTREAMS"}},
	"upstreams, secret 2":   {[]string{"LARDER_UPSTREAMS=https://user:hush@ghcr.io"}, []string{"LARDER_UPSTREAMS"}},
	"upstreams, secret 3":   {[]string{"LARDER_UPSTREAMS=ghcr.io=user:hush@ghcr.io"}, []string{"LARDER_UPSTREAMS"}},
	"allow, no host":        {[]string{"LARDER_ALLOW=hush"}, []string{"LARDER_ALLOW", "entry 1"}},
	"allow, not listed":     {[]string{"LARDER_ALLOW=docker.io/**,hush.io/**"}, []string{"LARDER_ALLOW", "entry 2"}},
	"allow, nothing":        {[]string{"LARDER_ALLOW=,"}, []string{"LARDER_ALLOW"}},
	"catalog":               {[]string{"LARDER_CATALOG=hush"}, []string{"LARDER_CATALOG"}},
	"deny, short":           {[]string{"LARDER_DENY=docker.io/hush"}, []string{"LARDER_DENY", "docker.io/library/"}},
	"deny, brackets":        {[]string{"LARDER_DENY=docker.io/[hush/x"}, []string{"LARDER_DENY"}},
	"blob TTL":              {[]string{"LARDER_BLOB_TTL=hush"}, []string{"LARDER_BLOB_TTL"}},
	"blob TTL, no unit":     {[]string{"LARDER_BLOB_TTL=20"}, []string{"LARDER_BLOB_TTL"}},
	"blob TTL, negative":    {[]string{"LARDER_BLOB_TTL=-1s"}, []string{"LARDER_BLOB_TTL"}},
	"manifest TTL":          {[]string{"LARDER_MANIFEST_TTL=7d"}, []string{"LARDER_MANIFEST_TTL"}},
	"manifest TTL negative": {[]string{"LARDER_MANIFEST_TTL=-7h"}, []string{"LARDER_MANIFEST_TTL"}},
	"tag TTL":               {[]string{"LARDER_TAG_TTL=soon"}, []string{"LARDER_TAG_TTL"}},
	"max size":              {[]string{"LARDER_MAX_SIZE=much"}, []string{"LARDER_MAX_SIZE"}},
	"max size, negative":    {[]string{"LARDER_MAX_SIZE=-1GiB"}, []string{"LARDER_MAX_SIZE"}},
	"max size, no share":    {[]string{"LARDER_MAX_SIZE=0%"}, []string{"LARDER_MAX_SIZE"}},
	"max size, NaN":         {[]string{"LARDER_MAX_SIZE=NaN%"}, []string{"LARDER_MAX_SIZE"}},
	"min free":              {[]string{"LARDER_MIN_FREE=120%"}, []string{"LARDER_MIN_FREE"}},
	"memory":                {[]string{"LARDER_MEMORY=10%"}, []string{"LARDER_MEMORY"}},
	"memory, negative":      {[]string{"LARDER_MEMORY=-1"}, []string{"LARDER_MEMORY"}},
	"scrub interval":        {[]string{"LARDER_SCRUB_INTERVAL=-1h"}, []string{"LARDER_SCRUB_INTERVAL"}},
	"scrub rate":            {[]string{"LARDER_SCRUB_RATE=50%"}, []string{"LARDER_SCRUB_RATE"}},
	"quota":                 {[]string{"LARDER_QUOTA=docker.io"}, []string{"LARDER_QUOTA"}},
	"quota of nothing":      {[]string{"LARDER_QUOTA=docker.io=0"}, []string{"LARDER_QUOTA"}},
	"quota, not listed":     {[]string{"LARDER_QUOTA=quay.io/org=1GiB"}, []string{"LARDER_QUOTA"}},
	"quota, twice":          {[]string{"LARDER_QUOTA=docker.io=1GiB,docker.io=2GiB"}, []string{"LARDER_QUOTA"}},
	"fetch connections":     {[]string{"LARDER_FETCH_CONNECTIONS=0"}, []string{"LARDER_FETCH_CONNECTIONS"}},
	"floor":                 {[]string{"LARDER_RATELIMIT_FLOOR=-1"}, []string{"LARDER_RATELIMIT_FLOOR"}},
	"upstream connections":  {[]string{"LARDER_UPSTREAM_CONNECTIONS=many"}, []string{"LARDER_UPSTREAM_CONNECTIONS"}},
	"tag TTL negative":      {[]string{"LARDER_TAG_TTL=-1ns"}, []string{"LARDER_TAG_TTL"}},
	"list TTL negative":     {[]string{"LARDER_LIST_TTL=-1s"}, []string{"LARDER_LIST_TTL"}},
	"grace":                 {[]string{"LARDER_SHUTDOWN_GRACE=-20s"}, []string{"LARDER_SHUTDOWN_GRACE"}},
	"grace, no unit":        {[]string{"LARDER_SHUTDOWN_GRACE=5"}, []string{"LARDER_SHUTDOWN_GRACE"}},
	"level":                 {[]string{"LARDER_LOG_LEVEL=hush"}, []string{"LARDER_LOG_LEVEL"}},
	"level that hides all":  {[]string{"LARDER_LOG_LEVEL=fatal"}, []string{"LARDER_LOG_LEVEL"}},
	"middleware, unknown":   {[]string{"LARDER_MIDDLEWARE=recover,hush,readonly"}, []string{"LARDER_MIDDLEWARE", "entry 2", "recover, requestid"}},
	"middleware, twice":     {[]string{"LARDER_MIDDLEWARE=recover,readonly,recover"}, []string{"LARDER_MIDDLEWARE", "entry 3", "twice"}},
	"not read-only":         {[]string{"LARDER_MIDDLEWARE=recover,auth"}, []string{"LARDER_MIDDLEWARE", "readonly"}},
	"no middleware":         {[]string{"LARDER_MIDDLEWARE=,"}, []string{"LARDER_MIDDLEWARE", "readonly"}},
	"without auth":          {[]string{"LARDER_MIDDLEWARE=allow,readonly", "LARDER_HTPASSWD=/hush"}, []string{"LARDER_MIDDLEWARE", "auth", "LARDER_HTPASSWD"}},
	"without allow":         {[]string{"LARDER_MIDDLEWARE=auth,readonly", "LARDER_ALLOW=docker.io/**"}, []string{"LARDER_MIDDLEWARE", "allow", "LARDER_ALLOW"}},
	"without allow, deny":   {[]string{"LARDER_MIDDLEWARE=auth,readonly", "LARDER_DENY=docker.io/**"}, []string{"LARDER_MIDDLEWARE", "allow", "LARDER_DENY"}},
	"audit log":             {[]string{"LARDER_AUDIT_LOG=hush"}, []string{"LARDER_AUDIT_LOG", "off, stdout"}},
	"without audit":         {[]string{"LARDER_MIDDLEWARE=requestid,readonly", "LARDER_AUDIT_LOG=/hush"}, []string{"LARDER_MIDDLEWARE", "audit", "LARDER_AUDIT_LOG"}},
	"audit without ids":     {[]string{"LARDER_MIDDLEWARE=audit,readonly", "LARDER_AUDIT_LOG=stdout"}, []string{"LARDER_MIDDLEWARE", "requestid", "LARDER_AUDIT_LOG"}},
	"allow before auth":     {[]string{"LARDER_MIDDLEWARE=allow,auth,readonly"}, []string{"LARDER_MIDDLEWARE", "allow is before auth"}},
	"limit":                 {[]string{"LARDER_MIDDLEWARE_LIMIT_RUNNING=-1"}, []string{"LARDER_MIDDLEWARE_LIMIT_RUNNING", "0 or more"}},
	"limit, wait":           {[]string{"LARDER_MIDDLEWARE_LIMIT_WAIT=hush"}, []string{"LARDER_MIDDLEWARE_LIMIT_WAIT", "a duration"}},
	"limit, option":         {[]string{"LARDER_MIDDLEWARE_LIMIT_MAX=hush"}, []string{"LARDER_MIDDLEWARE_LIMIT_MAX", "LARDER_MIDDLEWARE_LIMIT_QUEUED"}},
	"option":                {[]string{"LARDER_MIDDLEWARE_LOG_FILE=hush"}, []string{"LARDER_MIDDLEWARE_LOG_FILE", "no such option"}},
	"option of none":        {[]string{"LARDER_MIDDLEWARE_GZIP_LEVEL=hush"}, []string{"LARDER_MIDDLEWARE_GZIP_LEVEL", "allow, audit, auth"}},
	"auth":                  {[]string{"LARDER_AUTH=hush"}, []string{"LARDER_AUTH"}},
	"auth shouted":          {[]string{"LARDER_AUTH=TOKEN"}, []string{"LARDER_AUTH"}},
	"tokens for nobody":     {[]string{"LARDER_AUTH=token"}, []string{"LARDER_AUTH", "LARDER_HTPASSWD", "LARDER_ANONYMOUS_PULL"}},
	"tokens without auth":   {[]string{"LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=1", "LARDER_MIDDLEWARE=allow,readonly"}, []string{"LARDER_MIDDLEWARE", "LARDER_AUTH=token"}},
	"access without allow":  {[]string{"LARDER_ACCESS=/hush", "LARDER_MIDDLEWARE=auth,readonly"}, []string{"LARDER_MIDDLEWARE", "LARDER_ACCESS"}},
	"key, no tokens":        {[]string{"LARDER_TOKEN_KEY=hush"}, []string{"LARDER_TOKEN_KEY", "LARDER_AUTH"}},
	"anonymous, no tokens":  {[]string{"LARDER_ANONYMOUS_PULL=true"}, []string{"LARDER_ANONYMOUS_PULL", "LARDER_AUTH"}},
	"anonymous, no boolean": {[]string{"LARDER_ANONYMOUS_PULL=hush"}, []string{"LARDER_ANONYMOUS_PULL"}},
	"doctor":                {[]string{"LARDER_DOCTOR_REFERENCE=hush:!"}, []string{"LARDER_DOCTOR_REFERENCE"}},
	"doctor, not listed":    {[]string{"LARDER_DOCTOR_REFERENCE=hush.io/a/b"}, []string{"LARDER_DOCTOR_REFERENCE", "not listed"}},
	"prefetch":              {[]string{"LARDER_PREFETCH=hush"}, []string{"LARDER_PREFETCH"}},
	"prefetch timeout":      {[]string{"LARDER_PREFETCH=manifest", "LARDER_PREFETCH_TIMEOUT=0"}, []string{"LARDER_PREFETCH_TIMEOUT"}},
	"prefetch, negative":    {[]string{"LARDER_PREFETCH_TIMEOUT=-1s"}, []string{"LARDER_PREFETCH_TIMEOUT"}},
	"pin":                   {[]string{"LARDER_PIN=hush"}, []string{"LARDER_PIN", "entry 1"}},
	"pin, not listed":       {[]string{"LARDER_PIN=docker.io/**,hush.io/**:1"}, []string{"LARDER_PIN", "entry 2"}},
	"warm platforms":        {[]string{"LARDER_WARM_PLATFORMS=hush"}, []string{"LARDER_WARM_PLATFORMS"}},
	"parent, no URL":        {[]string{"LARDER_PARENT=hush:5000"}, []string{"LARDER_PARENT", "http://"}},
	"parent, password":      {[]string{"LARDER_PARENT=http://u:hush@larder.infra"}, []string{"LARDER_PARENT", "credentials"}},
	"parent, path":          {[]string{"LARDER_PARENT=http://larder.infra/hush"}, []string{"LARDER_PARENT", "nothing else"}},
	"parent, upstream":      {[]string{"LARDER_UPSTREAMS=quay.io,larder.infra:5000", "LARDER_PARENT=http://larder.infra:5000"}, []string{"LARDER_PARENT", "LARDER_UPSTREAMS", "larder.infra:5000"}},
	"parent, upstream's":    {[]string{"LARDER_UPSTREAMS=quay.io=http://larder.infra", "LARDER_PARENT=http://larder.infra"}, []string{"LARDER_PARENT", "LARDER_UPSTREAMS", "quay.io"}},
	"shared":                {[]string{"LARDER_SHARED=hush"}, []string{"LARDER_SHARED", "s3://"}},
	"shared, redirect":      {[]string{"LARDER_SHARED=file:///hush", "LARDER_REDIRECT=true"}, []string{"LARDER_REDIRECT", "directory"}},
	"shared, password":      {[]string{"LARDER_SHARED=s3://key:hush@bucket"}, []string{"LARDER_SHARED"}},
	"shared, query":         {[]string{"LARDER_SHARED=s3://bucket?region=eu&secret=hush"}, []string{"LARDER_SHARED"}},
	"shared, relative":      {[]string{"LARDER_SHARED=file://hush"}, []string{"LARDER_SHARED"}},
	"shared, not built in":  {[]string{"LARDER_SHARED=gs://bucket"}, []string{"LARDER_SHARED", "-tags gs"}},
	"shared, one key":       {[]string{"LARDER_SHARED=s3://bucket", "LARDER_SHARED_SECRET_KEY=hush"}, []string{"LARDER_SHARED_ACCESS_KEY", "LARDER_SHARED_SECRET_KEY"}},
	"shared, no time":       {[]string{"LARDER_SHARED=file:///mnt", "LARDER_SHARED_TIMEOUT=0"}, []string{"LARDER_SHARED_TIMEOUT"}},
	"shared, wait":          {[]string{"LARDER_SHARED=file:///mnt", "LARDER_SHARED_WAIT=-1s"}, []string{"LARDER_SHARED_WAIT"}},
	"shared only":           {[]string{"LARDER_SHARED=file:///mnt", "LARDER_SHARED_ONLY=hush"}, []string{"LARDER_SHARED_ONLY", "entry 1"}},
	"redirect to nowhere":   {[]string{"LARDER_REDIRECT=true"}, []string{"LARDER_REDIRECT", "LARDER_SHARED"}},
	"keys of nothing":       {[]string{"LARDER_SHARED_ACCESS_KEY=hush"}, []string{"LARDER_SHARED_ACCESS_KEY", "LARDER_SHARED"}},
	"admin login":           {[]string{"LARDER_ADMIN_LOGIN=hush"}, []string{"LARDER_ADMIN_LOGIN"}},
	"format":                {[]string{"LARDER_LOG_FORMAT=hush"}, []string{"LARDER_LOG_FORMAT"}},
	"cert without key":      {[]string{"LARDER_TLS_CERT=hush"}, []string{"LARDER_TLS_CERT", "LARDER_TLS_KEY"}},
	"key without cert":      {[]string{"LARDER_TLS_KEY=hush"}, []string{"LARDER_TLS_CERT", "LARDER_TLS_KEY"}},
	"client CA without TLS": {[]string{"LARDER_CLIENT_CA=hush"}, []string{"LARDER_CLIENT_CA", "LARDER_TLS_CERT"}},
	"two passwords":         {[]string{"LARDER_USERNAME=u", "LARDER_PASSWORD=hush", "LARDER_PASSWORD_FILE=/f"}, []string{"LARDER_PASSWORD", "LARDER_PASSWORD_FILE"}},
	"password alone":        {[]string{"LARDER_PASSWORD=hush"}, []string{"LARDER_USERNAME"}},
	"password file alone":   {[]string{"LARDER_PASSWORD_FILE=/hush"}, []string{"LARDER_USERNAME"}},
	"username alone":        {[]string{"LARDER_USERNAME=hush"}, []string{"LARDER_USERNAME", "LARDER_PASSWORD"}},
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	for name, test := range bad {
		t.Run(name, func(t *testing.T) {
			_, err := readConfig(append([]string{"LARDER_CACHE_DIR=/c"}, test.environ...))
			wrong, ok := errors.AsType[*configError](err)
			if !ok || len(wrong.problems) != 1 {
				t.Fatalf("got error %v, want one problem", err)
			}
			for _, name := range test.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("got %q, want it to name %s", err, name)
				}
			}
			if strings.Contains(err.Error(), "hush") {
				t.Errorf("a value that may be a secret is in %q", err)
			}
			if exitStatus(err) != 2 {
				t.Errorf("exit status %d, want 2", exitStatus(err))
			}
		})
	}
}

func TestConfigTellsAllThatIsWrongInOrder(t *testing.T) {
	environ := []string{"LARDER_CACHE_DIR=/c"}
	variables := make(map[string]bool)
	for _, name := range []string{
		"addr", "admin addr", "upstreams", "blob TTL", "manifest TTL negative", "tag TTL", "grace", "level", "format", "cert without key", "two passwords",
	} {
		environ = append(environ, bad[name].environ...)
		for _, v := range bad[name].names {
			variables[v] = true
		}
	}
	var first string
	for range 20 {
		_, err := readConfig(environ)
		if err == nil {
			t.Fatal("no error")
		}
		for v := range variables {
			if !strings.Contains(err.Error(), "\n  "+v) && !strings.Contains(err.Error(), ", "+v) {
				t.Errorf("got %q, want it to name %s", err, v)
			}
		}
		if first == "" {
			first = err.Error()
		}
		if err.Error() != first {
			t.Fatalf("got %q and then %q", first, err)
		}
	}
}

func TestConfigWithoutHome(t *testing.T) {
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	if _, err := readConfig(nil); err == nil || !strings.Contains(err.Error(), "LARDER_CACHE_DIR") {
		t.Errorf("got %v, want an error that names LARDER_CACHE_DIR", err)
	}
	if _, err := readConfig([]string{"LARDER_CACHE_DIR=/c"}); err != nil {
		t.Error(err)
	}
}

func TestUnknownVariables(t *testing.T) {
	tests := map[string]struct{ name, didYouMean string }{
		"plural":        {"LARDER_UPSTREAM", "LARDER_UPSTREAMS"},
		"typo":          {"LARDER_CAHCE_DIR", "LARDER_CACHE_DIR"},
		"other word":    {"LARDER_CACHE_DIRECTORY", "LARDER_CACHE_DIR"},
		"shorter":       {"LARDER_TLS_CRT", "LARDER_TLS_CERT"},
		"nothing like":  {"LARDER_ENABLE_TELEMETRY_PLEASE", ""},
		"no Kubernetes": {"LARDER_SERVICE_HOSTS", "LARDER_ADMIN_HOSTS"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, err := readConfig([]string{"LARDER_CACHE_DIR=/c", test.name + "=hush"})
			if err != nil {
				t.Fatal(err)
			}
			if len(cfg.unknown) != 1 || cfg.unknown[0].name != test.name || cfg.unknown[0].didYouMean != test.didYouMean {
				t.Errorf("got %v, want %s and %q", cfg.unknown, test.name, test.didYouMean)
			}
		})
	}
}

func TestVariablesOfKubernetesAreNoNews(t *testing.T) {
	cfg, err := readConfig([]string{
		"LARDER_CACHE_DIR=/c",
		"LARDER_SERVICE_HOST=10.0.0.1", "LARDER_SERVICE_PORT=5000", "LARDER_SERVICE_PORT_REGISTRY=5000", "LARDER_PORT=tcp://10.0.0.1:5000",
		"LARDER_PORT_5000_TCP=tcp://10.0.0.1:5000", "LARDER_PORT_5000_TCP_PROTO=tcp", "LARDER_PORT_5000_TCP_PORT=5000", "LARDER_PORT_5000_TCP_ADDR=10.0.0.1",
		"LARDER_MIDDLEWARE_SERVICE_HOST=10.0.0.1", "LARDER_MIDDLEWARE_PORT=tcp://10.0.0.1:5000", "LARDER_MIDDLEWARE_PORT_5000_TCP=tcp://10.0.0.1:5000",
	})
	if err != nil || len(cfg.unknown) > 0 {
		t.Errorf("got %v, %v; want no word of them", cfg, err)
	}
}

// The README's table has every variable with its default, and every option of a
// middleware.
func TestReadmeHasEveryVariable(t *testing.T) {
	readme := readFile(t, "README.md")
	rows := make(map[string]string)
	for line := range strings.Lines(readme) {
		if !strings.HasPrefix(line, "| `LARDER_") {
			continue
		}
		for _, name := range regexp.MustCompile(`LARDER_[A-Z_]+`).FindAllString(strings.Split(line, "|")[1], -1) {
			rows[name] = line
		}
	}
	var chain string
	for f := range reflect.TypeFor[config]().Fields() {
		name, preset := f.Tag.Get("env"), f.Tag.Get("envDefault")
		if name != "" && !strings.Contains(rows[name], "| `"+preset) && (preset != "" || rows[name] == "") {
			t.Errorf("%s with default %q is not in the README: %q", name, preset, rows[name])
		}
		if name == "LARDER_MIDDLEWARE" {
			chain = preset
		}
	}
	for name := range strings.SplitSeq(chain, ",") {
		if !strings.Contains(readme, "\n| `"+name+"` |") {
			t.Errorf("middleware %s is not in the README", name)
		}
		for _, err := range middlewares().Check(map[string]string{"LARDER_MIDDLEWARE_" + strings.ToUpper(name) + "_NONE": "x"}, name) {
			_, options, _ := strings.Cut(err.Error(), "there are ")
			for option := range strings.SplitSeq(options, ", ") {
				if option != "none" && rows[option] == "" {
					t.Errorf("%s is not in the README", option)
				}
			}
		}
	}
}
