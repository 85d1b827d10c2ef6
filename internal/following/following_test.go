package following

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"raftkv/client"
	"raftkv/internal/child"
	"raftkv/internal/command"
	"slices"
	"strings"
	"testing"
	"time"
)

func put(key, value string, revision uint64) client.Event {
	return client.Event{Type: client.Put, Item: client.Item{Key: key, Value: []byte(value), CreateRevision: 1, ModRevision: revision, Version: 2}}
}

func gone(key string) client.Event {
	return client.Event{Type: client.Delete, Item: client.Item{Key: key}}
}

// told is what a fake watch tells: changes, and in between that all was told up to a revision.
type told struct {
	client.Change
	synced uint64
	err    error
}

func fakeWatch(stream ...told) func(client.WatchConfig) iter.Seq2[client.Change, error] {
	return func(cfg client.WatchConfig) iter.Seq2[client.Change, error] {
		return func(yield func(client.Change, error) bool) {
			for _, s := range stream {
				switch {
				case s.synced > 0:
					if cfg.Synced != nil {
						cfg.Synced(s.synced)
					}
				case !yield(s.Change, s.err):
					return
				}
			}
		}
	}
}

func change(revision uint64, events ...client.Event) told {
	return told{Change: client.Change{Revision: revision, Events: events}}
}

// output runs a watch and returns what it prints.
func output(t *testing.T, f *flags, format string, stream ...told) (string, error) {
	t.Helper()
	var b bytes.Buffer
	o := &command.Call{Stdout: &b, Output: format}
	err := f.follow(t.Context(), fakeWatch(stream...), func(e event) error { return say(o, e) })
	return b.String(), err
}

// Guarantee: each change is a line, whose end is where people expect it.
func TestSay(t *testing.T) {
	long := strings.Repeat("ä", 200)
	stream := []told{
		change(0, put("a", "one", 3)), {synced: 5},
		change(6, put("b", "two\nlines", 6), gone("a")),
		change(7, put("raw", "\xff\x00", 7), put(`q"k`, "", 7)),
		change(8, put("long", long, 8)),
	}
	got, err := output(t, &flags{cfg: client.WatchConfig{State: true}}, command.Table, stream...)
	want := "3\tput\ta\tone\n5\tsynced\n6\tput\tb\t\"two\\nlines\"\n6\tdelete\ta\n7\tput\traw\t(2 bytes)\n7\tput\t\"q\\\"k\"\t\n8\tput\tlong\t" + strings.Repeat("ä", 100) + "...\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	got, err = output(t, &flags{cfg: client.WatchConfig{State: true}}, command.JSON, stream[:3]...)
	want = `{"revision":3,"type":"put","key":"a","value":"one","create_revision":1,"mod_revision":3,"version":2}
{"revision":5,"type":"synced"}
{"revision":6,"type":"put","key":"b","value":"two\nlines","create_revision":1,"mod_revision":6,"version":2}
{"revision":6,"type":"delete","key":"a"}
`
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
}

// Guarantee: --limit counts changes of keys, and ends within a revision, too; an error of the
// watch is one of the command.
func TestLimit(t *testing.T) {
	stream := []told{change(0, put("a", "1", 1)), {synced: 2}, change(3, put("b", "2", 3), put("c", "3", 3)), change(4, put("d", "4", 4)), {err: errors.New("gone")}}
	for limit, want := range map[uint64]int{1: 1, 2: 3, 3: 4, 4: 5} {
		got, err := output(t, &flags{cfg: client.WatchConfig{State: true}, limit: limit}, command.Table, stream...)
		if err != nil || strings.Count(got, "\n") != want {
			t.Errorf("limit %d: %v, %q", limit, err, got)
		}
	}
	if got, err := output(t, &flags{}, command.Table, stream...); err == nil || err.Error() != "gone" || strings.Contains(got, "synced") {
		t.Errorf("%v, %q", err, got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&flags{}).follow(ctx, fakeWatch(told{err: context.Canceled}), nil); err != nil {
		t.Errorf("a watch that was asked to end: %v", err)
	}
	failing := func(event) error { return io.ErrClosedPipe }
	for _, f := range []*flags{{}, {cfg: client.WatchConfig{State: true}}} {
		if err := f.follow(t.Context(), fakeWatch(told{synced: 1}, change(2, put("a", "1", 2)), change(3, put("a", "1", 3))), failing); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v", err)
		}
	}
}

