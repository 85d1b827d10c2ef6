package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// Guarantee: --log-level takes a level and levels for the libraries, and names
// everything that it does not understand.
func TestLogLevels(t *testing.T) {
	for text, want := range map[string]map[string]zapcore.Level{
		"info":                      {"": zap.InfoLevel, "raft": zap.WarnLevel, "rafthttp": zap.WarnLevel, "snap": zap.WarnLevel, "wal": zap.WarnLevel, "http": zap.InfoLevel},
		"debug":                     {"": zap.DebugLevel, "raft": zap.DebugLevel, "rafthttp": zap.DebugLevel},
		"error":                     {"": zap.ErrorLevel, "raft": zap.ErrorLevel, "http": zap.ErrorLevel},
		"info,rafthttp=debug":       {"": zap.InfoLevel, "raft": zap.WarnLevel, "rafthttp": zap.DebugLevel, "rafthttp.stream": zap.DebugLevel},
		"raft=info":                 {"": zap.InfoLevel, "raft": zap.InfoLevel, "rafthttp": zap.WarnLevel},
		"wal=error,warn,raft=error": {"": zap.WarnLevel, "raft": zap.ErrorLevel, "wal": zap.ErrorLevel, "snap": zap.WarnLevel},
	} {
		levels, problems := ParseLevels(text)
		if len(problems) > 0 {
			t.Errorf("%s: %v", text, problems)
		}
		for name, level := range want {
			if got := levels.of(name); got != level {
				t.Errorf("%s: %q is heard from %v on, want %v", text, name, got, level)
			}
		}
	}
}

// observed is a logger as a node has it, and what it wrote.
func observed(levels string) (*zap.Logger, *observer.ObservedLogs) {
	inner, logs := observer.New(zap.DebugLevel)
	parsed, _ := ParseLevels(levels)
	return zap.New(NewCore(parsed, inner, nil)), logs
}

func messages(logs *observer.ObservedLogs) (got []string) {
	for _, e := range logs.All() {
		text := e.Message
		if n, ok := e.ContextMap()["repeated"]; ok {
			text += fmt.Sprintf(" (%v)", n)
		}
		got = append(got, text)
	}
	return got
}

// Guarantee: the libraries are heard from warn on, but not with what is
// commonplace, and all of them when they are asked for.
func TestLogVoices(t *testing.T) {
	say := func(log *zap.Logger) {
		log.Debug("own debug")
		log.Info("own info")
		log.Named("raft").Sugar().Warnf("%x stepped down to follower since quorum is not active", 1)
		log.Named("raft").Warn("raft warns")
		log.Named("rafthttp").Debug("rafthttp debug")
		log.Named("rafthttp").Info("added remote peer")
		log.Named("rafthttp").Warn("lost TCP streaming connection with remote peer", zap.Error(errors.New("EOF")))
		log.Named("rafthttp").Warn("request cluster ID mismatch")
		log.Named("wal").Warn("slow fdatasync")
		log.Warn("slow fdatasync") // not the WAL's
	}
	for levels, want := range map[string][]string{
		"info":               {"own info", "raft warns", "request cluster ID mismatch", "slow fdatasync"},
		"error":              nil,
		"error,raft=info":    {"1 stepped down to follower since quorum is not active", "raft warns"},
		"warn,rafthttp=info": {"raft warns", "added remote peer", "lost TCP streaming connection with remote peer", "request cluster ID mismatch", "slow fdatasync"},
		"error,rafthttp=debug": {"rafthttp debug", "added remote peer", "lost TCP streaming connection with remote peer",
			"request cluster ID mismatch"},
	} {
		log, logs := observed(levels)
		say(log)
		if got := messages(logs); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", levels, got, want)
		}
	}
	log, logs := observed("debug")
	if say(log); logs.Len() != 10 {
		t.Errorf("at debug there are %d lines, want all 10", logs.Len())
	}
	if log.Core().Enabled(zap.DebugLevel) != true || zap.New(NewCore(Levels{}, zapcore.NewNopCore(), nil)).Core().Enabled(zap.DebugLevel) {
		t.Error("Enabled does not follow the levels")
	}
}

