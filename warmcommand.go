package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"larder/handler/warm"
)

// errNotWarmed says that something could not be warmed; what, was said before.
var errNotWarmed = errors.New("not everything is warm")

// maxEvent bounds a line of progress.
const maxEvent = 1 << 20

// warmOrder is what larder warm's command line asks for.
type warmOrder struct {
	references []string
	platform   string
	detach     bool
}

func parseWarm(args []string) (*warmOrder, error) {
	o := new(warmOrder)
	flags := flag.NewFlagSet("warm", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.platform, "platform", "", "")
	flags.BoolVar(&o.detach, "detach", false, "")
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("%w: larder warm: %w", errUsage, err)
	}
	if o.references = flags.Args(); len(o.references) == 0 {
		return nil, fmt.Errorf("%w: larder warm takes references, as docker.io/library/alpine:3.20", errUsage)
	}
	return o, nil
}

// warmCommand has the larder that the environment configures warm images, and
// shows how it gets on. When ctx ends, so does the warming.
func warmCommand(ctx context.Context, args, environ []string, stdout io.Writer) error {
	order, err := parseWarm(args)
	if err != nil {
		return err
	}
	cfg, err := readConfig(environ)
	if err != nil {
		return err
	}
	resp, err := order.send(ctx, cfg)
	if err != nil {
		return fmt.Errorf("warm: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusAccepted {
		var s warm.Summary
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxEvent)).Decode(&s); err != nil {
			return fmt.Errorf("warm: %w", err)
		}
		_, err := fmt.Fprintf(stdout, "job %d goes on; see http://%s/warm/%d\n", s.ID, reachable(cfg.AdminAddr), s.ID)
		return err
	}
	err = showWarming(ctx, resp.Body, stdout)
	if ctx.Err() != nil {
		return fmt.Errorf("warm: %w; what has arrived is kept", context.Cause(ctx))
	}
	return err
}

// send gives the order, and returns larder's answer if that is no error.
func (o *warmOrder) send(ctx context.Context, cfg *config) (*http.Response, error) {
	query := url.Values{}
	if o.platform != "" {
		query.Set("platform", o.platform)
	}
	if o.detach {
		query.Set("detach", "1")
	}
	list, _ := json.Marshal(o.references)
	resp, err := cfg.askAdmin(ctx, http.MethodPost, "/warm", query, bytes.NewReader(list))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	var doc struct {
		Errors []struct{ Message string }
	}
	if json.NewDecoder(io.LimitReader(resp.Body, maxEvent)).Decode(&doc) != nil || len(doc.Errors) == 0 {
		return nil, errors.New(resp.Status)
	}
	return nil, errors.New(doc.Errors[0].Message)
}

// warmEvent is a line of what larder tells of a job.
type warmEvent struct {
	Image *warm.Image
	Layer *warm.Layer
	End   *warm.Summary
}

// showWarming shows what larder tells, and returns errNotWarmed if that comes to a
// bad end.
func showWarming(ctx context.Context, body io.Reader, stdout io.Writer) error {
	show := newWarmView(ctx, stdout)
	defer show.close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		var e warmEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("warm: %w", err)
		}
		switch {
		case e.Image != nil:
			show.image(e.Image)
		case e.Layer != nil:
			show.layer(e.Layer)
		case e.End != nil:
			show.close()
			fmt.Fprintf(stdout, "%d of %d warm; %s fetched, %s were there, %s\n", e.End.Done, e.End.Images, human(e.End.Fetched), human(e.End.Cached),
				e.End.Ended.Sub(e.End.Began).Round(10*time.Millisecond))
			if e.End.State != warm.Done {
				return errNotWarmed
			}
			return nil
		}
	}
	return fmt.Errorf("warm: larder has broken off: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

// warmView is how warming looks: on a terminal with a bar for each layer that is on
// its way, else in lines.
type warmView struct {
	out  io.Writer
	bars *mpb.Progress // nil: no terminal
	of   map[digest.Digest]*mpb.Bar
}

func newWarmView(ctx context.Context, out io.Writer) *warmView {
	v := &warmView{out: out, of: make(map[digest.Digest]*mpb.Bar)}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		v.bars = mpb.NewWithContext(ctx, mpb.WithOutput(file), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
		v.out = v.bars // lines stand above the bars
	}
	return v
}

// image shows the end of an image.
func (v *warmView) image(img *warm.Image) {
	note := ""
	if img.Stale {
		note = " (the registry could not be asked whether that is current)"
	}
	switch {
	case img.State == warm.Done && img.Matched > 0:
		fmt.Fprintf(v.out, "%s: tags that match: %d\n", img.Reference, img.Matched)
	case img.State == warm.Done:
		fmt.Fprintf(v.out, "%s: warm, %s fetched, %s were there%s\n", img.Reference, human(img.Fetched), human(img.Cached), note)
	case img.State == warm.Failed, img.State == warm.Stopped:
		fmt.Fprintf(v.out, "%s: %s: %s\n", img.Reference, img.State, strings.ReplaceAll(img.Error, "\n", "; "))
	}
}

// layer moves the layer's bar.
func (v *warmView) layer(l *warm.Layer) {
	if v.bars == nil {
		return
	}
	bar := v.of[l.Digest]
	if bar == nil && l.State == warm.Running {
		short := l.Digest.Encoded()
		bar = v.bars.AddBar(max(l.Size, 0), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(short[:min(len(short), 12)], decor.WC{W: 14, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.Counters(decor.SizeB1024(0), "% .1f / % .1f")))
		v.of[l.Digest] = bar
	}
	switch {
	case bar == nil:
	case l.State == warm.Running:
		bar.SetTotal(l.Size, false)
		bar.SetCurrent(l.Have)
	case l.State == warm.Done:
		bar.SetTotal(max(l.Size, l.Have), false)
		bar.SetCurrent(l.Have)
		bar.SetTotal(-1, true)
	default:
		bar.Abort(true)
	}
}

// close takes the bars away. It may be called more than once.
func (v *warmView) close() {
	for _, bar := range v.of {
		bar.Abort(true)
	}
	clear(v.of)
	if v.bars != nil {
		v.bars.Wait()
		v.bars = nil
	}
}

func human(n int64) string { return units.BytesSize(float64(n)) }
