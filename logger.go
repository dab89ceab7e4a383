package main

import (
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logEvery is how long lines of the access log may wait to be written together:
// one at a time, they are a tenth of what a small answer costs.
const logEvery = 200 * time.Millisecond

// logTogether is how many bytes of them wait at most.
const logTogether = 64 << 10

// newLogger makes the logger and what must be called at the end, so that nothing
// that was logged is lost. Each line is written at once, after those that wait
// (see patient): JSON, or lines for people if they want that or look at a terminal.
func newLogger(cfg *config, w io.Writer) (*zap.Logger, func()) {
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.ISO8601TimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	switch {
	case cfg.forPeople(w):
		encoding.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly)
		encoding.EncodeLevel = zapcore.CapitalColorLevelEncoder
		encoder = zapcore.NewConsoleEncoder(encoding)
	case cfg.LogFormat == "console":
		encoding.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	out := zapcore.AddSync(unfailing{w}) // which is not synced for each line
	if _, ok := w.(*os.File); !ok {
		// There are no system calls to be saved.
		return zap.New(zapcore.NewCore(encoder, zapcore.Lock(out), cfg.LogLevel)), func() {}
	}
	lines := &zapcore.BufferedWriteSyncer{WS: out, Size: logTogether, FlushInterval: logEvery}
	core := zapcore.NewCore(encoder, lines, cfg.LogLevel)
	return zap.New(promptCore{core}), func() { _ = lines.Stop() } // there is nowhere left to say it
}

// unfailing loses what can't be written and goes on with the next: a buffer that has
// seen an error would write nothing any more.
type unfailing struct{ w io.Writer }

// Write implements io.Writer.
func (u unfailing) Write(p []byte) (int, error) {
	_, _ = u.w.Write(p) // there is nowhere left to say it
	return len(p), nil
}

// promptCore writes each line at once.
type promptCore struct{ zapcore.Core }

// With implements zapcore.Core.
func (c promptCore) With(fields []zap.Field) zapcore.Core { return promptCore{c.Core.With(fields)} }

// Check implements zapcore.Core.
func (c promptCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c promptCore) Write(e zapcore.Entry, fields []zap.Field) error {
	if err := c.Core.Write(e, fields); err != nil {
		return err
	}
	return c.Sync()
}

// patient is the logger for lines that may wait.
func patient(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		if prompt, ok := core.(promptCore); ok {
			return prompt.Core
		}
		return core
	}))
}
