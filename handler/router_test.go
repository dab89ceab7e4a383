package handler_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestBase(t *testing.T) {
	l := newLarder(t, setup{})
	for _, path := range []string{"/v2", "/v2/", "/v2/?ns=quay.io"} {
		get, head := l.ask(t, "GET", path), l.ask(t, "HEAD", path)
		get.wantBody(t, http.StatusOK, []byte("{}"))
		get.want(t, "Content-Type", "application/json")
		get.want(t, "Docker-Distribution-Api-Version", "registry/2.0")
		get.want(t, "WWW-Authenticate", "")
		wantParity(t, get, head)
	}
	if n := l.dialled(); n != 0 {
		t.Errorf("%d requests upstream, want none", n)
	}
}

func TestBadRequests(t *testing.T) {
	hex := nobodys.Encoded()
	tests := map[string]struct {
		target string
		status int
		code   string
	}{
		"root":                  {"/", 404, "UNSUPPORTED"},
		"version 1":             {"/v1/_ping", 404, "UNSUPPORTED"},
		"almost version 2":      {"/v2x/a/manifests/1", 404, "UNSUPPORTED"},
		"encoded slash of v2":   {"/v2%2Fa/manifests/1", 404, "UNSUPPORTED"},
		"double slash first":    {"//v2/a/manifests/1", 404, "UNSUPPORTED"},
		"metrics":               {"/metrics", 404, "UNSUPPORTED"},
		"health":                {"/healthz", 404, "UNSUPPORTED"},
		"readiness":             {"/readyz", 404, "UNSUPPORTED"},
		"profiles":              {"/debug/pprof/", 404, "UNSUPPORTED"},
		"profile under v2":      {"/v2/debug/pprof/heap", 404, "UNSUPPORTED"},
		"catalog":               {"/v2/_catalog", 404, "UNSUPPORTED"},
		"repository alone":      {"/v2/library/alpine", 404, "UNSUPPORTED"},
		"no repository":         {"/v2/manifests/latest", 404, "UNSUPPORTED"},
		"uploads":               {"/v2/library/alpine/blobs/uploads/", 404, "UNSUPPORTED"},
		"an upload":             {"/v2/library/alpine/blobs/uploads/77", 404, "UNSUPPORTED"},
		"unknown endpoint":      {"/v2/library/alpine/signatures/1", 404, "UNSUPPORTED"},
		"tags without list":     {"/v2/library/alpine/tags/", 404, "UNSUPPORTED"},
		"tags of another kind":  {"/v2/library/alpine/tags/lists", 404, "UNSUPPORTED"},
		"trailing slash":        {"/v2/library/alpine/manifests/1/", 404, "UNSUPPORTED"},
		"dots out of v2":        {"/v2/../../etc/passwd", 404, "UNSUPPORTED"},
		"empty name":            {"/v2//manifests/1", 400, "NAME_INVALID"},
		"empty element":         {"/v2/a//b/manifests/1", 400, "NAME_INVALID"},
		"upper case":            {"/v2/Library/alpine/manifests/1", 400, "NAME_INVALID"},
		"dots":                  {"/v2/a/../b/manifests/1", 400, "NAME_INVALID"},
		"dots first":            {"/v2/../../a/manifests/1", 400, "NAME_INVALID"},
		"one dot":               {"/v2/./a/manifests/1", 400, "NAME_INVALID"},
		"encoded dots":          {"/v2/%2e%2e/%2E%2E/manifests/1", 400, "NAME_INVALID"},
		"twice encoded dots":    {"/v2/%252e%252e/a/manifests/1", 400, "NAME_INVALID"},
		"encoded slash":         {"/v2/a%2Fb/manifests/1", 400, "NAME_INVALID"},
		"encoded slash in tag":  {"/v2/a/manifests/..%2f1", 400, "NAME_INVALID"},
		"backslash":             {"/v2/a%5Cb/manifests/1", 400, "NAME_INVALID"},
		"NUL":                   {"/v2/a%00/manifests/1", 400, "NAME_INVALID"},
		"line break":            {"/v2/a%0d%0aSet-Cookie:x/manifests/1", 400, "NAME_INVALID"},
		"space":                 {"/v2/a%20b/manifests/1", 400, "NAME_INVALID"},
		"unicode":               {"/v2/älpine/manifests/1", 400, "NAME_INVALID"},
		"encoded unicode":       {"/v2/%C3%A4lpine/manifests/1", 400, "NAME_INVALID"},
		"not UTF-8":             {"/v2/%ff%fe/manifests/1", 400, "NAME_INVALID"},
		"overlong UTF-8":        {"/v2/%c0%ae%c0%ae/a/manifests/1", 400, "NAME_INVALID"},
		"full-width dots":       {"/v2/\uff0e\uff0e/a/manifests/1", 400, "NAME_INVALID"},
		"lookalike":             {"/v2/\u0430lpine/manifests/1", 400, "NAME_INVALID"},
		"lower case of Kelvin":  {"/v2/\u212aa/manifests/1", 400, "NAME_INVALID"},
		"tab":                   {"/v2/a%09/manifests/1", 400, "NAME_INVALID"},
		"encoded question mark": {"/v2/a%3fns=ghcr.io/manifests/1", 400, "NAME_INVALID"},
		"user in the name":      {"/v2/user:pass@ghcr.io/a/manifests/1", 400, "NAME_INVALID"},
		"separator at end":      {"/v2/a-/manifests/1", 400, "NAME_INVALID"},
		"three underscores":     {"/v2/a___b/manifests/1", 400, "NAME_INVALID"},
		"256 characters":        {"/v2/" + strings.Repeat("a", 256) + "/manifests/1", 400, "NAME_INVALID"},
		"255 with a host":       {"/v2/ghcr.io/" + strings.Repeat("a", 256) + "/manifests/1", 400, "NAME_INVALID"},
		"255 with library/":     {"/v2/" + strings.Repeat("a", 248) + "/manifests/1", 400, "NAME_INVALID"},
		"60,000 characters":     {"/v2/" + strings.Repeat("a/", 30_000) + "a/manifests/1", 400, "NAME_INVALID"},
		"name of tags":          {"/v2/A/tags/list", 400, "NAME_INVALID"},
		"name of referrers":     {"/v2/A/referrers/sha256:" + hex, 400, "NAME_INVALID"},
		"name of blobs":         {"/v2/A/blobs/sha256:" + hex, 400, "NAME_INVALID"},
		"empty tag":             {"/v2/a/manifests/", 400, "TAG_INVALID"},
		"dots as a tag":         {"/v2/a/manifests/..", 400, "TAG_INVALID"},
		"encoded dots as a tag": {"/v2/a/manifests/%2e%2e", 400, "TAG_INVALID"},
		"NUL in a tag":          {"/v2/a/manifests/1%00", 400, "TAG_INVALID"},
		"unicode tag":           {"/v2/a/manifests/ä", 400, "TAG_INVALID"},
		"tag that is a flag":    {"/v2/a/manifests/-1", 400, "TAG_INVALID"},
		"129 characters":        {"/v2/a/manifests/" + strings.Repeat("a", 129), 400, "TAG_INVALID"},
		"no digest":             {"/v2/a/blobs/latest", 400, "DIGEST_INVALID"},
		"empty digest":          {"/v2/a/blobs/", 400, "DIGEST_INVALID"},
		"upload without slash":  {"/v2/a/blobs/uploads", 400, "DIGEST_INVALID"},
		"no digits":             {"/v2/a/blobs/sha256:", 400, "DIGEST_INVALID"},
		"127 digits":            {"/v2/a/blobs/sha512:" + (hex + hex)[1:], 400, "DIGEST_INVALID"},
		"128 digits of 64":      {"/v2/a/blobs/sha256:" + hex + hex, 400, "DIGEST_INVALID"},
		"encoded NUL in it":     {"/v2/a/blobs/sha256:" + hex[:63] + "%00", 400, "DIGEST_INVALID"},
		"63 digits":             {"/v2/a/blobs/sha256:" + hex[1:], 400, "DIGEST_INVALID"},
		"65 digits":             {"/v2/a/blobs/sha256:a" + hex, 400, "DIGEST_INVALID"},
		"64 digits of 128":      {"/v2/a/blobs/sha512:" + hex, 400, "DIGEST_INVALID"},
		"not hexadecimal":       {"/v2/a/blobs/sha256:g" + hex[1:], 400, "DIGEST_INVALID"},
		"upper-case digits":     {"/v2/a/blobs/sha256:" + strings.Repeat("A", 64), 400, "DIGEST_INVALID"},
		"sha384":                {"/v2/a/blobs/" + digest.SHA384.FromString("").String(), 400, "DIGEST_INVALID"},
		"md5":                   {"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"},
		"no algorithm":          {"/v2/a/blobs/:" + hex, 400, "DIGEST_INVALID"},
		"two colons":            {"/v2/a/manifests/sha256::" + hex, 400, "DIGEST_INVALID"},
		"tag with a colon":      {"/v2/a/manifests/a:b", 400, "DIGEST_INVALID"},
		"dots in a digest":      {"/v2/a/blobs/sha256:../" + hex, 404, "UNSUPPORTED"},
		"tag of referrers":      {"/v2/a/referrers/latest", 400, "DIGEST_INVALID"},
		"ns twice":              {"/v2/a/manifests/1?ns=docker.io&ns=ghcr.io", 400, "NAME_INVALID"},
		"ns twice, once empty":  {"/v2/a/manifests/1?ns=&ns=ghcr.io", 400, "NAME_INVALID"},
		"query with a bad %":    {"/v2/a/manifests/1?ns=%zz", 400, "NAME_INVALID"},
		"query with semicolon":  {"/v2/a/manifests/1?ns=docker.io;x=y", 400, "NAME_INVALID"},
		"ns not listed":         {"/v2/a/manifests/1?ns=quay.io", 404, "NAME_UNKNOWN"},
		"ns with user":          {"/v2/a/manifests/1?ns=user:pass@docker.io", 404, "NAME_UNKNOWN"},
		"ns with port":          {"/v2/a/manifests/1?ns=docker.io:5000", 404, "NAME_UNKNOWN"},
		"ns with scheme":        {"/v2/a/manifests/1?ns=https://docker.io", 404, "NAME_UNKNOWN"},
		"ns with path":          {"/v2/a/manifests/1?ns=docker.io/library", 404, "NAME_UNKNOWN"},
		"ns with NUL":           {"/v2/a/manifests/1?ns=docker.io%00", 404, "NAME_UNKNOWN"},
		"ns with line break":    {"/v2/a/manifests/1?ns=docker.io%0d%0aX:y", 404, "NAME_UNKNOWN"},
		"ns of a subdomain":     {"/v2/a/manifests/1?ns=x.docker.io", 404, "NAME_UNKNOWN"},
		"ns that is local":      {"/v2/a/manifests/1?ns=127.0.0.1", 404, "NAME_UNKNOWN"},
		"ns and blob":           {"/v2/a/blobs/" + nobodys.String() + "?ns=quay.io", 404, "NAME_UNKNOWN"},
		"ns and tags":           {"/v2/a/tags/list?ns=quay.io", 404, "NAME_UNKNOWN"},
		"ns and referrers":      {"/v2/a/referrers/" + nobodys.String() + "?ns=quay.io", 404, "NAME_UNKNOWN"},
		"host not listed":       {"/v2/quay.io/a/b/manifests/1", 404, "NAME_UNKNOWN"},
		"host with port":        {"/v2/ghcr.io:5000/a/b/manifests/1", 404, "NAME_UNKNOWN"},
		"localhost":             {"/v2/localhost/a/manifests/1", 404, "NAME_UNKNOWN"},
		"metadata service":      {"/v2/169.254.169.254/a/manifests/1", 404, "NAME_UNKNOWN"},
		"host and ns":           {"/v2/ghcr.io/a/manifests/1?ns=quay.io", 404, "NAME_UNKNOWN"},
		"listed host, bad name": {"/v2/ghcr.io/../a/manifests/1", 400, "NAME_INVALID"},
		"listed host alone":     {"/v2/ghcr.io//manifests/1", 400, "NAME_INVALID"},
	}
	l := newLarder(t, setup{})
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			get, head := l.ask(t, "GET", test.target), l.ask(t, "HEAD", test.target)
			get.wantError(t, test.status, test.code)
			get.want(t, "Docker-Distribution-Api-Version", "registry/2.0")
			get.want(t, "OCI-Namespace", "")
			wantParity(t, get, head)
		})
	}
	if n := l.dialled(); n != 0 || len(l.hub.Requests()) > 0 || len(l.ghcr.Requests()) > 0 {
		t.Errorf("%d requests made upstream, want none", n)
	}
}

