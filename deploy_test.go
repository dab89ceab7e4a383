package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-units"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

const deployDir = "docs/deploy/"

// manifests decodes the documents of a file strictly, as an API server that refuses
// unknown fields does.
func manifests(t *testing.T, file string) (objects []any) {
	t.Helper()
	return decode(t, file, readFile(t, deployDir+file))
}

func decode(t *testing.T, file, content string) (objects []any) {
	t.Helper()
	for text := range bytes.SplitSeq([]byte(content), []byte("\n---\n")) {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(text, &kind); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		object, ok := map[string]any{
			"v1 Namespace": new(corev1.Namespace), "v1 ConfigMap": new(corev1.ConfigMap), "v1 Pod": new(corev1.Pod),
			"apps/v1 DaemonSet": new(appsv1.DaemonSet), "networking.k8s.io/v1 NetworkPolicy": new(networkingv1.NetworkPolicy),
		}[kind.APIVersion+" "+kind.Kind]
		if !ok {
			t.Fatalf("%s: a %s of %s", file, kind.Kind, kind.APIVersion)
		}
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			t.Errorf("%s: %s: %v", file, kind.Kind, err)
		}
		objects = append(objects, object)
	}
	return objects
}

// find is the one object of its type.
func find[T any](t *testing.T, objects []any) T {
	t.Helper()
	i := slices.IndexFunc(objects, func(o any) bool { _, ok := o.(T); return ok })
	if i < 0 {
		t.Fatalf("no %T", *new(T))
	}
	return objects[i].(T)
}

// wantConfined checks a container of larder's, and returns its environment.
func wantConfined(t *testing.T, pod corev1.PodSpec, c corev1.Container) (environ []string) {
	t.Helper()
	s := c.SecurityContext
	if c.Name != "larder" || s == nil || !*s.RunAsNonRoot || *s.RunAsUser != 65532 || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.SeccompProfile == nil {
		t.Errorf("container %s may too much: %v", c.Name, s)
	}
	if c.LivenessProbe == nil || c.StartupProbe == nil || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Error("no probes, or no bounds of its memory")
	}
	bounded := false
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" {
			bound, err := units.RAMInBytes(e.Value)
			bounded = err == nil && bound < c.Resources.Limits.Memory().Value()
		}
		if e.ValueFrom == nil && strings.HasPrefix(e.Name, "LARDER_") {
			environ = append(environ, e.Name+"="+e.Value)
		}
	}
	if !bounded {
		t.Error("the collector does not know of the memory's bound")
	}
	for _, m := range c.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("there is no volume %s", m.Name)
		}
	}
	if cfg, err := readConfig(append(environ, "LARDER_CACHE_DIR=/var/cache/larder")); err != nil {
		t.Error(err)
	} else if grace := int64(cfg.ShutdownGrace.Seconds()); *pod.TerminationGracePeriodSeconds <= grace || *pod.EnableServiceLinks {
		t.Errorf("it is killed %d s after SIGTERM, and wants %d; or it gets variables of Services", *pod.TerminationGracePeriodSeconds, grace)
	}
	return environ
}

func TestDaemonSet(t *testing.T) {
	t.Parallel()
	objects := manifests(t, "daemonset.yaml")
	set := find[*appsv1.DaemonSet](t, objects)
	pod := set.Spec.Template.Spec
	environ := wantConfined(t, pod, pod.Containers[0])
	for _, p := range pod.Containers[0].Ports {
		if p.HostPort != 0 && p.HostIP != "127.0.0.1" || p.Name == "registry" && p.HostPort != 5000 {
			t.Errorf("port %v is open to the network", p)
		}
	}
	if !reflect.DeepEqual(set.Spec.Selector.MatchLabels, set.Spec.Template.Labels) ||
		!reflect.DeepEqual(find[*networkingv1.NetworkPolicy](t, objects).Spec.PodSelector.MatchLabels, set.Spec.Template.Labels) {
		t.Error("a selector is for other pods")
	}
	var listed []string
	for host := range find[*corev1.ConfigMap](t, objects).Data {
		listed = append(listed, host)
	}
	slices.Sort(listed)
	if want := "LARDER_UPSTREAMS=" + strings.Join(listed, ","); !slices.Contains(environ, want) {
		t.Errorf("hosts.toml are written for %v, and larder has %v", listed, environ)
	}
	if home := find[*corev1.Namespace](t, objects); set.Namespace != home.Name || home.Labels["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("the namespace is %s, of %v, and pods with a hostPath are for %s", home.Name, home.Labels, set.Namespace)
	}
}

// What is commented out is right when it is not.
func TestDaemonSetOfAFleet(t *testing.T) {
	t.Parallel()
	content := regexp.MustCompile(`(?m)^( +)# (- \{name: LARDER_.*)$`).ReplaceAllString(readFile(t, deployDir+"daemonset.yaml"), "$1$2")
	set := find[*appsv1.DaemonSet](t, decode(t, "daemonset.yaml", content))
	environ := []string{"LARDER_CACHE_DIR=/var/cache/larder"}
	for _, e := range set.Spec.Template.Spec.Containers[0].Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			value = e.ValueFrom.SecretKeyRef.Key
		}
		environ = append(environ, e.Name+"="+value)
	}
	cfg, err := readConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Shared == "" || cfg.SharedAccessKey != "access" || cfg.SharedSecretKey != "secret" || cfg.parent == nil {
		t.Errorf("store %q with keys %q and %q, parent %v", cfg.Shared, cfg.SharedAccessKey, cfg.SharedSecretKey, cfg.parent)
	}
}

