package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// told is what a watch has told, as text.
type told struct {
	lines chan string
	err   error
	done  chan struct{}
}

// follow runs a watch and notes what it tells.
func follow(ctx context.Context, c *Client, cfg WatchConfig) *told {
	g := &told{lines: make(chan string, 1000), done: make(chan struct{})}
	cfg.Synced = func(revision uint64) { g.lines <- fmt.Sprintf("synced %d", revision) }
	go func() {
		defer close(g.done)
		for ch, err := range c.Watch(ctx, cfg) {
			if err != nil {
				g.err = err
				return
			}
			g.lines <- changeText(ch)
		}
	}()
	return g
}

func changeText(ch Change) string {
	text := fmt.Sprint(ch.Revision)
	for _, e := range ch.Events {
		text += fmt.Sprintf(" %s %s", e.Type, e.Key)
		if e.Type == Put {
			text += fmt.Sprintf("=%s@%d", e.Value, e.ModRevision)
		}
	}
	return text
}

// want waits until all is quiet, and compares what was told since the last time.
func (g *told) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for len(g.lines) > 0 {
		got = append(got, <-g.lines)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (f *fakeCluster) puts(keys ...string) uint64 {
	var events []wireEvent
	for _, k := range keys {
		events = append(events, f.put(k, k+"!", 0))
	}
	return f.write(events...)
}

func gone(keys ...string) (events []wireEvent) {
	for _, k := range keys {
		events = append(events, wireEvent{Delete, wireItem{Key: k}})
	}
	return events
}

// Guarantee: a watch tells each change once, a revision whole, over nodes that fail.
func TestWatchResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a/0")
		ctx, cancel := context.WithCancel(t.Context())
		g := follow(ctx, f.client(3), WatchConfig{Prefixes: []string{"a/"}})
		g.want(t, "synced 1")
		f.puts("a/1", "b/1", "a/2")
		f.puts("b/2")
		f.puts("a/1")
		g.want(t, "2 put a/1=a/1!@2 put a/2=a/2!@2", "4 put a/1=a/1!@4")
		// A revision breaks off in its middle.
		f.say(0, `{"event":"change","data":{"revision":5,"more":true,"events":[{"type":"put","key":"a/x","mod_revision":5}]}}`)
		g.want(t)
		f.cut(0)
		f.write(append(gone("a/1"), f.put("a/3", "3", 0))...)
		time.Sleep(time.Second)
		g.want(t, "5 delete a/1 put a/3=3@5")
		// Silence: the connection is dead.
		f.mu.Lock()
		for s := range f.streams {
			delete(f.streams, s)
		}
		f.mu.Unlock()
		f.puts("a/4")
		time.Sleep(39 * time.Second)
		g.want(t)
		time.Sleep(5 * time.Second)
		g.want(t, "6 put a/4=a/4!@6")
		cancel()
		<-g.done
		if !errors.Is(g.err, context.Canceled) || !errors.Is(g.err, ErrNotApplied) {
			t.Fatal(g.err)
		}
	})
}

// Guarantee: a node that says that it cannot go on is left, and the next one asked; a node that
// is being started, whose answer does not name its cluster, likewise.
func TestWatchUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		var starting bool
		f.fault = func(node int, r *http.Request) fakeFault {
			if starting && node == 2 {
				return fakeFault{answer: &fakeAnswer{header: http.Header{"Raftkv-Cluster-Id": nil, "Content-Type": {"application/x-ndjson"}}, status: 200, body: `{"event":"unavailable","retry":900,"data":{"code":"not_ready"}}` + "\n"}}
			}
			return fakeFault{}
		}
		var why []error
		g := follow(t.Context(), f.client(3), WatchConfig{Interrupted: func(err error) { why = append(why, err) }})
		g.want(t, "synced 0")
		f.mu.Lock()
		starting = true
		f.mu.Unlock()
		f.say(1, `{"event":"unavailable","retry":1500,"data":{"code":"stopping","detail":"it stops"}}`)
		time.Sleep(3 * time.Second)
		f.puts("a")
		time.Sleep(time.Second)
		g.want(t, "1 put a=a!@1")
		if len(why) < 2 || !errors.Is(why[0], Stopping) || !strings.Contains(why[0].Error(), "127.0.0.1:1") {
			t.Fatal(why)
		}
	})
}