func TestOnlyGetAndHead(t *testing.T) {
	l := newLarder(t, setup{})
	paths := []string{
		"/", "/v2", "/v2/", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/77?digest=" + nobodys.String(),
		manifestPath("library/alpine", "3.20"), blobPath("library/alpine", nobodys),
		"/v2/library/alpine/tags/list", "/v2/library/alpine/referrers/" + nobodys.String(), "/v2/../x?ns=quay.io",
	}
	for _, method := range []string{"PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get"} {
		for _, path := range paths {
			a := l.ask(t, method, path)
			a.wantError(t, http.StatusMethodNotAllowed, "UNSUPPORTED")
			a.want(t, "Allow", "GET, HEAD")
		}
	}
	if n := l.dialled(); n != 0 {
		t.Errorf("%d requests made upstream, want none", n)
	}
}

// An upload whose body nobody reads must not be taken for the next request.
func TestRefusedUploadLeavesTheConnectionInOrder(t *testing.T) {
	l := newLarder(t, setup{})
	conn := l.dial(t)
	send(t, conn, "PUT", "/v2/a/manifests/1", "Content-Length: 24", "Connection: close", "", "GET /v2/ HTTP/1.1\r\n\r\n...")
	read(t, conn, "PUT").wantError(t, http.StatusMethodNotAllowed, "UNSUPPORTED")
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("library/alpine", "3.20", random(t, 1, 100_000))
	layer := img.Layers[0].Digest
	l.hub.EnableReferrers()
	l.ghcr.AddImage("library/alpine", "3.20", random(t, 1, 100_000))
	paths := []string{
		manifestPath("library/alpine", "3.20"),
		manifestPath("library/alpine", "3.20") + "?ns=docker.io",
		manifestPath("library/alpine", img.Manifest.String()),
		manifestPath("ghcr.io/library/alpine", "3.20"),
		manifestPath("library/alpine", "missing"),
		manifestPath("library/alpine", nobodys.String()),
		manifestPath("library/nothing", "1"),
		blobPath("library/alpine", layer),
		blobPath("library/alpine", nobodys),
		blobPath("ghcr.io/library/alpine", layer),
		"/v2/library/alpine/tags/list",
		"/v2/library/alpine/tags/list?n=x",
		"/v2/library/nothing/tags/list",
		"/v2/library/alpine/referrers/" + img.Manifest.String() + "?artifactType=a/b",
		"/v2/ghcr.io/library/alpine/referrers/" + img.Manifest.String(),
	}
	conditions := [][]string{
		nil,
		{`If-None-Match: "` + layer.String() + `"`},
		{`If-None-Match: "` + img.Manifest.String() + `"`},
		{"If-None-Match: *"},
		{`If-Match: "other"`},
	}
	for _, path := range paths {
		for _, condition := range conditions {
			t.Run(path+strings.Join(condition, ""), func(t *testing.T) {
				l.ask(t, "GET", path) // what comes next is not the first answer
				l.settle(t)
				wantParity(t, l.ask(t, "GET", path, condition...), l.ask(t, "HEAD", path, condition...))
			})
		}
	}
}

