package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"

	"larder/handler/upstream/upstreamtest"
)

// scraped is what Prometheus would know of larder.
type scraped struct {
	labels map[string][]string            // by metric
	values map[string]map[string][]string // by metric and label
	help   map[string]string
}

// scrapeEverything has larder do all that it counts, and scrapes it.
func scrapeEverything(t *testing.T) scraped {
	t.Helper()
	admin := freeAddr(t)
	w := prepareWorld(t, usual, small)
	limits := []upstreamtest.Fault{upstreamtest.SetHeader("ratelimit-limit", "100;w=21600"), upstreamtest.SetHeader("ratelimit-remaining", "76;w=21600")}
	w.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, limits...)
	w.larder = startLarder(t, nil, w.environ("LARDER_ADMIN_ADDR="+admin, "LARDER_PREFETCH=manifest", "LARDER_SHARED=file://"+t.TempDir())...)
	for range 2 {
		for _, path := range w.everything() {
			w.get(t, path)
		}
	}
	w.get(t, appPath+"manifests/none")
	w.hub.Stop()
	w.get(t, appTag)
	w.get(t, appPath+"manifests/none")

	res, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text := expfmt.NewTextParser(model.LegacyValidation)
	families, err := text.TextToMetricFamilies(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	s := scraped{labels: make(map[string][]string), values: make(map[string]map[string][]string), help: make(map[string]string)}
	s.add("up", "", nil) // Prometheus adds it
	for name, family := range families {
		for _, m := range family.Metric {
			pairs := make(map[string]string)
			for _, pair := range m.Label {
				pairs[pair.GetName()] = pair.GetValue()
			}
			s.add(name, family.GetHelp(), pairs)
			if m.Histogram != nil {
				pairs["le"] = "+Inf"
				s.add(name+"_bucket", family.GetHelp(), pairs)
			}
		}
	}
	return s
}

func (s scraped) add(name, help string, pairs map[string]string) {
	if s.values[name] == nil {
		s.values[name] = make(map[string][]string)
	}
	all := map[string]string{"job": "larder", "instance": "localhost:5001"} // of each target
	maps.Copy(all, pairs)
	for label, value := range all {
		s.values[name][label] = append(s.values[name][label], value)
	}
	s.labels[name], s.help[name] = slices.Collect(maps.Keys(all)), help
}

// check finds what an expression names and larder does not have. It returns the
// labels of the result.
func (s scraped) check(t *testing.T, where, text string) []string {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			s.checkSelector(t, where, n)
		case *parser.AggregateExpr:
			s.checkLabels(t, where, n.Grouping, n.Expr)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				s.checkLabels(t, where, n.VectorMatching.MatchingLabels, n.LHS, n.RHS)
			}
		}
		return nil
	})
	return s.result(expr)
}

// checkSelector also wants each value to be one that larder has: it was scraped, or
// the metric's help names it.
func (s scraped) checkSelector(t *testing.T, where string, v *parser.VectorSelector) {
	t.Helper()
	if s.labels[v.Name] == nil {
		t.Errorf("%s: there is no metric %s", where, v.Name)
		return
	}
	words := regexp.MustCompile(`[a-z0-9]+`).FindAllString(s.help[v.Name], -1)
	for _, m := range v.LabelMatchers {
		if m.Name == model.MetricNameLabel || m.Type != labels.MatchEqual && m.Type != labels.MatchRegexp {
			continue
		}
		for value := range strings.SplitSeq(m.Value, "|") {
			is := regexp.MustCompile("^(?:" + value + ")$").MatchString
			if !slices.ContainsFunc(s.values[v.Name][m.Name], is) && !slices.ContainsFunc(words, is) {
				t.Errorf("%s: %s has no %s that is %q", where, v.Name, m.Name, value)
			}
		}
	}
	for _, m := range v.LabelMatchers {
		if m.Name != model.MetricNameLabel && !slices.Contains(s.labels[v.Name], m.Name) {
			t.Errorf("%s: %s has no label %s", where, v.Name, m.Name)
		}
	}
}

// checkLabels wants each of the names to be a label of one of the expressions.
func (s scraped) checkLabels(t *testing.T, where string, names []string, exprs ...parser.Expr) {
	t.Helper()
	var known []string
	for _, e := range exprs {
		known = append(known, s.result(e)...)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			t.Errorf("%s: no label %s to group or match by", where, name)
		}
	}
}