// Guarantee: with State a watch tells what is there and then the changes; that history has gone
// is hidden behind the difference.
func TestWatchState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a", "b")
		f.puts("c")
		g := follow(t.Context(), f.client(2), WatchConfig{State: true})
		g.want(t, "0 put a=a!@1", "0 put b=b!@1", "0 put c=c!@2", "synced 2")
		f.write(gone("a", "c")...)
		f.puts("d")
		g.want(t, "3 delete a delete c", "4 put d=d!@4")
		// The watch is down while things change, and nobody remembers how.
		f.mu.Lock()
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{refused: true} }
		f.mu.Unlock()
		f.cut(0)
		f.write(gone("b")...)
		f.puts("d", "e")
		f.puts("a")
		f.forget()
		time.Sleep(time.Minute)
		g.want(t)
		f.mu.Lock()
		f.fault = nil
		f.mu.Unlock()
		time.Sleep(40 * time.Second)
		g.want(t, "0 put a=a!@7", "0 put d=d!@6", "0 put e=e!@6", "0 delete b", "synced 7")
		f.write(gone("e")...)
		g.want(t, "8 delete e")
		// What has gone is not told to have gone again.
		f.say(0, `{"event":"reset","id":0,"data":{"code":"history_gone"}}`)
		f.say(0, `{"event":"synced","id":8,"data":{"revision":8}}`)
		g.want(t, "0 delete a delete d", "synced 8")
		f.say(0, `{"event":"reset","id":0,"data":{"code":"history_gone"}}`)
		f.say(0, `{"event":"synced","id":8,"data":{"revision":8}}`)
		g.want(t, "synced 8")
	})
}

// Guarantee: a state that breaks off is not taken for what it would have been: the next node tells
// all of it, although it knows the changes behind the position before.
func TestWatchStateAfterPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a")
		g := follow(t.Context(), f.client(2), WatchConfig{State: true})
		g.want(t, "0 put a=a!@1", "synced 1")
		f.puts("b")
		g.want(t, "2 put b=b!@2")
		f.say(0, `{"event":"reset","id":0,"data":{"code":"history_gone"}}`)
		f.say(0, `{"event":"state","data":{"revision":4,"items":[{"key":"c","value_base64":"","mod_revision":4}]}}`)
		g.want(t, "0 put c=@4")
		f.cut(0)
		time.Sleep(time.Second)
		g.want(t, "0 delete c", "synced 2")
	})
}

// Guarantee: a state that breaks off is begun anew, and what was told of it is not told again.
func TestWatchStateBreaksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		first := true
		f.fault = func(int, *http.Request) fakeFault {
			if !first {
				return fakeFault{}
			}
			first = false
			return fakeFault{answer: &fakeAnswer{status: 200, header: http.Header{"Content-Type": {"application/x-ndjson"}}, body: `{"event":"reset","id":0,"data":{"code":"start"}}
{"event":"state","data":{"revision":2,"items":[{"key":"a","value_base64":"YSE=","mod_revision":1},{"key":"x","value_base64":"","mod_revision":2}]}}
`}}
		}
		f.puts("a")
		f.puts("b")
		g := follow(t.Context(), f.client(2), WatchConfig{State: true, Types: []EventType{Put}})
		time.Sleep(time.Second)
		g.want(t, "0 put a=a!@1 put x=@2", "0 put b=b!@2", "synced 2") // x has gone: a delete, which nobody wants
	})
}