func TestRoutesToTheUpstreamThatIsMeant(t *testing.T) {
	tests := map[string]struct {
		name, ns string
		ghcr     bool
		path     string // upstream's
	}{
		"default":                  {"library/alpine", "", false, "/v2/library/alpine/manifests/1"},
		"default, short name":      {"alpine", "", false, "/v2/library/alpine/manifests/1"},
		"ns, short name":           {"alpine", "docker.io", false, "/v2/library/alpine/manifests/1"},
		"ns is an alias":           {"alpine", "registry-1.docker.io", false, "/v2/library/alpine/manifests/1"},
		"ns in upper case":         {"a/b", "GHCR.io", true, "/v2/a/b/manifests/1"},
		"ns":                       {"a/b", "ghcr.io", true, "/v2/a/b/manifests/1"},
		"no library at others":     {"alpine", "ghcr.io", true, "/v2/alpine/manifests/1"},
		"host in the path":         {"ghcr.io/a/b", "", true, "/v2/a/b/manifests/1"},
		"hub in the path":          {"docker.io/alpine", "", false, "/v2/library/alpine/manifests/1"},
		"ns before path":           {"ghcr.io/a/b", "docker.io", false, "/v2/ghcr.io/a/b/manifests/1"},
		"names of the endpoints":   {"manifests/blobs/tags", "", false, "/v2/manifests/blobs/tags/manifests/1"},
		"255 characters and depth": {strings.Repeat("a/", 127) + "b", "", false, "/v2/" + strings.Repeat("a/", 127) + "b/manifests/1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLarder(t, setup{})
			target := manifestPath(test.name, "1")
			if test.ns != "" {
				target += "?ns=" + test.ns
			}
			a := l.ask(t, "HEAD", target)
			if a.StatusCode != http.StatusNotFound { // the registries are empty
				t.Errorf("status %d, want 404", a.StatusCode)
			}
			a.want(t, "OCI-Namespace", test.ns)
			asked, other := l.hub, l.ghcr
			if test.ghcr {
				asked, other = other, asked
			}
			if got := methods(asked, test.path); len(got) == 0 {
				t.Errorf("upstream was not asked for %s", test.path)
			}
			if got := other.Requests(); len(got) > 0 {
				t.Errorf("the other upstream was asked for %s", got[0].Path)
			}
		})
	}
}

// Some clients encode the colon of a digest.
func TestEncodedColon(t *testing.T) {
	l := newLarder(t, setup{})
	data := []byte(`{"is":"a blob and a manifest"}`)
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := l.hub.AddBlobWith(algorithm, "a/b", data)
		l.hub.AddManifestWith(algorithm, "a/b", "", "application/x", data)
		encoded := d.Algorithm().String() + "%3A" + d.Encoded()
		l.ask(t, "GET", "/v2/a/b/blobs/"+encoded).wantBody(t, http.StatusOK, data)
		l.ask(t, "GET", manifestPath("a/b", strings.ToLower(encoded))).wantBody(t, http.StatusOK, data)
	}
}
