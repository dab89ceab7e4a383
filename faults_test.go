package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// What a world's upstream has.
const (
	appName = "library/app"
	appPath = "/v2/" + appName + "/"
	appTag  = appPath + "manifests/1"
)

// usual is the size of a blob that is sent before all of it has arrived, and
// small that of one which is held back until its digest is right.
const (
	usual = 300 << 10
	small = 20 << 10
)

// world is a larder in front of a registry that a test spoils, which has one
// image. After each fault a test asks the same three questions: was any client
// fooled? does the next pull work? is the cache right with upstream gone?
type world struct {
	*larder
	hub    *upstreamtest.Registry
	img    upstreamtest.Image
	layers map[digest.Digest][]byte
	client *http.Client
}

// newWorld starts both, with an image of random layers of these sizes.
func newWorld(t *testing.T, environ []string, sizes ...int) *world {
	t.Helper()
	w := prepareWorld(t, sizes...)
	w.larder = startLarder(t, nil, w.environ(environ...)...)
	t.Cleanup(w.client.CloseIdleConnections) // before it stops: for one that was never used it waits for 5 s
	return w
}

// prepareWorld leaves it to the test to start a larder.
func prepareWorld(t *testing.T, sizes ...int) *world {
	t.Helper()
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	w := &world{
		hub:    upstreamtest.New(t),
		layers: make(map[digest.Digest][]byte),
		client: &http.Client{Transport: transport, Timeout: patience},
	}
	var layers [][]byte
	for i, size := range sizes {
		layers = append(layers, seeded(t, i, size))
	}
	w.img = w.hub.AddImage(appName, "1", layers...)
	for i, layer := range w.img.Layers {
		w.layers[layer.Digest] = layers[i]
	}
	return w
}

// environ is for a larder that listens where there is room.
func (w *world) environ(more ...string) []string {
	return append([]string{"LARDER_ADDR=127.0.0.1:0", "LARDER_UPSTREAMS=docker.io=" + w.hub.URL}, more...)
}

// restart starts another larder on the cache of one that has ended.
func (w *world) restart(t *testing.T, environ ...string) {
	t.Helper()
	w.larder = startLarder(t, nil, w.environ(append(environ, "LARDER_CACHE_DIR="+w.cache)...)...)
	t.Cleanup(w.client.CloseIdleConnections)
}

func seeded(t *testing.T, seed, size int) []byte {
	t.Helper()
	content, err := io.ReadAll(upstreamtest.Seeded(uint64(seed), int64(size)))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// blob is the path of the first layer.
func (w *world) blob() string { return appPath + "blobs/" + w.img.Layers[0].Digest.String() }

// everything is the paths that a pull asks for, in a pull's order.
func (w *world) everything() []string {
	paths := []string{appTag, appPath + "manifests/" + w.img.Manifest.String(), appPath + "blobs/" + w.img.Config.Digest.String()}
	for _, layer := range w.img.Layers {
		paths = append(paths, appPath+"blobs/"+layer.Digest.String())
	}
	return paths
}

// answer is what a client gets.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of a transfer that broke
}

func (a answer) String() string {
	return fmt.Sprintf("%d with %d bytes, %v", a.status, len(a.body), a.err)
}