// fakeProcess is a command that ends with a code, or not at all.
type fakeProcess struct {
	code  int
	done  chan struct{}
	ended bool
}

func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) Code() int             { return p.code }
func (p *fakeProcess) End(kill time.Time) error {
	p.ended = time.Until(kill) > time.Second
	return nil
}

// Guarantee: a command runs for each change in turn, gets it as JSON and in its environment, and no
// token; one that fails ends the watch with its status, unless it is to go on.
func TestHook(t *testing.T) {
	codes := map[string]int{"bad": 7}
	for _, keepGoing := range []bool{false, true} {
		var ran []string
		var said strings.Builder
		t.Setenv("RAFTKV_TOKEN", "secret")
		h := hook{program: []string{"prog", "arg"}, keepGoing: keepGoing, said: &said, start: func(c child.Command) (process, error) {
			var e struct{ Key, Type string }
			if err := json.Unmarshal(c.Input, &e); err != nil || !bytes.HasSuffix(c.Input, []byte("}\n")) {
				t.Errorf("input %q: %v", c.Input, err)
			}
			if !slices.Contains(c.Env, "RAFTKV_KEY="+e.Key) || !slices.Contains(c.Env, "RAFTKV_TYPE="+e.Type) || slices.Contains(c.Env, "RAFTKV_TOKEN=secret") {
				t.Errorf("environment %q of %q", c.Env, c.Input)
			}
			if !slices.Equal(c.Args, []string{"prog", "arg"}) {
				t.Errorf("arguments %q", c.Args)
			}
			ran = append(ran, e.Type+" "+e.Key)
			p := &fakeProcess{code: codes[e.Key], done: make(chan struct{})}
			close(p.done)
			return p, nil
		}}
		stream := []told{{synced: 1}, change(2, put("a; rm -rf /", "1", 2)), change(3, put("bad", "\xff", 3), gone("b"))}
		err := (&flags{cfg: client.WatchConfig{State: true}}).follow(t.Context(), fakeWatch(stream...), func(e event) error { return h.run(t.Context(), e) })
		want := []string{"put a; rm -rf /", "put bad"}
		if keepGoing {
			want = append(want, "delete b")
		}
		if !slices.Equal(ran, want) || keepGoing == (err != nil) || !keepGoing && command.StatusOf(err) != 7 || keepGoing != strings.Contains(said.String(), "status 7") {
			t.Errorf("keep going %v: ran %q, %v, said %q", keepGoing, ran, err, &said)
		}
	}
	h := hook{program: []string{"prog"}, keepToken: true, start: func(c child.Command) (process, error) {
		if !slices.Contains(c.Env, "RAFTKV_TOKEN=secret") {
			t.Errorf("environment %q", c.Env)
		}
		return nil, fmt.Errorf("start: %w", io.ErrClosedPipe)
	}}
	if err := h.run(t.Context(), event{Type: client.Delete}); command.StatusOf(err) != child.ExitNotExecutable {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := &fakeProcess{done: make(chan struct{})}
	h.start = func(child.Command) (process, error) { cancel(); return p, nil }
	if err := h.run(ctx, event{Type: client.Delete}); err != nil || !p.ended {
		t.Errorf("%v: a signal to the watch has not ended the command", err)
	}
}

// Guarantee: flags that make no sense are refused.
func TestFlags(t *testing.T) {
	for text, ok := range map[string]bool{"put": true, "put,delete,expire": true, "": false, "put,": false, "Put": false} {
		if _, err := parseTypes(text); (err == nil) != ok {
			t.Errorf("types %q: %v", text, err)
		}
	}
	for text, want := range map[string]uint64{"0": client.Beginning, "7": 7} {
		if got, err := parseAfter(text); got != want || err != nil {
			t.Errorf("after %q: %d, %v", text, got, err)
		}
	}
	if _, err := parseLimit("0"); err == nil {
		t.Error("a limit of 0")
	}
}
