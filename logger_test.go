package main

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"
)

// TestLogGoesOnAfterItCouldNotBeWritten has whoever reads the log be late once.
func TestLogGoesOnAfterItCouldNotBeWritten(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log, closeLog := newLogger(&config{LogFormat: "json"}, w)
	if err := w.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	log.Warn("lost")
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	patient(log).Info("first")
	log.Warn("second")
	patient(log).Info("third")
	closeLog()
	w.Close()
	lines := bufio.NewScanner(r)
	for _, want := range []string{"first", "second", "third"} {
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Errorf("got %q, want the %s line", lines.Text(), want)
		}
	}
}
