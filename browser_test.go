package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a page in a headless Chromium. What its console says is a failure:
// there is nothing to be said, and what the page's policy forbids is told there.
type browser struct {
	ctx context.Context

	mu      sync.Mutex // guards console
	console []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	requireProgram(t, "chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("headless", "new"), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true), chromedp.Flag("no-proxy-server", true), chromedp.WSURLReadTimeout(2*patience))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	b := new(browser)
	tab, closeTab := chromedp.NewContext(allocator)
	b.ctx = tab
	t.Cleanup(func() {
		b.wantQuiet(t)
		if err := chromedp.Cancel(tab); err != nil {
			t.Logf("the browser's end: %v", err)
		}
		closeTab()
		stop()
	})
	if err := chromedp.Listen(tab, b.listen); err != nil { // it starts the browser
		t.Fatal(err)
	}
	return b
}

func (b *browser) listen(event any) {
	text := ""
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		text = fmt.Sprintf("console.%s", e.Type)
		for _, arg := range e.Args {
			text += " " + string(arg.Value)
		}
	case *runtime.EventExceptionThrown:
		text = "exception: " + e.ExceptionDetails.Text
	case *log.EventEntryAdded:
		text = fmt.Sprintf("%s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL)
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.console = append(b.console, text)
}

// heard is what the console has said since it was last asked.
func (b *browser) heard() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := b.console
	b.console = nil
	return lines
}

// wantQuiet fails t for what the console has said.
func (b *browser) wantQuiet(t *testing.T) {
	t.Helper()
	for _, line := range b.heard() {
		t.Errorf("the console says %s", line)
	}
}

// wantComplaints waits until the console has told of what the page's policy forbids.
func (b *browser) wantComplaints(t *testing.T, directives ...string) {
	t.Helper()
	var all strings.Builder
	for _, directive := range directives {
		eventually(t, "the console to tell of "+directive, func() bool {
			all.WriteString(strings.Join(b.heard(), "\n"))
			return strings.Contains(all.String(), directive)
		})
	}
}

// act has the browser do something, for not longer than a test's patience.
func act[T any](t *testing.T, b *browser, action chromedp.Action[T]) T {
	t.Helper()
	value, err := attempt(b, action)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func attempt[T any](b *browser, action chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, action)
}

func (b *browser) open(t *testing.T, url string) {
	t.Helper()
	act(t, b, chromedp.Navigate(url))
}

// eval is the value of an expression in the page.
func eval[T any](t *testing.T, b *browser, expression string) T {
	t.Helper()
	return act(t, b, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// until waits for an expression to be true in the page, or in the one after it: the
// browser refuses to say what it is in a page that is just being left.
func (b *browser) until(t *testing.T, expression string) {
	t.Helper()
	eventually(t, expression, func() bool {
		yes, err := attempt(b, chromedp.Evaluate[bool](expression, chromedp.EvalAwaitPromise))
		if _, refused := errors.AsType[*cdproto.Error](err); err != nil && !refused {
			t.Fatal(err)
		}
		return yes
	})
}

// shoot takes pictures of the page, light, dark and as wide as a phone.
func (b *browser) shoot(t *testing.T, dir, name string, height int64) {
	t.Helper()
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1000, height}, {"dark", "dark", 1000, height}, {"phone", "light", 390, height}} {
		act(t, b, chromedp.EmulateViewport(look.width, look.height))
		media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}}}
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, media); err != nil {
			t.Fatal(err)
		}
		var small bytes.Buffer
		picture := act(t, b, chromedp.CaptureScreenshot())
		if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, fewColors(t, picture)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+"-"+look.name+".png"), small.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fewColors is a picture with the 256 colors of it that there are most of: the others are
// between these, at the edges of letters, and a byte for each dot takes a third of the file.
func fewColors(t *testing.T, encoded []byte) image.Image {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	bounds := picture.Bounds()
	dots := make(map[color.Color]int)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			dots[picture.At(x, y)]++
		}
	}
	palette := slices.SortedFunc(maps.Keys(dots), func(a, b color.Color) int { return dots[b] - dots[a] })
	small := image.NewPaletted(bounds, palette[:min(len(palette), 256)])
	draw.Draw(small, bounds, picture, bounds.Min, draw.Src)
	return small
}
