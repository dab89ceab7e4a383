package upstream_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"larder/handler/upstream"
)

func TestParseList(t *testing.T) {
	const hub = "docker.io https://registry-1.docker.io"
	tests := map[string][]string{
		"docker.io":                             {hub},
		"index.docker.io":                       {hub},
		"registry-1.docker.io":                  {hub},
		"registry.hub.docker.com":               {hub},
		" Docker.IO , ghcr.io,":                 {hub, "ghcr.io https://ghcr.io"},
		"docker.io=http://mirror:5000":          {"docker.io http://mirror:5000"},
		"index.docker.io=https://m.example":     {"docker.io https://m.example"},
		"ghcr.io=http://127.0.0.1:6000/":        {"ghcr.io http://127.0.0.1:6000"},
		"a.example = https://b.example":         {"a.example https://b.example"},
		"localhost:5000":                        {"localhost:5000 https://localhost:5000"},
		"a-b.example:65535,x":                   {"a-b.example:65535 https://a-b.example:65535", "x https://x"},
		"[::1]:5000":                            {"[::1]:5000 https://[::1]:5000"},
		"[2001:DB8::1]=http://[2001:db8::1]:80": {"[2001:db8::1] http://[2001:db8::1]:80"},
		"a.example=https://b.example?":          {"a.example https://b.example"},
		"docker.io=https://m.example | https://registry-1.docker.io/": {"docker.io https://m.example https://registry-1.docker.io"},
		"a=http://b|https://b,c":                 {"a http://b https://b", "c https://c"},
		"10.0.0.1=https://10.0.0.1,10.0.0.1:443": {"10.0.0.1 https://10.0.0.1", "10.0.0.1:443 https://10.0.0.1:443"},
	}
	for in, want := range tests {
		t.Run(in, func(t *testing.T) {
			list, err := upstream.ParseList(in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range list {
				got = append(got, r.Host+" "+strings.Join(urls(r), " "))
			}
			if strings.Join(got, ",") != strings.Join(want, ",") {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// urls are a registry's as they are written in a list.
func urls(r upstream.Registry) (list []string) {
	for _, u := range r.URLs {
		list = append(list, u.String())
	}
	return list
}

func TestParseListRefuses(t *testing.T) {
	bad := []string{
		"", " ", ",,", "a b", "ghcr.io/", "ghcr.io/team", "https://ghcr.io", "-a", "a-", ".a", "a.", "a_b", "*.example",
		"a:", "a:x", "a:0", "a:65536", "a:123456", "a:-1", "::1", "[::1", "[gg::1]:1", "[::1]x", "[]", "[:::]", "ünï.example", "a\x00b", "=http://a",
		"a=", "a=b", "a=//b", "a=:", "a=http://", "a=http:b", "a=ftp://b", "a=http://b/c", "a=http://b//", "a=http://b?c", "a=http://b#c",
		"a=http://b:65536", "a=http://b:", "a=http://b c", "a=http://%zz", "a=http://b=c", "a=http://u@b", "a=http://:@b",
		"a,a", "A,a", "docker.io,index.docker.io", "a=http://b,a=http://c",
		"a=http://b|http://b/", "a=http://b|", "a=|http://b", "a=http://b||http://c", "a|b", "a=http://b|c", "a=http://b|ftp://c",
	}
	for _, in := range bad {
		if list, err := upstream.ParseList(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, list)
		}
	}
}

func TestParseListTellsAllErrors(t *testing.T) {
	_, err := upstream.ParseList("ok.example,a b,c=ftp://d,ok.example,e=http://f/g")
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Fatalf("got %v, want four errors", err)
	}
	for _, want := range []string{"entry 2", "URL of c", `"ok.example"`, "URL of e"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q", err, want)
		}
	}
}

func TestParseListKeepsSecrets(t *testing.T) {
	for _, in := range []string{
		"a=https://user:hunter2@b", "a=https://hunter2@b", "a=https://user:hunter2%zz@b", "a=https://user:hunter2@b:port",
		"a=https://b?token=hunter2", "a=https://b#hunter2", "a=https://b/hunter2", "a=user:hunter2@b",
		"user:hunter2@b", "https://user:hunter2@b", "https://hunter2@b", "https://user:hunter2=@b", "https://user:hunter2,x@b",
		"user:hunter2@b=https://b", "https://b?hunter2=1",
		"a=https://b|https://user:hunter2@c", "a=https://b|https://c?hunter2",
	} {
		_, err := upstream.ParseList(in)
		if err == nil || strings.Contains(strings.ToLower(err.Error()), secret) {
			t.Errorf("%q: got %v, want an error without the secret", in, err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{"docker.io,ghcr.io=http://127.0.0.1:6000", "[::1]:5000", "a=https://u:p@b", "a=http://b/?c#d", "a:65536", "A,a", "=", "a=HTTP://B", "a=http://b|https://c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := upstream.ParseList(s)
		if err != nil {
			return
		}
		if len(list) == 0 {
			t.Fatal("an empty list without an error")
		}
		var again strings.Builder
		for _, r := range list {
			for _, u := range r.URLs {
				if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.String() != u.Scheme+"://"+u.Host {
					t.Errorf("URL %q", u)
				}
				if port := u.Port(); port != "" {
					if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
						t.Errorf("port of %q", u)
					}
				}
			}
			if r.Host != strings.ToLower(r.Host) || strings.ContainsAny(r.Host, "/@?#,= ") {
				t.Errorf("host %q", r.Host)
			}
			again.WriteString(r.Host + "=" + strings.Join(urls(r), "|") + ",")
		}
		same, err := upstream.ParseList(again.String())
		if err != nil || len(same) != len(list) {
			t.Fatalf("%q became %q: %v", s, again.String(), err)
		}
		for i := range list {
			if same[i].Host != list[i].Host || strings.Join(urls(same[i]), "|") != strings.Join(urls(list[i]), "|") {
				t.Errorf("%v became %v", list[i], same[i])
			}
		}
	})
}

// undialled is a transport that nobody may use.
type undialled struct{ testing.TB }

// RoundTrip implements http.RoundTripper.
func (u undialled) RoundTrip(req *http.Request) (*http.Response, error) {
	u.Errorf("%s was asked", req.URL.Host)
	return nil, errors.New("not to be dialled")
}

func listed(tb testing.TB, list string) *upstream.Client {
	tb.Helper()
	registries, err := upstream.ParseList(list)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Registries: registries, Transport: undialled{tb}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

const several = "docker.io,ghcr.io,reg.example:5000,localhost,[::1]:5000"

func TestRepository(t *testing.T) {
	long := strings.Repeat("a", 255)
	tests := map[string]struct {
		ns, name string
		want     string
		err      error
	}{
		"default":              {"", "alpine", "docker.io/library/alpine", nil},
		"default, nested":      {"", "team/app", "docker.io/team/app", nil},
		"library given":        {"", "library/alpine", "docker.io/library/alpine", nil},
		"hub by prefix":        {"", "docker.io/alpine", "docker.io/library/alpine", nil},
		"hub by alias":         {"", "index.docker.io/team/app", "docker.io/team/app", nil},
		"prefix":               {"", "ghcr.io/app", "ghcr.io/app", nil},
		"prefix in capitals":   {"", "GHCR.io/team/app", "ghcr.io/team/app", nil},
		"prefix with port":     {"", "reg.example:5000/a/b/c", "reg.example:5000/a/b/c", nil},
		"prefix IPv6":          {"", "[::1]:5000/a", "[::1]:5000/a", nil},
		"prefix localhost":     {"", "localhost/a", "localhost/a", nil},
		"ns":                   {"ghcr.io", "app", "ghcr.io/app", nil},
		"ns alias":             {"registry-1.docker.io", "alpine", "docker.io/library/alpine", nil},
		"ns with port":         {"reg.example:5000", "app", "reg.example:5000/app", nil},
		"ns before prefix":     {"ghcr.io", "localhost/a", "ghcr.io/localhost/a", nil},
		"separators":           {"", "a.b_c__d-e---f/0", "docker.io/a.b_c__d-e---f/0", nil},
		"longest":              {"ghcr.io", long, "ghcr.io/" + long, nil},
		"unlisted ns":          {"evil.example", "a", "", upstream.ErrNotListed},
		"unlisted ns port":     {"ghcr.io:443", "a", "", upstream.ErrNotListed},
		"ns with userinfo":     {"x@ghcr.io", "a", "", upstream.ErrNotListed},
		"ns of several":        {"ghcr.io,docker.io", "a", "", upstream.ErrNotListed},
		"ns URL":               {"https://ghcr.io", "a", "", upstream.ErrNotListed},
		"ns blank":             {" ", "a", "", upstream.ErrNotListed},
		"unlisted prefix":      {"", "evil.example/a", "", upstream.ErrNotListed},
		"unlisted prefix port": {"", "reg:5000/a", "", upstream.ErrNotListed},
		"unlisted, other port": {"", "reg.example:5001/a", "", upstream.ErrNotListed},
		"metadata address":     {"", "169.254.169.254/latest", "", upstream.ErrNotListed},
		"empty":                {"", "", "", upstream.ErrName},
		"only a host":          {"", "ghcr.io/", "", upstream.ErrName},
		"dot dot":              {"ghcr.io", "a/../b", "", upstream.ErrName},
		"all dots":             {"", "..", "", upstream.ErrName},
		"dot dot first":        {"", "../a", "", upstream.ErrName},
		"empty element":        {"", "a//b", "", upstream.ErrName},
		"slash first":          {"", "/a", "", upstream.ErrName},
		"slash last":           {"", "a/", "", upstream.ErrName},
		"capitals":             {"", "Team/app", "", upstream.ErrName},
		"too long":             {"ghcr.io", long + "a", "", upstream.ErrName},
		"too long, library":    {"", long, "", upstream.ErrName},
		"unicode":              {"", "tëam/app", "", upstream.ErrName},
		"full width":           {"", "ａpp", "", upstream.ErrName},
		"dash first":           {"", "-a/b", "", upstream.ErrName},
		"dash later":           {"", "a/-b", "", upstream.ErrName},
		"dash last":            {"", "a-/b", "", upstream.ErrName},
		"underscores":          {"", "a___b", "", upstream.ErrName},
		"dots":                 {"ghcr.io", "a..b", "", upstream.ErrName},
		"tag":                  {"", "a/b:c", "", upstream.ErrName},
		"digest":               {"", "a/b@sha256", "", upstream.ErrName},
		"escape":               {"", "a/%2e%2e/b", "", upstream.ErrName},
		"query":                {"", "a?b", "", upstream.ErrName},
		"newline":              {"", "a\n", "", upstream.ErrName},
		"NUL":                  {"", "a\x00", "", upstream.ErrName},
	}
	c := listed(t, several)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := c.Repository(test.ns, test.name)
			if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
				t.Fatalf("got error %v, want %v", err, test.err)
			}
			if err == nil && (r.String() != test.want || !strings.HasPrefix(test.want, r.Host()+"/")) {
				t.Errorf("got %s at %s, want %s", r, r.Host(), test.want)
			}
		})
	}
}

func FuzzRepository(f *testing.F) {
	for _, s := range [][2]string{{"", "alpine"}, {"ghcr.io", "a/b"}, {"", "ghcr.io/a/../b"}, {"GHCR.IO", "a__b"}, {"", "reg.example:5000/a-b"}, {"", strings.Repeat("a/", 127) + "a"}} {
		f.Add(s[0], s[1])
	}
	c := listed(f, several)
	f.Fuzz(func(t *testing.T, ns, name string) {
		r, err := c.Repository(ns, name)
		if err != nil {
			if !errors.Is(err, upstream.ErrNotListed) && !errors.Is(err, upstream.ErrName) {
				t.Error(err)
			}
			return
		}
		found := false
		for h := range strings.SplitSeq(several, ",") {
			found = found || h == r.Host()
		}
		rest, ok := strings.CutPrefix(r.String(), r.Host()+"/")
		if !found || !ok || len(rest) > 255 {
			t.Errorf("%q, %q is %s at %s", ns, name, r, r.Host())
		}
		if !strings.HasSuffix(rest, name) && !strings.HasSuffix(name, "/"+rest) {
			if !strings.HasSuffix(name, "/"+strings.TrimPrefix(rest, "library/")) {
				t.Errorf("%q, %q is the repository %q", ns, name, rest)
			}
		}
		for element := range strings.SplitSeq(rest, "/") {
			if !isElement(element) {
				t.Errorf("%q, %q has the element %q", ns, name, element)
			}
		}
	})
}

// isElement is the specification's grammar without a regular expression: letters and digits,
// and single separators between them.
func isElement(s string) bool {
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for sep := range strings.FieldsFuncSeq(s, func(r rune) bool { return r < 128 && alnum(byte(r)) }) {
		if sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
	}
	return true
}