// runInit runs the init container of the DaemonSet on directories of its own.
func runInit(t *testing.T, hosts string) (output string) {
	t.Helper()
	objects := manifests(t, "daemonset.yaml")
	config, cache := t.TempDir(), t.TempDir()
	for host, text := range find[*corev1.ConfigMap](t, objects).Data {
		writeFile(t, filepath.Join(config, host), text)
	}
	command := find[*appsv1.DaemonSet](t, objects).Spec.Template.Spec.InitContainers[0].Command
	output, err := runCommand(t, []string{"CONFIG=" + config, "HOSTS=" + hosts, "CACHE=" + cache, "OWNER=65532:65532"}, command[0], command[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func TestDaemonSetWritesHosts(t *testing.T) {
	t.Parallel()
	requireContainerd(t)
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	l := startLarder(t, []*testUpstream{hub})
	c := newContainerd(t, l.addr)
	hosts := filepath.Join(c.dir, "hosts")
	foreign := writeFile(t, filepath.Join(hosts, "ghcr.io", "hosts.toml"), "server = \"https://mirror.example\"\n")
	for range 2 { // as at each start of a pod
		runInit(t, hosts)
	}
	if text := readFile(t, foreign); !strings.Contains(text, "mirror.example") {
		t.Errorf("somebody's own hosts.toml has become %q", text)
	}
	file := filepath.Join(hosts, "docker.io", "hosts.toml")
	text := readFile(t, file)
	// larder is at another port here, and without it there must be no pull.
	text = strings.NewReplacer("localhost:5000", l.addr, "https://registry-1.docker.io", "http://127.0.0.1:1").Replace(text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.pull(t, hubName+":1"); err != nil {
		t.Error(err)
	}
}

func TestSidecar(t *testing.T) {
	t.Parallel()
	objects := manifests(t, "sidecar.yaml")
	pod := find[*corev1.Pod](t, objects).Spec
	sidecar := pod.InitContainers[0]
	environ := wantConfined(t, pod, sidecar)
	if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the others would wait for larder's end")
	}
	for _, want := range []string{"LARDER_ADDR=127.0.0.1:5000", "LARDER_ADMIN_ADDR=127.0.0.1:5001"} {
		if !slices.Contains(environ, want) {
			t.Errorf("got %v, want %s", environ, want)
		}
	}
	if *pod.SecurityContext.FSGroup != *sidecar.SecurityContext.RunAsGroup {
		t.Error("larder can't write its volume")
	}
}

func TestComposeFile(t *testing.T) {
	t.Parallel()
	type service struct {
		Build, Image, Restart string
		StopGracePeriod       string `json:"stop_grace_period"`
		Ports                 []string
		Environment           map[string]string
		Volumes               []string
		ReadOnly              bool     `json:"read_only"`
		CapDrop               []string `json:"cap_drop"`
		SecurityOpt           []string `json:"security_opt"`
		MemLimit              string   `json:"mem_limit"`
		PidsLimit             int      `json:"pids_limit"`
		Logging               struct {
			Driver  string
			Options map[string]string
		}
	}
	var file struct {
		Name     string
		Services map[string]service
		Volumes  map[string]struct{}
	}
	if err := yaml.UnmarshalStrict([]byte(readFile(t, deployDir+"compose.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	s := file.Services["larder"]
	for _, port := range s.Ports {
		if !strings.HasPrefix(port, "127.0.0.1:") {
			t.Errorf("%s is open to the network", port)
		}
	}
	if _, err := os.Stat(filepath.Join(deployDir, s.Build, "Dockerfile")); err != nil || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
		t.Errorf("built from %s (%v), read-only: %v, without %v", s.Build, err, s.ReadOnly, s.CapDrop)
	}
	volume, _, _ := strings.Cut(s.Volumes[0], ":")
	if _, ok := file.Volumes[volume]; !ok {
		t.Errorf("volume %s is not among %v", volume, file.Volumes)
	}
	environ := []string{"LARDER_CACHE_DIR=/var/cache/larder"}
	for name, value := range s.Environment {
		environ = append(environ, name+"="+value)
	}
	cfg, err := readConfig(environ)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(cfg.adminHosts(), "larder") {
		t.Errorf("containers beside it ask by a name that is none of %q", cfg.adminHosts())
	}
}

func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	requireProgram(t, "systemd-analyze")
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"larder.service", "larder.socket", "larder-admin.socket"} {
		text := strings.Replace(readFile(t, deployDir+name), "ExecStart=/usr/local/bin/larder", "ExecStart="+os.Args[0], 1) // which is there
		units = append(units, writeFile(t, filepath.Join(dir, name), text))
	}
	// What it does not know it only mentions.
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), dir) {
		t.Errorf("units are not right (%v):\n%s", err, out)
	}
	// 1.2 of 10, the most of which is that larder talks to the network.
	if _, err := runCommand(t, nil, "systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", units[0]); err != nil {
		t.Error(err)
	}
	for i, name := range []string{"registry", "admin"} {
		if !strings.Contains(readFile(t, units[i+1]), "\nFileDescriptorName="+name+"\n") || socketNames()[name] == "" {
			t.Errorf("%s is not called %s", units[i+1], name)
		}
	}
}

// Variables in what people copy must be larder's.
func TestDeploymentsNameVariablesThatExist(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(deployDir + "*")
	if err != nil || len(files) == 0 {
		t.Fatalf("files: %v, %v", files, err)
	}
	vars := make(map[string]string)
	for _, file := range append(files, "Dockerfile", "docs/alerts.yml") {
		for _, name := range regexp.MustCompile(`\bLARDER_[A-Z_]+`).FindAllString(readFile(t, file), -1) {
			vars[name] = file
		}
	}
	for _, v := range unknownVariables(vars) {
		t.Errorf("%s names %s, which there is not", vars[v.name], v.name)
	}
}