// Guarantee: a line that repeats itself is written at once, and then once a
// minute with the number of those that were held back, of which none is lost.
func TestLogRepeats(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		log, logs := observed("info")
		fail := func(i int) {
			log.Warn("waiting to join", zap.NamedError("because", fmt.Errorf("dial 127.0.0.1:%d", 1000+i)), zap.Duration("took", time.Duration(i)))
		}
		fail(0)
		for i := range 99 { // one each second, half a second away from the minute's end
			time.Sleep(time.Second / 2)
			fail(i + 1)
			time.Sleep(time.Second / 2)
		}
		want := []string{"waiting to join", "waiting to join (60)"}
		if got := messages(logs); !slices.Equal(got, want) {
			t.Fatalf("after 100 s:\n got %q\nwant %q", got, want)
		}
		if last := logs.All()[1]; last.ContextMap()["because"] != "dial 127.0.0.1:1060" || last.ContextMap()["took"] != time.Duration(60) {
			t.Errorf("not the newest one was written: %v", last.ContextMap())
		}
		time.Sleep(22 * time.Second) // to the end of the second minute
		if got := messages(logs); got[len(got)-1] != "waiting to join (39)" {
			t.Errorf("after two minutes: %q", got)
		}
		time.Sleep(61 * time.Second)
		fail(1) // another time
		want = []string{"waiting to join", "waiting to join (60)", "waiting to join (39)", "waiting to join"}
		if got := messages(logs); !slices.Equal(got, want) {
			t.Errorf("after a rest:\n got %q\nwant %q", got, want)
		}

		// What is not the same is no repeat.
		logs.TakeAll()
		log.Info("refused a snapshot", zap.Uint64("from", 2))
		log.Info("refused a snapshot", zap.Uint64("from", 3))
		log.Warn("refused a snapshot", zap.Uint64("from", 2))
		log.Named("raft").Warn("refused a snapshot", zap.Uint64("from", 2))
		if logs.Len() != 4 {
			t.Errorf("of four lines that differ there are %d", logs.Len())
		}

		// News: each is another event, up to newsBurst; the last is never lost.
		logs.TakeAll()
		for i := range newsBurst + 5 {
			log.Info("leader changed", News, zap.Int("term", i))
		}
		if logs.Len() != newsBurst {
			t.Errorf("%d lines of news, want %d", logs.Len(), newsBurst)
		}
		time.Sleep(repeatWindow + time.Second)
		if logs.Len() != newsBurst+1 {
			t.Fatalf("a minute later there are %d lines of news, want %d", logs.Len(), newsBurst+1)
		}
		if last := logs.All()[newsBurst].ContextMap(); last["term"] != int64(newsBurst+4) || last["repeated"] != int64(5) {
			t.Errorf("the last of %d lines of news: %v", logs.Len(), last)
		}

		// Debug is written whole.
		log, logs = observed("debug")
		for range 10 {
			log.Debug("again")
		}
		if logs.Len() != 10 {
			t.Errorf("at debug there are %d of 10 lines", logs.Len())
		}
	})
}

// Guarantee: a log that ends writes what it held back, with the value that it
// had; the fields of a logger stay with it.
func TestLogSync(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		log, logs := observed("info")
		log = log.With(zap.Int("node", 7))
		ids := []uint64{1, 2}
		for range 3 {
			log.Warn("silent", zap.Uint64s("ids", ids))
		}
		ids[0] = 9
		if err := log.Sync(); err != nil {
			t.Error(err)
		}
		if got := messages(logs); !slices.Equal(got, []string{"silent", "silent (2)"}) {
			t.Fatalf("got %q", got)
		}
		if m := logs.All()[1].ContextMap(); fmt.Sprint(m["ids"]) != "[1 2]" || m["node"] != int64(7) {
			t.Errorf("got %v", m)
		}
		time.Sleep(2 * repeatWindow)
		if logs.Len() != 2 {
			t.Errorf("what was written is written again: %q", messages(logs))
		}
	})
}

// Guarantee: what is remembered of lines is bounded, whatever they say.
func TestLogKindsAreBounded(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		log, logs := observed("info")
		core := log.Core().(*core)
		for i := range 10 * maxLineKinds {
			log.Named("http").Info("from a client", zap.Int("i", i))
		}
		if n := len(core.repeats.kinds); n > maxLineKinds+1 {
			t.Errorf("%d kinds are told apart, want at most %d", n, maxLineKinds+1)
		}
		if n := logs.Len(); n != maxLineKinds+1 {
			t.Errorf("%d lines, want %d", n, maxLineKinds+1)
		}
		time.Sleep(2*repeatWindow + time.Second)
		log.Info("another")
		log.Named("http").Info("from a client", zap.Int("i", 1))
		if n := len(core.repeats.kinds); n != 2 {
			t.Errorf("%d kinds are kept after their time, want 2", n)
		}
	})
}

// droppingWriter is a log's writer that has lost lines.
type droppingWriter struct{ bytes.Buffer }

func (*droppingWriter) Sync() error { return nil }

func (*droppingWriter) Dropped() uint64 { return 42 }

// Guarantee: each line in JSON says which node it is of, and a logger knows how
// many lines its writer has dropped.
func TestLogFormat(t *testing.T) {
	var w droppingWriter
	log := New(3, "json", "info", &w)
	log.Info("one", News)
	log.Named("rafthttp").With(zap.String("peer", "2")).Warn("two")
	for line := range strings.Lines(w.String()) {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil || got["node"] != 3.0 {
			t.Errorf("%s: %v", line, err)
		}
		if _, ok := got["news"]; ok || len(got) > 6 {
			t.Errorf("%s has the keys %v", line, slices.Sorted(maps.Keys(got)))
		}
	}
	if n := strings.Count(w.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
	if d, ok := log.Named("x").Core().(lineDropper); !ok || d.Dropped() != 42 {
		t.Error("the number of dropped lines got lost")
	}
	if d := New(0, "", "info", zapcore.AddSync(&bytes.Buffer{})).Core().(lineDropper); d.Dropped() != 0 {
		t.Error("a writer that drops nothing has dropped something")
	}
}
