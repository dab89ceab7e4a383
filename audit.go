package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The values of LARDER_AUDIT_LOG that are no file.
const (
	auditOff    = "off"
	auditStdout = "stdout"
)

// auditPatience is how long a record may wait for who empties a pipe, if that one
// took the last. Files never wait.
const auditPatience = time.Second

// validAuditLog takes a path only if it has a slash, so that a misspelt word does
// not become a file.
func validAuditLog(s string) bool {
	return s == auditOff || s == auditStdout || strings.Contains(s, "/")
}

// auditLog is where audit records go, a line of JSON each. A record that can't be
// written costs no client its answer, but is told of.
type auditLog struct {
	path   string // "": not a file
	log    *zap.Logger
	hangup chan os.Signal

	lost atomic.Int64 // records

	// mu is held while a record is written: records are whole lines.
	mu   sync.Mutex
	out  io.Writer // an *os.File if there is a path
	torn bool      // the last line has no end
	full bool      // the last record has waited in vain
}

// openAudit opens the file, or takes stdout. It is nil if nothing is to be
// recorded.
func openAudit(value string, stdout io.Writer, log *zap.Logger) (*auditLog, error) {
	if value == auditOff {
		return nil, nil
	}
	once := zap.WrapCore(func(core zapcore.Core) zapcore.Core { return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0) })
	a := &auditLog{log: log.WithOptions(once), out: stdout}
	if value == auditStdout {
		return a, nil
	}
	a.path = value
	file, err := a.open()
	if err != nil {
		return nil, &configError{[]error{fmt.Errorf("LARDER_AUDIT_LOG: %w", err)}}
	}
	a.out = file
	a.hangup = make(chan os.Signal, 1)
	signal.Notify(a.hangup, syscall.SIGHUP)
	return a, nil
}

func (a *auditLog) open() (*os.File, error) {
	// Nonblocking, so that a pipe that nobody reads is an error.
	return os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
}

// logger is what the records are written with, whatever LARDER_LOG_LEVEL is.
func (a *auditLog) logger() *zap.Logger {
	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "time", EncodeTime: zapcore.RFC3339NanoTimeEncoder, MessageKey: "event",
		EncodeDuration: zapcore.SecondsDurationEncoder, LineEnding: "\n",
	})
	return zap.New(zapcore.NewCore(encoder, zapcore.AddSync(a), zapcore.InfoLevel))
}

// Write implements io.Writer for whole records. It never fails.
func (a *auditLog) Write(record []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line := record
	if a.torn {
		line = append([]byte("\n"), record...)
	}
	if file, ok := a.out.(*os.File); ok {
		patience := auditPatience
		if a.full {
			patience = time.Millisecond
		}
		_ = file.SetWriteDeadline(time.Now().Add(patience)) // pipes have one
	}
	n, err := a.out.Write(line)
	a.full = errors.Is(err, os.ErrDeadlineExceeded)
	if err != nil {
		a.torn = a.torn || n > 0
		a.log.Error("audit records are lost", zap.Int64("so far", a.lost.Add(1)), zap.Error(err))
		return len(record), nil
	}
	a.torn = false
	return len(record), nil
}

// lostRecords is how many could not be written; a may be nil.
func (a *auditLog) lostRecords() int64 {
	if a == nil {
		return 0
	}
	return a.lost.Load()
}

// run opens the file anew at each SIGHUP: whoever rotates it renames it first.
func (a *auditLog) run(ctx context.Context) {
	for {
		select {
		case <-a.hangup:
			a.reopen()
		case <-ctx.Done():
			return
		}
	}
}

func (a *auditLog) reopen() {
	file, err := a.open()
	if err != nil {
		a.log.Error("audit log not opened anew; going on with the old file", zap.Error(err))
		return
	}
	a.mu.Lock()
	old := a.out.(*os.File)
	a.out, a.torn = file, false
	a.mu.Unlock()
	if err := old.Close(); err != nil {
		a.log.Error("old audit log not closed", zap.Error(err))
	}
	a.log.Info("audit log opened anew")
}

// close ends what openAudit began.
func (a *auditLog) close() error {
	if a.path == "" {
		return nil
	}
	signal.Stop(a.hangup)
	return a.out.(*os.File).Close()
}