// Guarantee: without State, history that has gone ends the watch, with where it can go on.
func TestWatchHistoryGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a")
		f.puts("a")
		f.puts("a")
		f.forget()
		c := f.client(1)
		for range 2 {
			var h *HistoryError
			g := follow(t.Context(), c, WatchConfig{After: 1})
			<-g.done
			if !errors.Is(g.err, HistoryGone) || !errors.Is(g.err, ErrNotApplied) || !errors.As(g.err, &h) || h.After != 1 || h.Now != 3 {
				t.Fatal(g.err)
			}
		}
		g := follow(t.Context(), c, WatchConfig{After: Beginning})
		<-g.done
		if !errors.Is(g.err, HistoryGone) {
			t.Fatal(g.err)
		}
		g = follow(t.Context(), c, WatchConfig{After: 3})
		g.want(t)
		f.puts("b")
		f.say(0, `{"event":"position","id":4}`)
		g.want(t, "4 put b=b!@4") // and no Synced
	})
}

// Guarantee: a watch that was cut off comes back at once, however often that happens, and one that
// is cut off as soon as it has come is no burden.
func TestWatchComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		g := follow(t.Context(), f.client(3), WatchConfig{})
		g.want(t, "synced 0")
		for range 20 {
			time.Sleep(watchSettled)
			f.cut(0)
			r := f.puts("a")
			time.Sleep(watchJitter)
			g.want(t, fmt.Sprintf("%d put a=a!@%d", r, r))
		}
		before := f.sent("GET")
		for end := time.Now().Add(time.Minute); time.Now().Before(end); {
			f.cut(0)
			time.Sleep(10 * time.Millisecond)
		}
		if n := f.sent("GET") - before; n > 40 {
			t.Fatalf("%d requests in a minute", n)
		}
	})
}

// Guarantee: what is refused ends a watch at once, and a cluster that cannot be reached ends it
// after the client's Timeout; a watch that once told something goes on trying.
func TestWatchEnds(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 421} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster(t)
			f.fault = func(int, *http.Request) fakeFault {
				a := fakeProblem(status, Forbidden, false)
				return fakeFault{answer: &a}
			}
			begun := time.Now()
			g := follow(t.Context(), f.client(3), WatchConfig{})
			<-g.done
			e := new(Error)
			if !errors.As(g.err, &e) || e.Status != status || time.Since(begun) > time.Second {
				t.Fatalf("%d: %v after %v", status, g.err, time.Since(begun))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{refused: true} }
		begun := time.Now()
		g := follow(t.Context(), f.client(3), WatchConfig{})
		<-g.done
		if took := time.Since(begun); took < DefaultTimeout || took > DefaultTimeout+10*time.Second {
			t.Fatalf("%v after %v", g.err, took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		c := f.client(3)
		g := follow(t.Context(), c, WatchConfig{})
		g.want(t, "synced 0")
		f.mu.Lock()
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{hangs: true} }
		f.mu.Unlock()
		f.cut(0)
		time.Sleep(24 * time.Hour)
		f.mu.Lock()
		f.fault = nil
		f.mu.Unlock()
		f.puts("a")
		time.Sleep(time.Minute)
		g.want(t, "1 put a=a!@1")
		f.mu.Lock()
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{refused: true} }
		f.mu.Unlock()
		f.cut(0)
		time.Sleep(time.Hour)
		closed := time.Now()
		c.Close()
		<-g.done
		if !errors.Is(g.err, ErrClosed) || time.Since(closed) != 0 {
			t.Fatal(g.err, time.Since(closed))
		}
	})
}

// Guarantee: a configuration that cannot be right is an error before anything is sent.
func TestWatchConfigWrong(t *testing.T) {
	f := newFakeCluster(t)
	for _, cfg := range []WatchConfig{{State: true, After: 1}, {Types: []EventType{"post"}}} {
		g := follow(t.Context(), f.client(1), cfg)
		<-g.done
		if !errors.Is(g.err, BadRequest) || f.sent("GET") != 0 {
			t.Fatal(g.err)
		}
	}
}

// Guarantee: a reader that has enough ends the watch, and its connection.
func TestWatchBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a", "b")
		for range f.client(1).Watch(t.Context(), WatchConfig{State: true}) {
			break
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.streams) != 0 {
			t.Fatal("the stream is still open")
		}
	})
}