// ask gets a path, or a range of it such as "0-9".
func (w *world) ask(path, ranges string) answer {
	req, err := http.NewRequest(http.MethodGet, "http://"+w.addr+path, nil)
	if err != nil {
		return answer{err: err}
	}
	if ranges != "" {
		req.Header.Set("Range", "bytes="+ranges)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// digestAt is what a path should have.
func (w *world) digestAt(path string) digest.Digest {
	if path == appTag {
		return w.img.Manifest
	}
	return digest.Digest(path[strings.LastIndex(path, "/")+1:])
}

// lie says how an answer fools a client: by being complete and wrong, or by
// never ending. A status of 400 or more and a broken transfer fool nobody.
func (w *world) lie(path, ranges string, a answer) error {
	d := w.digestAt(path)
	timeout, ok := errors.AsType[net.Error](a.err)
	switch {
	case ok && timeout.Timeout():
		return fmt.Errorf("hangs: %w", a.err)
	case a.err != nil:
		return nil
	case a.header.Get("Content-Encoding") != "":
		return fmt.Errorf("encoded as %q", a.header.Get("Content-Encoding"))
	case a.status >= http.StatusBadRequest:
		return a.saysWhy()
	case a.status == http.StatusOK && d.Algorithm().FromBytes(a.body) == d:
		return nil
	case a.status == http.StatusPartialContent && ranges != "":
		content := w.layers[d]
		from, to, _ := strings.Cut(ranges, "-")
		first, _ := strconv.Atoi(from)
		last, _ := strconv.Atoi(to)
		if a.header.Get("Content-Range") == fmt.Sprintf("bytes %s/%d", ranges, len(content)) && bytes.Equal(a.body, content[first:last+1]) {
			return nil
		}
	}
	return fmt.Errorf("complete and wrong: %v, range %q of %q", a, a.header.Get("Content-Range"), ranges)
}

// saysWhy checks that an error is one that clients understand.
func (a answer) saysWhy() error {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Errors) == 0 || doc.Errors[0].Code == "" || doc.Errors[0].Message == "" {
		return fmt.Errorf("%d without an OCI error: %q", a.status, a.body)
	}
	if a.header.Get("WWW-Authenticate") != "" {
		return fmt.Errorf("%d with a challenge that nobody can answer", a.status)
	}
	return nil
}

func (a answer) whole() bool {
	return a.err == nil && (a.status == http.StatusOK || a.status == http.StatusPartialContent)
}

// crowd has n clients ask at the same time.
func (w *world) crowd(n int, path, ranges string) []answer {
	answers := make([]answer, n)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { answers[i] = w.ask(path, ranges) })
	}
	all.Wait()
	return answers
}

// notFooled is the first of the three questions.
func (w *world) notFooled(t *testing.T, path, ranges string, answers ...answer) {
	t.Helper()
	for _, a := range answers {
		if err := w.lie(path, ranges, a); err != nil {
			t.Errorf("GET %s: the client was fooled: %v", path, err)
		}
	}
}

// next is what the next client gets. Who is told to come later does.
func (w *world) next(t *testing.T, path string) answer {
	t.Helper()
	var a answer
	eventually(t, "a pull without Retry-After", func() bool {
		a = w.ask(path, "")
		return a.header.Get("Retry-After") == ""
	})
	return a
}

// pull has a client get everything.
func (w *world) pull(t *testing.T, when string) {
	t.Helper()
	for _, path := range w.everything() {
		a := w.next(t, path)
		if err := w.lie(path, "", a); err != nil || a.status != http.StatusOK {
			t.Errorf("%s: GET %s: got %v (%v), want all of it", when, path, a, cmp.Or(err, a.err))
		}
	}
}

// recovers asks the other two questions. The fault is over when it is called.
func (w *world) recovers(t *testing.T) {
	t.Helper()
	w.pull(t, "after the fault")
	w.hub.Stop()
	w.pull(t, "with upstream gone")
	w.wantRightCache(t)
}

// wantRightCache waits until everything is under its name and checks that
// nothing wrong is.
func (w *world) wantRightCache(t *testing.T) {
	t.Helper()
	for _, path := range w.everything() {
		d, kind := w.digestAt(path), "manifests"
		if strings.Contains(path, "/blobs/") {
			kind = "blobs"
		}
		eventually(t, path+" on disk", func() bool {
			_, err := os.Stat(storedFile(w.cache, kind, d))
			return err == nil
		})
	}
	wantTrueNames(t, w.cache)
	wantTrueManifests(t, w.cache)
}

// storedFile is where a cache keeps a manifest or a blob.
func storedFile(cache, kind string, d digest.Digest) string {
	return filepath.Join(cache, kind, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// wantTrueManifests checks that every manifest in a cache, which follows a line
// about it, has the digest of its name.
func wantTrueManifests(t *testing.T, cache string) {
	t.Helper()
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := filepath.Join(cache, "manifests", algorithm.String())
		err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && file == dir {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := os.ReadFile(file)
			if _, body, _ := bytes.Cut(content, []byte("\n")); err == nil && algorithm.FromBytes(body).Encoded() != entry.Name() {
				err = fmt.Errorf("%s holds another manifest", file)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
