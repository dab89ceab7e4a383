package main

import (
	"slices"
	"strings"
	"testing"

	"larder/handler/admin/pages"
)

// TestSettingsShownHoldNoSecrets has something secret wherever that can be.
func TestSettingsShownHoldNoSecrets(t *testing.T) {
	cfg, err := readConfig([]string{
		"LARDER_USERNAME=alice", "LARDER_PASSWORD=swordfish", "LARDER_MAX_SIZE=50GiB,80%", "LARDER_ADMIN_HOSTS=larder.example,proxy", "LARDER_CACHE_DIR=/var/cache/x",
		"LARDER_MIDDLEWARE_LIMIT_RUNNING=7", "LARDER_TAG_TTL=", "LARDER_SWORDFISH=swordfish", "AWS_SECRET=swordfish",
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.settings["LARDER_MIDDLEWARE_MINE_KEY"] = "swordfish" // of one that is compiled in
	got := make(map[string]pages.Setting)
	for _, s := range cfg.shown() {
		if strings.Contains(s.Value, "swordfish") {
			t.Errorf("%+v is a secret", s)
		}
		got[s.Name] = s
	}
	for name, want := range map[string]pages.Setting{
		"LARDER_USERNAME":                 {Value: "alice"},
		"LARDER_PASSWORD":                 {Value: masked},
		"LARDER_PASSWORD_FILE":            {Default: true},
		"LARDER_MAX_SIZE":                 {Value: "50GiB,80%"},
		"LARDER_TAG_TTL":                  {Value: "0s", Default: true},
		"LARDER_MEMORY":                   {Value: "64MiB", Default: true},
		"LARDER_ADMIN_ADDR":               {Value: defaultAdminAddr, Default: true},
		"LARDER_CACHE_DIR":                {Value: "/var/cache/x"},
		"LARDER_MIDDLEWARE_LIMIT_RUNNING": {Value: "7"},
		"LARDER_MIDDLEWARE_MINE_KEY":      {Value: masked},
	} {
		want.Name = name
		if got[name] != want {
			t.Errorf("got %+v, want %+v", got[name], want)
		}
	}
	if s, ok := got["LARDER_SWORDFISH"]; ok {
		t.Errorf("a variable that there is not: %+v", s)
	}
}

func TestAdminHostsAreNames(t *testing.T) {
	for value, want := range map[string][]string{
		"larder.example": {"0.0.0.0", "larder.example"}, "larder,larder.monitoring.svc": {"0.0.0.0", "larder", "larder.monitoring.svc"}, "": {"0.0.0.0"},
		"larder.example:5001": nil, "http://larder.example": nil, "*": nil, "a, b": nil, "a,,b": nil, "<script>": nil,
	} {
		cfg, err := readConfig([]string{"LARDER_ADMIN_ADDR=0.0.0.0:5001", "LARDER_ADMIN_HOSTS=" + value})
		if (err == nil) != (want != nil) || err == nil && !slices.Equal(cfg.adminHosts(), want) {
			t.Errorf("%q: %+v, %v", value, cfg, err)
		}
	}
}
