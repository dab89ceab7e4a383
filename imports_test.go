package main

import (
	"os/exec"
	"strings"
	"testing"
)

// layers are those of the design: imports run downwards only. Which packages
// may know go-containerregistry is said as well.
var layers = map[string]int{
	"larder/handler/errcode": 0, "larder/blobcache/durable": 0, "larder/blobcache/memory": 0, "larder/blobcache/compact": 0, "larder/ttl": 0, "larder/auth": 0, "larder/auth/token": 0, "larder/auth/watched": 0,
	"larder/auth/htpasswd": 1, "larder/handler/upstream": 1, "larder/blobcache": 1, "larder/handler/shared/store": 1, "larder/manifestcache": 1,
	"larder/handler/shared/storetest": 2, "larder/handler/admin/setup": 2, "larder/handler/middleware": 2, "larder/handler/upstream/upstreamtest": 2, "larder/handler/warm": 2, "larder/handler/shared": 2,
	"larder/handler": 3, "larder/handler/admin/doctor": 3, "larder/handler/admin/history": 3, "larder/handler/admin/pages": 4, "larder/handler/admin": 5,
	"larder": 6,
}

func TestImportsRunDownwards(t *testing.T) {
	const ggcr = "github.com/google/go-containerregistry/"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		names := strings.Fields(line)
		from, ok := layers[names[0]]
		if !ok {
			t.Errorf("%s is in no layer", names[0])
		}
		for _, name := range names[1:] {
			if to, ok := layers[name]; strings.HasPrefix(name, "larder") && (!ok || to >= from || strings.HasSuffix(name, "test")) {
				t.Errorf("%s (layer %d) imports %s (layer %d)", names[0], from, name, to)
			}
			if knows := names[0] == "larder" || names[0] == "larder/auth" || names[0] == "larder/handler/upstream"; strings.HasPrefix(name, ggcr) && !knows {
				t.Errorf("%s imports %s", names[0], name)
			}
		}
	}
	// What the caches import imports nothing of the kind either.
	out, err = exec.CommandContext(t.Context(), "go", "list", "-deps", "./blobcache", "./manifestcache").CombinedOutput()
	if err != nil || strings.Contains(string(out), "larder/handler") || strings.Contains(string(out), ggcr) {
		t.Errorf("the caches know of registries (%v):\n%s", err, out)
	}
}
