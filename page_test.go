package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// sip reads n bytes of a blob that larder sends.
func sip(t *testing.T, c *controlled, path string, n int64) (rest func()) {
	t.Helper()
	resp, err := c.open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if _, err := io.CopyN(io.Discard, resp.Body, n); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
	}
}

// TestStatusPageShowsAFill has upstream stop in the middle of a blob, and has a
// browser look on: nothing is asked for but by the page itself.
func TestStatusPageShowsAFill(t *testing.T) {
	t.Parallel()
	const size, half = 4 << 20, 1 << 20
	b := newBrowser(t)
	c := newControlled(t, nil, size)
	first, second := make(chan struct{}), make(chan struct{})
	c.hub.Fault(upstreamtest.Match{Path: "/blobs/", Times: 1}, upstreamtest.GateAfter(half, first), upstreamtest.GateAfter(3*half, second))
	c.want(t, appTag, http.StatusOK, nil)
	rest := sip(t, c, c.blob(), 100<<10)

	b.open(t, "http://"+c.admin+"/")
	b.until(t, `document.getElementById("live").textContent === "Live."`)
	const bar = `Number(document.querySelector("#fills [role=progressbar]")?.getAttribute("aria-valuenow"))`
	b.until(t, bar+" === 25")
	for _, part := range []string{"docker.io/" + appName, "1 reader", "1 MiB of 4 MiB"} {
		b.until(t, fmt.Sprintf(`document.getElementById("fills").innerText.includes(%q)`, part))
	}
	if n := eval[int](t, b, `document.querySelectorAll("#fills rect").length`); n != 1 {
		t.Errorf("%d extents are drawn, want one", n)
	}
	close(first)
	b.until(t, bar+" === 75")
	close(second)
	rest()
	b.until(t, `document.getElementById("fills").innerText.includes("Nothing is being fetched")`)
	b.until(t, `document.getElementById("space").innerText.includes("4 MiB in 1 blobs")`)
	b.until(t, `document.getElementById("upstreams").innerText.includes("answers")`)
	b.until(t, `document.getElementById("slowest").innerText.includes("docker.io/`+appName+`")`)
}

// TestStatusPageShowsTheStore has the fleet's store go away under a page.
func TestStatusPageShowsTheStore(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	f := newFleet(t, "s3", usual)
	c := f.join(t)
	b.open(t, "http://"+c.admin+"/")
	b.until(t, `document.getElementById("live").textContent === "Live."`)
	const says = `document.getElementById("shared").innerText.includes(%q)`
	b.until(t, fmt.Sprintf(says, "in use"))
	c.pull(t, "by the only larder")
	c.shared(t)
	b.until(t, `/Written there, so far\s+[1-9]/.test(document.getElementById("shared").innerText)`)
	f.gateway.Stop()
	for i := range 5 {
		c.want(t, fmt.Sprintf("%smanifests/sha256:%064d", appPath, i), http.StatusNotFound, nil)
	}
	b.until(t, fmt.Sprintf(says, "not read for a while"))
	b.until(t, fmt.Sprintf(says, "connection refused"))
}

// TestStatusPageWithoutScripts is what curl and text browsers get.
func TestStatusPageWithoutScripts(t *testing.T) {
	t.Parallel()
	c := stored(t, []string{"LARDER_USERNAME=alice", "LARDER_PASSWORD=swordfish", "LARDER_MAX_SIZE=10MiB"}, usual, small)
	c.want(t, c.blob(), http.StatusOK, nil)
	var resp *http.Response
	var body string
	eventually(t, "all answers to be counted", func() bool { // which is after they were sent
		resp, body = ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/", "", "")
		return strings.Contains(body, "of 6 answers")
	})
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("got %s", resp.Status)
	}
	for _, part := range []string{
		"Ready.", "% of the 10 MiB", "in 7 days", "docker.io/" + appName, "answers", "LARDER_PASSWORD</code></th><td><code>(set, not shown)", "alice", "requestid → log → audit", version(),
		"2 of 6 answers", // the manifest by digest, after it was asked for by tag, and a layer a second time
	} {
		if !strings.Contains(body, part) {
			t.Errorf("%q is not in the page", part)
		}
	}
	if strings.Contains(body, "swordfish") {
		t.Error("the password is in the page")
	}
	if t.Failed() {
		t.Log(body)
	}
}