// Guarantee: what is not as the protocol has it is never told as if it were.
func TestWatchStrange(t *testing.T) {
	c := newFakeCluster(t).client(1)
	const change = `{"event":"change","id":5,"data":{"revision":5,"events":[]}}`
	for name, lines := range map[string][]string{
		"no id":              {`{"event":"change","data":{"revision":5,"events":[]}}`},
		"an id and more":     {`{"event":"change","id":5,"data":{"revision":5,"more":true,"events":[]}}`},
		"another id":         {`{"event":"change","id":6,"data":{"revision":5,"events":[]}}`},
		"told again":         {change, change},
		"back":               {change, `{"event":"position","id":4}`},
		"no position":        {`{"event":"position"}`},
		"halves":             {`{"event":"change","data":{"revision":5,"more":true,"events":[{"type":"delete","key":"a"}]}}`, `{"event":"change","id":6,"data":{"revision":6,"events":[]}}`},
		"a state":            {`{"event":"state","data":{"revision":6,"items":[]}}`},
		"an end":             {`{"event":"synced","id":5,"data":{"revision":6}}`},
		"a reset without id": {`{"event":"reset","data":{"code":"start"}}`},
	} {
		w := newWatching(c, WatchConfig{})
		w.tell = func(Change) bool { return true }
		var err error
		for _, line := range lines {
			if err != nil {
				t.Fatalf("%s: %v before the last line", name, err)
			}
			m := new(watchMessage)
			if err = json.Unmarshal([]byte(line), m); err == nil {
				err = w.take(m, len(line))
			}
		}
		if !errors.Is(err, ErrStranger) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Guarantee: the parts of a revision are put together up to a bound, and an event of a type
// that a later version may have is left out.
func TestWatchBounds(t *testing.T) {
	w := newWatching(newFakeCluster(t).client(1), WatchConfig{State: true})
	reset, position, one := &watchMessage{Event: "reset"}, &watchMessage{Event: "position"}, uint64(1)
	position.ID = &one
	if err := errors.Join(w.take(position, 1), w.take(reset, 1)); err != nil {
		t.Fatal(err)
	}
	if err := w.take(position, 1); !errors.Is(err, ErrStranger) {
		t.Fatalf("a position within the state: %v", err)
	}
	w = newWatching(newFakeCluster(t).client(1), WatchConfig{})
	w.tell = func(ch Change) bool { return true }
	part := func(revision uint64) *watchMessage {
		m := &watchMessage{Event: "change"}
		m.Data.Revision, m.Data.More = revision, true
		return m
	}
	if err := w.take(part(1), maxChangeBytes); err != nil {
		t.Fatal(err)
	}
	if err := w.take(part(1), 1); !errors.Is(err, TooLarge) || !final(err) {
		t.Fatal(err)
	}
	m := new(watchMessage)
	if err := json.Unmarshal([]byte(`{"event":"change","id":1,"data":{"revision":1,"events":[{"type":"rename","key":"a"},{"type":"expire","key":"b"}]}}`), m); err != nil {
		t.Fatal(err)
	}
	if e := m.events(); len(e) != 1 || e[0].Type != Expire || e[0].Key != "b" {
		t.Fatal(e)
	}
	for size, ok := range map[int]bool{100: true, 101: false} {
		_, err := readLine(bufio.NewReaderSize(bytes.NewReader(append(bytes.Repeat([]byte("x"), size-1), '\n')), 16), 100)
		if (err == nil) != ok {
			t.Errorf("a line of %d bytes: %v", size, err)
		}
	}
}

// Guarantee: after the other endpoints, the pauses grow, up to a bound.
func TestWatchPauses(t *testing.T) {
	w := newWatching(newFakeCluster(t).client(3), WatchConfig{})
	for i := range 100 {
		p := w.pause(&unavailableError{retry: time.Hour})
		if i < 2 && p > watchJitter || i >= 3 && p < watchMaxPause/2 || p > watchMaxPause {
			t.Fatalf("pause %d is %v", i, p)
		}
	}
}
