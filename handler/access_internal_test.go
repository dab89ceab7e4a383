package handler

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/auth/watched"
	"larder/handler/upstream"
)

func accessRegistries(t testing.TB) []upstream.Registry {
	t.Helper()
	registries, err := upstream.ParseList("docker.io,ghcr.io")
	if err != nil {
		t.Fatal(err)
	}
	return registries
}

func writeAccess(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAccessIsByUserAndRepository(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access")
	writeAccess(t, path, `# who may pull what
alice   ghcr.io/org/**
alice	ghcr.io/other/app
bob ghcr.io/bob/*

*  docker.io/library/*
anonymous docker.io/library/hello-world
`+"carol docker.io/**\r\n")
	u, err := OpenUsers(path, accessRegistries(t), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]map[string]bool{
		"alice": {
			"ghcr.io/org/app": true, "ghcr.io/org/team/app": true, "ghcr.io/other/app": true, "docker.io/library/alpine": true, "docker.io/library/hello-world": true,
			"ghcr.io/other/app2": false, "ghcr.io/bob/app": false, "ghcr.io/organ/app": false, "docker.io/org/app": false, "docker.io/ghcr.io/org/app": false,
		},
		"bob":       {"ghcr.io/bob/app": true, "ghcr.io/bob/team/app": false, "ghcr.io/org/app": false, "docker.io/library/alpine": true},
		"carol":     {"docker.io/org/app": true, "ghcr.io/org/app": false},
		"dave":      {"docker.io/library/alpine": true, "docker.io/library/hello-world": true, "ghcr.io/org/app": false},
		"Alice":     {"ghcr.io/org/app": false},
		"*":         {"docker.io/library/alpine": true, "ghcr.io/org/app": false},
		"#":         {"docker.io/library/alpine": true, "ghcr.io/org/app": false},
		"anonymous": {"docker.io/library/alpine": true, "ghcr.io/org/app": false}, // a user of that name is nobody special
		"":          {"docker.io/library/hello-world": true, "docker.io/library/alpine": false, "ghcr.io/org/app": false},
	}
	for user, repositories := range tests {
		for repository, want := range repositories {
			if got := u.mayPull(user, repository); got != want {
				t.Errorf("%q may pull %s: %t, want %t", user, repository, got, want)
			}
		}
	}
}

func TestAccessFileNamesEachBadLine(t *testing.T) {
	const form = "not of the form host/repository, in lower case, with * for a part of one element and ** for anything"
	tests := map[string]struct{ content, want string }{
		"empty":           {"", "no rules"},
		"comments only":   {"# alice ghcr.io/**\n \n", "no rules"},
		"user alone":      {"alice\n", "line 1: not a user and a repository"},
		"two globs":       {"# x\nalice ghcr.io/a ghcr.io/b\n", "line 2: not a user and a repository"},
		"comment behind":  {"alice ghcr.io/a # x", "line 1: not a user and a repository"},
		"no glob":         {"alice ghcr.io", "line 1: " + form},
		"upper case":      {"alice ghcr.io/Org/app", "line 1: " + form},
		"three stars":     {"alice ghcr.io/***", "line 1: " + form},
		"tag":             {"alice ghcr.io/org/app@sha256", "line 1: " + form},
		"not listed":      {"alice quay.io/org/**", "line 1: begins with no host of LARDER_UPSTREAMS (Docker Hub's is docker.io)"},
		"no host":         {"alice library/alpine", "line 1: begins with no host of LARDER_UPSTREAMS (Docker Hub's is docker.io)"},
		"one element":     {"alice docker.io/alpine", "line 1: matches nothing: names at Docker Hub have two elements, as in docker.io/library/alpine; all of it is docker.io/**"},
		"byte order mark": {"\ufeffalice ghcr.io/**", "line 1: unprintable character in user name"},
		"several":         {"alice\r\nbob ghcr.io/**\r\ncarol quay.io", "line 1: not a user and a repository; line 3: " + form},
		"too large":       {strings.Repeat("#", maxAccessFile+1), "larger than 1048576 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "access")
			writeAccess(t, path, test.content)
			if _, err := OpenUsers(path, accessRegistries(t), zap.NewNop()); err == nil || err.Error() != path+": "+test.want {
				t.Errorf("got  %v\nwant %s: %s", err, path, test.want)
			}
		})
	}
	if _, err := OpenUsers("/none", accessRegistries(t), zap.NewNop()); !os.IsNotExist(err) {
		t.Errorf("no file: got %v", err)
	}
}

func TestAccessFileIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "access")
		core, logs := observer.New(zap.InfoLevel)
		writeAccess(t, path, "alice ghcr.io/**")
		u, err := OpenUsers(path, accessRegistries(t), zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		want := func(step string, alice, bob bool, logged string) {
			t.Helper()
			time.Sleep(watched.Interval)
			if got := u.mayPull("alice", "ghcr.io/org/app"); got != alice {
				t.Errorf("%s: alice may: %t", step, got)
			}
			if got := u.mayPull("bob", "ghcr.io/org/app"); got != bob {
				t.Errorf("%s: bob may: %t", step, got)
			}
			var lines []string
			for _, line := range logs.TakeAll() {
				lines = append(lines, fmt.Sprint(line.Level, " ", line.Message, " ", line.ContextMap()["error"]))
			}
			if got := strings.Join(lines, "; "); !strings.HasPrefix(got, logged) || (logged == "") != (got == "") {
				t.Errorf("%s: logged %q, want %q", step, got, logged)
			}
		}
		want("unchanged", true, false, "")
		writeAccess(t, path, "bob ghcr.io/**\nalice ghcr.io/other/*")
		want("changed", false, true, "info access file read again")
		writeAccess(t, path, "alice ghcr.io/**\nbob")
		want("bad line", false, true, "error access file changed and can't be used; going on with the old "+path+": line 2: ")
		want("still bad", false, true, "")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		want("gone", false, true, "error access file changed")
		writeAccess(t, path, "alice ghcr.io/**")
		want("back", true, false, "info access file read again")
	})
}

func FuzzParseAccess(f *testing.F) {
	for _, seed := range []string{
		"alice ghcr.io/org/**\n* docker.io/library/*\nanonymous **\n", "# comment\r\n\r\nbob\tghcr.io/a-b/c__d\r\n", "alice", "alice quay.io/x", "\ufeffalice ghcr.io/**",
		"alice ghcr.io/*** x", "a\x00b ghcr.io/a", "ä ghcr.io/a\n\n\n", "alice docker.io/a",
	} {
		f.Add(seed)
	}
	registries := accessRegistries(f)
	known := regexp.MustCompile(`^(no rules|(line \d+: (not a user and a repository|unprintable character in user name|not of the form [^;]*|begins with no host [^;]*|matches nothing: [^;]*; all of it is docker\.io/\*\*)(; |$))+)$`)
	f.Fuzz(func(t *testing.T, content string) {
		rules, err := parseAccess(content, registries)
		if err != nil {
			if rules != nil || !known.MatchString(err.Error()) {
				t.Errorf("got %v and error %q", rules, err)
			}
			return
		}
		lines := 0
		for user, globs := range rules {
			if lines += len(globs); user == "" || strings.ContainsAny(user, " \t\n") || len(globs) == 0 {
				t.Errorf("user %q with %v", user, globs)
			}
		}
		if n := strings.Count(content, "\n") + 1; lines == 0 || lines > n {
			t.Errorf("%d rules of %d lines", lines, n)
		}
	})
}