// press clicks a button of the images page and waits for what it says.
func (b *browser) press(t *testing.T, button, reference, said string) {
	t.Helper()
	act(t, b, chromedp.Click(fmt.Sprintf(`button[aria-label="%s %s"]`, button, reference)))
	b.until(t, fmt.Sprintf(`document.querySelector("[role=status]")?.innerText.includes(%q) ?? false`, said))
}

func TestImagesPageFindsRefreshesAndDeletes(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	c := stored(t, []string{"LARDER_TAG_TTL=1h"}, usual, small)
	manyImages(t, c)
	const rows = `document.querySelectorAll("table.images tbody tr").length`
	b.open(t, "http://"+c.admin+"/images")
	b.until(t, rows+" === 14")
	act(t, b, chromedp.SendKeys("#q", "library/app:1\r"))
	b.until(t, rows+` === 1 && document.querySelector("table.images").innerText.includes("docker.io/`+appName+`")`)
	b.until(t, `document.querySelector("table.images").innerText.includes("yes")`)

	reference := "docker.io/" + appName + ":1"
	b.press(t, "Refresh", reference, "still")
	moved := c.hub.AddImage(appName, "1", seeded(t, 50, small))
	b.press(t, "Refresh", reference, "moved from "+c.img.Manifest.String()+" to "+moved.Manifest.String())
	b.until(t, `document.querySelector("table.images").innerText.includes("moved 1 time")`)
	b.until(t, fmt.Sprintf(`[...document.querySelectorAll(".moves code")].map((code) => code.title).join() === %q`, c.img.Manifest.String()+","+moved.Manifest.String()))

	b.press(t, "Delete", reference, "is removed")
	call[any](t, c, "GET", "/cache/app:1", http.StatusNotFound)
	b.until(t, `document.body.innerText.includes("No image in the cache is called so.")`)
	b.open(t, "http://"+c.admin+"/images?q=library/app")
	b.until(t, rows+` === 1 && document.querySelector("table.images").innerText.includes("no tag")`) // what it had pointed at before
	b.press(t, "Delete", "docker.io/"+appName+"@"+c.img.Manifest.String(), "is removed")
	b.until(t, `document.body.innerText.includes("No image in the cache is called so.")`)
	call[any](t, c, "GET", "/cache/"+c.img.Layers[0].Digest.String(), http.StatusNotFound)
}

// TestImagesPagePins, and what is pinned is not deleted by the button beside it.
func TestImagesPagePins(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	c := stored(t, nil, usual, small)
	reference := "docker.io/" + appName + ":1"
	wantPinned := func(want bool) {
		t.Helper()
		if pin := call[struct{ ByHand bool }](t, c, "GET", "/pin/"+reference, http.StatusOK); pin.ByHand != want {
			t.Errorf("pinned: %v, want %v", pin.ByHand, want)
		}
	}
	b.open(t, "http://"+c.admin+"/images?q=library/app")
	b.press(t, "Pin", reference, reference+" is pinned.")
	wantPinned(true)
	b.press(t, "Delete", reference, "unpin that first")
	call[shownImage](t, c, "GET", "/cache/app:1", http.StatusOK)
	b.press(t, "Unpin", reference, reference+" is not pinned any more.")
	wantPinned(false)
	b.until(t, fmt.Sprintf(`document.querySelector('button[aria-label="Pin %s"]') !== null`, reference))
}

// TestPagesLeadToEachOther by the links at their head.
func TestPagesLeadToEachOther(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	c := stored(t, nil, small)
	b.open(t, "http://"+c.admin+"/")
	for _, step := range []struct{ link, shows string }{
		{`nav a[href="/images"]`, "docker.io/" + appName}, {`nav a[href="/setup"]`, "Setup of clients"}, {`nav a[href="/"]`, "From the cache"}, {`nav a[href="/doctor"]`, "pull through larder"},
	} {
		act(t, b, chromedp.Click(step.link))
		b.until(t, fmt.Sprintf(`document.body?.innerText.includes(%q) ?? false`, step.shows))
	}
}