// result is the labels of what an expression results in.
func (s scraped) result(expr parser.Expr) []string {
	without := func(all, some []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(l string) bool { return slices.Contains(some, l) })
	}
	switch e := expr.(type) {
	case *parser.VectorSelector:
		return s.labels[e.Name]
	case *parser.MatrixSelector:
		return s.result(e.VectorSelector)
	case *parser.ParenExpr:
		return s.result(e.Expr)
	case *parser.AggregateExpr:
		if e.Without {
			return without(s.result(e.Expr), e.Grouping)
		}
		return e.Grouping
	case *parser.Call:
		if e.Func.Name == "histogram_quantile" {
			return without(s.result(e.Args[1]), []string{"le"})
		}
		for _, arg := range e.Args {
			if t := arg.Type(); t == parser.ValueTypeVector || t == parser.ValueTypeMatrix {
				return s.result(arg)
			}
		}
	case *parser.BinaryExpr:
		if e.LHS.Type() == parser.ValueTypeScalar {
			return s.result(e.RHS)
		}
		if e.VectorMatching != nil && !e.VectorMatching.On && !e.Op.IsSetOperator() {
			return without(s.result(e.LHS), e.VectorMatching.MatchingLabels)
		}
		return s.result(e.LHS)
	}
	return nil
}

// wantPlaceholders checks that a text names only labels of the result.
func wantPlaceholders(t *testing.T, where, text string, placeholder *regexp.Regexp, result []string) {
	t.Helper()
	for _, m := range placeholder.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(result, m[1]) {
			t.Errorf("%s: %q names the label %s, and the result has %v", where, text, m[1], result)
		}
	}
}

// Of a metric or label that there is not, Prometheus says nothing: an alert on it never
// fires, and a panel with it is empty.
func TestAlertsAndDashboardNameWhatLarderHas(t *testing.T) {
	t.Parallel()
	s := scrapeEverything(t)
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, s) })
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, s) })
	t.Run("README", func(t *testing.T) {
		readme := readFile(t, "README.md")
		for name := range s.labels {
			if name = strings.TrimSuffix(name, "_bucket"); strings.HasPrefix(name, "larder_") && !strings.Contains(readme, "`"+name+"`") {
				t.Errorf("%s is not in it", name)
			}
		}
	})
}

func checkAlerts(t *testing.T, s scraped) {
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string                    `json:"alert"`
				Expr        string                    `json:"expr"`
				For         string                    `json:"for"`
				Labels      struct{ Severity string } `json:"labels"`
				Annotations map[string]string         `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "docs/alerts.yml")), &file); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, group := range file.Groups {
		for _, r := range group.Rules {
			if pending, err := model.ParseDuration(r.For); err != nil || time.Duration(pending) == 0 || r.Alert == "" || seen[r.Alert] {
				t.Errorf("%s: for %q (%v), or twice the same name", r.Alert, r.For, err)
			}
			seen[r.Alert] = true
			if !slices.Contains([]string{"page", "ticket"}, r.Labels.Severity) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || len(r.Annotations) != 2 {
				t.Errorf("%s: got severity %q and annotations %q", r.Alert, r.Labels.Severity, r.Annotations)
			}
			result := s.check(t, r.Alert, r.Expr)
			for _, text := range r.Annotations {
				wantPlaceholders(t, r.Alert, text, regexp.MustCompile(`\$labels\.(\w+)`), result)
			}
		}
	}
	if len(seen) == 0 {
		t.Error("no alerts")
	}
}

// panel is what matters of a panel here.
type panel struct {
	Title, Type string
	Datasource  struct{ UID string }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ Expr, LegendFormat string }
}

func checkDashboard(t *testing.T, s scraped) {
	content, err := os.ReadFile("docs/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels     []panel
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	var variables, rows []string
	for _, v := range dashboard.Templating.List {
		variables = append(variables, v.Name)
		if metric := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Definition); v.Type == "query" && (metric == nil || !slices.Contains(s.labels[metric[1]], metric[2])) {
			t.Errorf("variable %s: %q", v.Name, v.Definition)
		}
	}
	if want := []string{"datasource", "instance"}; !slices.Equal(variables, want) {
		t.Errorf("variables are %v, want %v", variables, want)
	}
	grafana := strings.NewReplacer("$__rate_interval", "5m", "$__range", "6h", "$instance", ".*")
	for _, p := range dashboard.Panels {
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if p.Datasource.UID != "${datasource}" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("%s: source %q, unit %q, %d targets", p.Title, p.Datasource.UID, p.FieldConfig.Defaults.Unit, len(p.Targets))
		}
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, `instance=~"$instance"`) {
				t.Errorf("%s: %s is not about the instance", p.Title, target.Expr)
			}
			result := s.check(t, p.Title, grafana.Replace(target.Expr))
			wantPlaceholders(t, p.Title, target.LegendFormat, regexp.MustCompile(`\{\{(\w+)\}\}`), result)
		}
	}
	if want := []string{"Pulls", "Upstreams", "Cache", "Warm, prefetch, pins", "Fleet", "Process"}; !slices.Equal(rows, want) {
		t.Errorf("rows are %v, want %v", rows, want)
	}
}
