// Package logging answers: which lines does a node write, and what happens when
// nobody reads them? It makes the logger: levels by name of the speaker, repeated
// lines counted instead of written, and a bounded queue, so that no goroutine ever
// waits for the reader of the log.
package logging

import (
	"errors"
	"fmt"
	"raftkv/internal/meter"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// What a node says, and how loudly. Its own events (docs/log.md) are what an
// operator reads. The libraries below it speak with voices of their own, the
// loggers of those names: what they tell at info is of no use to anyone who does
// not look for a fault in them, and much of what they warn of is how a healthy
// neighbour stops.

// logVoices are the names that --log-level takes beside the node's own level.
var logVoices = []string{"raft", "rafthttp", "snap", "wal", "http", "peer-http"}

// levelNames are the levels that --log-level takes.
var levelNames = []string{"debug", "info", "warn", "error"}

// quiet reports whether a voice is heard from warn on unless it is asked for.
// The two HTTP servers have but one level, info, and say little.
func quiet(voice string) bool {
	return slices.Contains(logVoices[:4], voice)
}

// commonplace are warnings of the libraries about what this node says better in
// an event of its own, or about a connection that ended, as all do when a
// neighbour stops. They count as info. A part of the message is enough.
var commonplace = map[string][]string{
	"raft": {"stepped down to follower since quorum is not active"},
	"rafthttp": {
		"lost TCP streaming connection with remote peer",
		"closed TCP streaming connection with remote peer",
		"peer became inactive",
		"prober detected unhealthy status",
		"failed to read Raft message",
		"failed to send database snapshot",
	},
	"wal": {"slow fdatasync"},
}

// Levels are the levels from which on voices are heard.
type Levels struct {
	own   zapcore.Level
	named map[string]zapcore.Level
}

// ParseLevels reads a level and, behind commas, name=level pairs, and returns
// one error for each item that it does not understand, with the item.
func ParseLevels(text string) (Levels, map[string]error) {
	levels := Levels{own: zapcore.InfoLevel, named: make(map[string]zapcore.Level)}
	problems := make(map[string]error)
	given := make(map[string]bool)
	for item := range strings.SplitSeq(text, ",") {
		name, level, pair := strings.Cut(item, "=")
		if !pair {
			name, level = "", item
		}
		var err error
		switch {
		case !slices.Contains(levelNames, level):
			err = fmt.Errorf("expected one of %s", strings.Join(levelNames, ", "))
		case pair && !slices.Contains(logVoices, name):
			err = fmt.Errorf("expected one of the names %s", strings.Join(logVoices, ", "))
		case given[name] && pair:
			err = fmt.Errorf("expected a level for %s only once", name)
		case given[name]:
			err = errors.New("expected one level that has no name")
		}
		given[name] = true
		if err != nil {
			problems[item] = err
			continue
		}
		parsed, err := zapcore.ParseLevel(level)
		if err != nil {
			problems[item] = err
		} else if pair {
			levels.named[name] = parsed
		} else {
			levels.own = parsed
		}
	}
	return levels, problems
}

// of returns the level from which on a logger is heard: as it was asked for; or,
// for the libraries, from warn on, unless all are to be heard.
func (l Levels) of(logger string) zapcore.Level {
	voice, _, _ := strings.Cut(logger, ".")
	if level, ok := l.named[voice]; ok {
		return level
	}
	if quiet(voice) && l.own != zapcore.DebugLevel {
		return max(l.own, zapcore.WarnLevel)
	}
	return l.own
}

// lowest returns the level below which nobody is heard.
func (l Levels) lowest() zapcore.Level {
	lowest := l.own
	for _, level := range l.named {
		lowest = min(lowest, level)
	}
	return lowest
}

// New makes the one logger of a node, which writes to w, as console or as
// json. ParseLevels has checked the levels.
func New(id uint64, format, level string, w zapcore.WriteSyncer) *zap.Logger {
	levels, _ := ParseLevels(level)
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	encoder := zapcore.NewConsoleEncoder(enc)
	if format == "json" {
		encoder = zapcore.NewJSONEncoder(enc)
	}
	dropped, _ := w.(lineDropper)
	core := NewCore(levels, zapcore.NewCore(encoder, zapcore.Lock(w), zapcore.DebugLevel), dropped)
	if format == "json" {
		return zap.New(core).With(zap.Uint64("node", id)) // where lines of many nodes come together
	}
	return zap.New(core)
}

// core passes on what is loud enough, and holds back what is a repeat.
type core struct {
	zapcore.Core // takes every level
	levels       Levels
	repeats      *repeats
	dropped      lineDropper // nil: it drops none
}

// NewCore stands before inner, which takes every level. dropped may be nil.
func NewCore(levels Levels, inner zapcore.Core, dropped lineDropper) zapcore.Core {
	return &core{inner, levels, newRepeats(), dropped}
}

// Enabled tells what cannot be heard whoever says it.
func (c *core) Enabled(level zapcore.Level) bool { return level >= c.levels.lowest() }

// Level lets zap.LevelOf tell the same.
func (c *core) Level() zapcore.Level { return c.levels.lowest() }

// With returns a core that adds fields to each line.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Core.With(fields), c.levels, c.repeats, c.dropped}
}

// Check takes an entry that is to be heard.
func (c *core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level == zapcore.WarnLevel && isCommonplace(e) {
		e.Level = zapcore.InfoLevel
	}
	if e.Level < c.levels.of(e.LoggerName) {
		return checked
	}
	return checked.AddCore(e, c)
}

func isCommonplace(e zapcore.Entry) bool {
	return slices.ContainsFunc(commonplace[e.LoggerName], func(part string) bool { return strings.Contains(e.Message, part) })
}

// Write writes a line, unless it is a repeat.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if !c.repeats.admit(c.Core, e, fields) {
		return nil
	}
	return c.Core.Write(e, fields)
}

// Dropped returns how many lines were lost, which the log's writer counts if it
// drops any.
func (c *core) Dropped() uint64 {
	if c.dropped == nil {
		return 0
	}
	return c.dropped.Dropped()
}

// Sync writes what was held back, and waits until everything is written.
func (c *core) Sync() error {
	return errors.Join(c.repeats.flush(), c.Core.Sync())
}

// lineDropper is a log that drops lines rather than wait for whoever reads them.
type lineDropper interface{ Dropped() uint64 }

// RegisterDropped adds how many lines a log has dropped.
func RegisterDropped(reg prometheus.Registerer, log *zap.Logger) {
	meter.Counter(reg, "raftkv_log_lines_dropped_total", "Lines of the log that nobody took in time.", func() float64 {
		if d, ok := log.Core().(lineDropper); ok {
			return float64(d.Dropped())
		}
		return 0
	})
}