// TestPagesKeepToTheirPolicy tries in the browser what the policy forbids, and what a page
// elsewhere could try.
func TestPagesKeepToTheirPolicy(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	c := stored(t, nil, small)
	b.open(t, "http://"+c.admin+"/images")
	b.wantQuiet(t)
	if eval[bool](t, b, `(() => {
		const script = document.createElement("script");
		script.textContent = "window.ran = true";
		document.body.append(script);
		document.body.insertAdjacentHTML("beforeend", "<img src='data:image/png,x' onerror='window.ran = true'><p id=styled style='position: fixed'></p>");
		return window.ran === true || getComputedStyle(document.getElementById("styled")).position === "fixed";
	})()`) {
		t.Error("what is written into the page counts")
	}
	b.wantComplaints(t, "script-src", "style-src")

	// A page of another origin, as this listener is by another name.
	b.open(t, "http://"+strings.Replace(c.admin, "127.0.0.1", "localhost", 1)+"/")
	b.wantQuiet(t)
	if eval[bool](t, b, fmt.Sprintf(`fetch("http://%s/images").then(() => true, () => false)`, c.admin)) {
		t.Error("a page may ask other origins")
	}
	b.wantComplaints(t, "connect-src")
	call[shownImage](t, c, "GET", "/cache/app:1", http.StatusOK)
}

// TestPagesDoNotHoldUpTheEnd has a page listen when larder stops.
func TestPagesDoNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_SHUTDOWN_GRACE=1h"}, small)
	resp, err := http.Get("http://" + c.admin + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 100); err != nil || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v of %s", err, resp.Header)
	}
	c.stop(t)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("the page's connection breaks: %v", err)
	}
}

// TestHostileNamesInABrowser has a hand in the cache that gives a repository and a
// tag names which no registry has, and a registry that makes up a platform.
func TestHostileNamesInABrowser(t *testing.T) {
	t.Parallel()
	const mark = `"><img src=x onerror='window.ran = 1'><script>window.ran = 1</script>` // without the colon before a tag
	b := newBrowser(t)
	c := stored(t, nil, small)
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Annotations: map[string]string{"org.opencontainers.image.title": mark}, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: c.img.Manifest, Size: int64(len(c.img.Body)), Platform: &ocispec.Platform{OS: mark, Architecture: mark}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.hub.AddManifest(appName, "multi", ocispec.MediaTypeImageIndex, index)
	c.want(t, appPath+"manifests/multi", http.StatusOK, index)
	c.stop(t)

	dir := filepath.Join(c.cache, "manifests")
	hash := func(s string) string { return digest.FromString(s).Encoded() }
	right := "sha256-" + c.img.Manifest.Encoded()
	own, name := "docker.io/"+appName, "docker.io/"+mark
	writeFile(t, filepath.Join(dir, "repositories", hash(name), "name"), name)
	writeFile(t, filepath.Join(dir, "repositories", hash(name), right), readFile(t, filepath.Join(dir, "repositories", hash(own), right)))
	var link map[string]any
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(dir, "tags", hash(own + ":1")[:2], hash(own+":1")))), &link); err != nil {
		t.Fatal(err)
	}
	link["reference"] = name + ":" + mark
	planted, err := json.Marshal(link)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "tags", hash(name + ":" + mark)[:2], hash(name+":"+mark)), string(planted))

	c.restart(t)
	b.open(t, "http://"+c.admin+"/images?q="+url.QueryEscape(mark)+"&sort=name")
	b.until(t, fmt.Sprintf(`document.querySelector("table.images th[scope=row]")?.innerText.includes(%q) ?? false`, mark))
	if got := eval[string](t, b, `document.querySelector(".tag strong").innerText`); got != mark {
		t.Errorf("the tag is %q", got)
	}
	b.open(t, "http://"+c.admin+"/images?q=multi")
	b.until(t, fmt.Sprintf(`document.querySelector("table.images")?.innerText.includes(%q) ?? false`, mark))
	b.open(t, "http://"+c.admin+"/")
	b.until(t, `document.getElementById("live").textContent === "Live."`)
	if eval[bool](t, b, `window.ran === 1`) {
		t.Error("what is in a name is run")
	}
}
