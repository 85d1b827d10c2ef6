package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"raftkv/internal/api"
	"raftkv/internal/listening"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/watch"
	"raftkv/internal/watchapi"
	"raftkv/internal/web"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/zap"
)

// watchTest is an api behind a real listener, whose node tells of changes.
type watchTest struct {
	*apiTest
	*stoppableListener
	told    func(error)        // sets why the node does not hear of changes
	confirm func(func() error) // sets how it asks the cluster
	asked   atomic.Int64       // how often it has
}

func newWatchTest(t *testing.T) *watchTest {
	at := newTxnTest(t)
	wt := &watchTest{apiTest: at}
	var confirm atomic.Value
	wt.confirm = func(f func() error) { confirm.Store(f) }
	wt.confirm(func() error { return nil })
	at.a.keys.Fresh.Confirm = func(context.Context) error {
		wt.asked.Add(1)
		return confirm.Load().(func() error)()
	}
	var told atomic.Pointer[error]
	wt.told = func(err error) { told.Store(&err) }
	wt.told(nil)
	at.srv.hub = watch.New(watch.Config{Look: at.kv.Look, Revision: at.kv.revision, May: func() error { return *told.Load() },
		Confirm: func(context.Context) error { return confirm.Load().(func() error)() }})
	at.a.watches.Hub, at.a.keys.Hub, at.a.lists.Hub = at.srv.hub, at.srv.hub, at.srv.hub
	at.watches()
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()))
	testkit.Must(t, err)
	var h http.Handler = at.a
	l.handler.Store(&h)
	t.Cleanup(func() { testkit.Must(t, l.close()) })
	wt.stoppableListener = l
	return wt
}

// event is what a stream has said at once: a block of server-sent events, or a line.
type event struct {
	Event string
	ID    string
	Retry string
	Data  string
}

// String is how tests write an event.
func (e event) String() string {
	if e.Event == "unavailable" {
		var p struct{ Code string }
		if err := json.Unmarshal([]byte(e.Data), &p); err != nil || e.Retry == "" {
			return fmt.Sprintf("unavailable %q, retry %q, %v", e.Data, e.Retry, err)
		}
		return "unavailable " + p.Code
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Event, e.ID, e.Data))
}

// watching is a client that watches.
type watching struct {
	t    *testing.T
	resp *http.Response
	r    *bufio.Reader
	end  func()
}

// watch begins a watch. headers are names and values.
func (wt *watchTest) watch(query string, headers ...string) *watching {
	wt.Helper()
	ctx, end := context.WithTimeout(wt.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s/v1/watch?%s", wt.Addr(), query), nil)
	testkit.Must(wt, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	testkit.Must(wt, err)
	w := &watching{wt.T, resp, bufio.NewReader(resp.Body), func() { end(); _ = resp.Body.Close() }}
	wt.Cleanup(w.end)
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		wt.Fatalf("%s: %d %s", query, resp.StatusCode, body)
	}
	return w
}

// next returns what the stream says next, but for comments and the advice to come again.
func (w *watching) next() event {
	w.t.Helper()
	e, err := w.read()
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *watching) read() (e event, err error) {
	lines := strings.HasPrefix(w.resp.Header.Get("Content-Type"), "application/x-ndjson")
	for {
		line, err := w.r.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		if lines {
			var l struct {
				Event string
				ID    *uint64
				Retry int
				Data  json.RawMessage
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				return e, fmt.Errorf("%q: %w", line, err)
			}
			if l.Event == "comment" {
				continue
			}
			e = event{Event: l.Event, Data: string(l.Data)}
			if l.ID != nil {
				e.ID = fmt.Sprint(*l.ID)
			}
			if l.Retry > 0 {
				e.Retry = fmt.Sprint(l.Retry)
			}
			if e.Event == "position" {
				e.Event = ""
			}
			return e, nil
		}
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "event":
			e.Event = value
		case "id":
			e.ID = value
		case "retry":
			e.Retry = value
		case "data":
			e.Data = value
		case "", ":":
			if name == "" && (e.Event != "" || e.ID != "") {
				return e, nil
			}
		default:
			return e, fmt.Errorf("a line %q", line)
		}
	}
}

// wants checks what the stream says next.
func (w *watching) wants(events ...string) {
	w.t.Helper()
	for _, want := range events {
		if got := w.next().String(); got != want {
			w.t.Fatalf("the stream says\n%.300s\nwant\n%.300s", got, want)
		}
	}
}

// ends checks that the stream ends.
func (w *watching) ends() {
	w.t.Helper()
	if rest, err := io.ReadAll(w.r); err != nil || len(rest) > 0 {
		w.t.Fatalf("the stream goes on with %q, %v", rest, err)
	}
}

const lines = "application/x-ndjson"

// Guarantee: a watch tells of the changes of its keys, each once and in order, in either
// form, from now on.
func TestWatchTells(t *testing.T) {
	for _, accept := range []string{"text/event-stream", lines} {
		wt := newWatchTest(t)
		wt.do("PUT", "/before", "v")
		all := wt.watch("", "Accept", accept)
		some := wt.watch("prefix=a&prefix=a/b&key=a/b/c&key=lone", "Accept", accept)
		deleted := wt.watch("types=delete,expire&prefix=", "Accept", accept)
		bare := wt.watch("keys_only=true", "Accept", accept)
		typed := wt.watch("values=base64", "Accept", accept)
		for _, w := range []*watching{all, some, deleted, bare, typed} {
			w.wants("1")
		}
		wt.do("PUT", "/a/b/c", "v")
		wt.do("PUT", "/lone", "\xff")
		wt.do("PUT", "/a", "\n")
		wt.txn(`{"then":[{"put":{"key":"b","value":"1"}},{"delete":{"key":"a"}},{"delete":{"key":"none"}}]}`,
			`{"succeeded":true,"revision":5,"results":[{"put":{"key":"b","mod_revision":5}},{"delete":{"deleted":1}},{"delete":{"deleted":0}}]}`)
		wt.do("DELETE", "/v1/kv/b", "")
		all.wants(
			`change 2 {"revision":2,"events":[{"type":"put","key":"a/b/c","value":"v","create_revision":2,"mod_revision":2,"version":1}]}`,
			`change 3 {"revision":3,"events":[{"type":"put","key":"lone","value_base64":"/w==","create_revision":3,"mod_revision":3,"version":1}]}`,
			`change 4 {"revision":4,"events":[{"type":"put","key":"a","value":"\n","create_revision":4,"mod_revision":4,"version":1}]}`,
			`change 5 {"revision":5,"events":[{"type":"put","key":"b","value":"1","create_revision":5,"mod_revision":5,"version":1},{"type":"delete","key":"a"}]}`,
			`change 6 {"revision":6,"events":[{"type":"delete","key":"b"}]}`,
		)
		some.wants(
			`change 2 {"revision":2,"events":[{"type":"put","key":"a/b/c","value":"v","create_revision":2,"mod_revision":2,"version":1}]}`,
			`change 3 {"revision":3,"events":[{"type":"put","key":"lone","value_base64":"/w==","create_revision":3,"mod_revision":3,"version":1}]}`,
			`change 4 {"revision":4,"events":[{"type":"put","key":"a","value":"\n","create_revision":4,"mod_revision":4,"version":1}]}`,
			`change 5 {"revision":5,"events":[{"type":"delete","key":"a"}]}`,
		)
		deleted.wants(`change 5 {"revision":5,"events":[{"type":"delete","key":"a"}]}`, `change 6 {"revision":6,"events":[{"type":"delete","key":"b"}]}`)
		bare.wants(`change 2 {"revision":2,"events":[{"type":"put","key":"a/b/c","create_revision":2,"mod_revision":2,"version":1}]}`)
		typed.wants(`change 2 {"revision":2,"events":[{"type":"put","key":"a/b/c","value_base64":"dg==","create_revision":2,"mod_revision":2,"version":1}]}`)
	}
}

// Guarantee: with state=true a client is told what is there, of one revision, and then what
// changes behind it. A state in several parts is whole; one that is large is lent.
func TestWatchState(t *testing.T) {
	wt := newWatchTest(t)
	w := wt.watch("state=true&prefix=k/")
	w.wants(`reset 0 {"code":"start"}`, `synced 0 {"revision":0}`)
	wt.do("PUT", "/k/1", "v")
	w.wants(`change 1 {"revision":1,"events":[{"type":"put","key":"k/1","value":"v","create_revision":1,"mod_revision":1,"version":1}]}`)
	wt.watch("state=true&key=k/1&key=none", "Accept", lines).wants(`reset 0 {"code":"start"}`,
		`state  {"revision":1,"items":[{"key":"k/1","value":"v","create_revision":1,"mod_revision":1,"version":1}]}`, `synced 1 {"revision":1}`)
	// What can be gone on with is gone on with.
	wt.do("PUT", "/k/1", "w")
	wt.watch("state=true&after_revision=1&prefix=k/").wants(
		`change 2 {"revision":2,"events":[{"type":"put","key":"k/1","value":"w","create_revision":1,"mod_revision":2,"version":2}]}`)
	// Nothing is not a position to go on from: who was cut off before it had the state has that.
	wt.watch("state=true&after_revision=1&prefix=k/&keys_only=true", "Last-Event-ID", "0").wants(`reset 0 {"code":"start"}`,
		`state  {"revision":2,"items":[{"key":"k/1","create_revision":1,"mod_revision":2,"version":2}]}`, `synced 2 {"revision":2}`)

	const n = 3000 // more than are held, and in several parts
	for i := range n {
		wt.do("PUT", fmt.Sprintf("/many/%04d", i), strings.Repeat("v", 100))
	}
	for _, query := range []string{"state=true&prefix=many/", "state=true&prefix=many/0&prefix=k&key=many/1000"} {
		w := wt.watch(query)
		w.wants(`reset 0 {"code":"start"}`)
		var keys []string
		for parts := 0; ; parts++ {
			e := w.next()
			if e.Event == "synced" {
				if e.ID != fmt.Sprint(n+2) || parts < 2 {
					t.Errorf("synced at %s behind %d parts", e.ID, parts)
				}
				break
			}
			var p struct {
				Revision uint64
				Items    []struct{ Key, Value string }
			}
			testkit.Must(t, json.Unmarshal([]byte(e.Data), &p))
			if e.Event != "state" || e.ID != "" || p.Revision != n+2 || len(e.Data) > 64<<10+100 {
				t.Fatalf("%.100v, %d bytes", e, len(e.Data))
			}
			for _, it := range p.Items {
				keys = append(keys, it.Key)
			}
		}
		want := n
		if strings.Contains(query, "many/0") {
			want = 1 + 1000 + 1
		}
		if len(keys) != want || !slices.IsSorted(keys) {
			t.Errorf("%s: %d keys, want %d, in order", query, len(keys), want)
		}
	}
}

// Guarantee: a client that cannot get a large state now keeps its position, which another node
// may know: it is not told to forget what it has before there is something in its place.
func TestWatchStateRefused(t *testing.T) {
	wt := newWatchTest(t)
	for i := range 1001 { // more than are held
		wt.do("PUT", fmt.Sprintf("/many/%04d", i), "v")
	}
	for range api.MaxStreams {
		wt.a.lists.Slots <- struct{}{}
	}
	for _, query := range []string{"state=true", "state=true&after_revision=9999"} {
		w := wt.watch(query)
		w.wants("unavailable overloaded")
		w.ends()
	}
	<-wt.a.lists.Slots
	wt.watch("state=true").wants(`reset 0 {"code":"start"}`)
}

// Guarantee: a request that lasts, and has a body that does not come, is not waited for without
// an end.
func TestWatchBody(t *testing.T) {
	at := newAPITest(t)
	at.watches()
	at.do("PUT", "/k", "v")
	for _, target := range []string{"/v1/watch", "/none?wait=1ms", "/v1/kv?after_revision=1&wait=1ms"} {
		r := httptest.NewRequest("GET", target, iotest.ErrReader(os.ErrDeadlineExceeded))
		r.Host = "localhost"
		w := httptest.NewRecorder()
		at.a.ServeHTTP(w, r)
		at.problem(target, w, 408, "request_timeout")
	}
	const most = 64 << 10
	at.want(at.do("HEAD", "/v1/watch", strings.Repeat("b", most)), 200, "")
	at.problem("one too many", at.do("GET", "/v1/watch", strings.Repeat("b", most+1)), 400, "bad_request")
}

// Guarantee: a revision that is large comes in parts, of which only the last moves the
// position, and a single change may be larger than a part.
func TestWatchParts(t *testing.T) {
	wt := newWatchTest(t)
	wt.a.keys.MaxValue, wt.a.txns.MaxValue = 1<<20, 1<<20
	all, even := wt.watch(""), wt.watch("key=k000&key=k002&key=k004")
	all.wants("0")
	even.wants("0")
	var ops []string
	for i := range 100 {
		ops = append(ops, fmt.Sprintf(`{"put":{"key":"k%03d","value":"%s"}}`, i, strings.Repeat("v", 1000)))
	}
	if w := wt.do("POST", "/v1/txn", `{"then":[`+strings.Join(ops, ",")+`]}`); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	wt.do("PUT", "/big", strings.Repeat("v", 200<<10))
	read := func(w *watching) (parts, events int) {
		for {
			e := w.next()
			var p struct {
				Revision uint64
				Events   []struct{ Key string }
				More     bool
			}
			testkit.Must(t, json.Unmarshal([]byte(e.Data), &p))
			for _, ev := range p.Events {
				events++
				if ev.Key == "big" {
					return 1, len(e.Data)
				}
			}
			if parts++; len(e.Data) > 64<<10+100 || p.More != (e.ID == "") || p.Revision != 1 {
				t.Fatalf("%.100v of %d bytes", e, len(e.Data))
			}
			if !p.More {
				return parts, events
			}
		}
	}
	if parts, events := read(all); parts != 2 || events != 100 {
		t.Errorf("%d changes in %d parts", events, parts)
	}
	if parts, events := read(even); parts != 1 || events != 3 {
		t.Errorf("%d changes in %d parts", events, parts)
	}
	if _, size := read(all); size < 200<<10 {
		t.Errorf("a large change has %d bytes", size)
	}
}

// Guarantee: a watch goes on where it was, and is told where it cannot.
func TestWatchResumes(t *testing.T) {
	wt := newWatchTest(t)
	for i := range 5 {
		wt.do("PUT", "/k", fmt.Sprint(i))
	}
	change := func(revision int) string {
		return fmt.Sprintf(`change %d {"revision":%d,"events":[{"type":"put","key":"k","value":"%d","create_revision":1,"mod_revision":%d,"version":%d}]}`,
			revision, revision, revision-1, revision, revision)
	}
	asked := wt.asked.Load()
	wt.watch("after_revision=3").wants(change(4), change(5))
	wt.watch("after_revision=0", "Last-Event-ID", "4").wants(change(5))
	if wt.asked.Load() != asked {
		t.Error("the cluster is asked for what this node has")
	}
	wt.watch("after_revision=6").wants(`reset 5 {"code":"unknown_revision"}`)
	wt.watch("after_revision=6&state=true").wants(`reset 0 {"code":"unknown_revision"}`,
		`state  {"revision":5,"items":[{"key":"k","value":"4","create_revision":1,"mod_revision":5,"version":5}]}`, `synced 5 {"revision":5}`)
	if wt.asked.Load() == asked {
		t.Error("a position that this node has not reached is refused without a question")
	}
	// A position that this node does not know yet is one that it gets to know.
	wt.confirm(func() error {
		wt.do("PUT", "/k", "5")
		return nil
	})
	later := wt.watch("after_revision=6")
	testkit.Eventually(t, "the cluster gets there", func() bool { return wt.kv.revision.Get() == 6 && wt.srv.hub.Watching() > 0 })
	wt.confirm(func() error { return nil })
	wt.do("PUT", "/k", "6")
	later.wants(change(7))

	wt.kv.mu.Lock()
	wt.kv.state.Changes.Keep(1<<20, 7)
	wt.kv.mu.Unlock()
	wt.watch("after_revision=6").wants(`reset 7 {"code":"history_gone","oldest":7}`)
	wt.watch("after_revision=6&state=true&key=none").wants(`reset 0 {"code":"history_gone","oldest":7}`, `synced 7 {"revision":7}`)
	w := wt.watch("after_revision=7")
	wt.do("PUT", "/k", "7")
	w.wants(change(8))
}

// Guarantee: what is not understood, doubled or past a bound is refused, before anything is
// streamed.
func TestWatchRefused(t *testing.T) {
	at := newAPITest(t)
	at.watches()
	many := func(n int, param string) string { return strings.TrimSuffix(strings.Repeat(param+"&", n), "&") }
	for _, query := range []string{
		"x=1", "prefix=%FF", "key=", "key=%00", "key=" + strings.Repeat("k", 4097), "after_revision=", "after_revision=-1", "after_revision=x", "after_revision=1&after_revision=2",
		"state=1", "state=true&state=true", "types=", "types=puts", "types=put,", "keys_only=yes", "values=text", "consistency=stale", "wait=1s", "limit=5",
		many(watchapi.MaxFilters+1, "key=a"), many(4, "prefix="+strings.Repeat("k", 4096)) + "&key=a",
	} {
		at.problem(query, at.do("GET", "/v1/watch?"+query, ""), 400, "bad_request")
	}
	for name, value := range map[string]string{"Last-Event-ID": "x", "Idempotency-Key": "k", "If-Match": "*"} {
		at.problem(name, at.do("GET", "/v1/watch", "", name, value), 400, "bad_request")
	}
	at.problem("a method", at.do("POST", "/v1/watch", ""), 405, "method_not_allowed")
	for _, query := range []string{many(watchapi.MaxFilters, "key=a"), many(4, "prefix="+strings.Repeat("k", 4096))} {
		if w := at.do("HEAD", "/v1/watch?"+query, ""); w.Code != 200 || w.Header().Get("Content-Type") != "text/event-stream" {
			t.Errorf("at the bound: %d %v", w.Code, w.Header())
		}
	}
}

// Guarantee: a watch that is well formed is answered with 200 whatever is wrong with the
// node, which the stream tells, with when to come again, and ends.
func TestWatchUnavailable(t *testing.T) {
	wt := newWatchTest(t)
	wt.do("PUT", "/k", "v")
	watching := []*watching{wt.watch("key=k"), wt.watch("key=k", "Accept", lines)}
	for _, w := range watching {
		w.wants("1")
	}
	wt.confirm(func() error { return problem.ErrUnavailable })
	for _, accept := range []string{"text/event-stream", lines} {
		w := wt.watch("", "Accept", accept)
		w.wants("unavailable unavailable")
		w.ends()
	}
	wt.confirm(func() error { return nil })
	wt.told(problem.ErrNoLeader)
	wt.watch("after_revision=1").wants("unavailable no_leader")
	for _, w := range watching {
		w.wants("unavailable no_leader")
		w.ends()
	}
	wt.told(nil)
	w := wt.watch("key=k")
	w.wants("1")
	wt.kv.dropItems()
	wt.watch("state=true").wants("unavailable not_ready")
	wt.a.stop()
	w.wants("unavailable stopping")
	w.ends()
	wt.watch("").wants("unavailable stopping")
}

// Guarantee: a node that starts answers a watch with a stream, too.
func TestWatchWhileStarting(t *testing.T) {
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()))
	testkit.Must(t, err)
	defer func() { testkit.Must(t, l.close()) }()
	wt := &watchTest{apiTest: &apiTest{T: t}, stoppableListener: l}
	l.origin.Store(&web.OriginGuard{Origins: []string{"https://app.example"}})
	for _, accept := range []string{"text/event-stream", lines} {
		w := wt.watch("", "Accept", accept, "Origin", "https://app.example", "Sec-Fetch-Site", "cross-site")
		w.wants("unavailable not_ready")
		w.ends()
		if h := w.resp.Header; h.Get("Access-Control-Allow-Origin") != "https://app.example" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("a browser cannot show that to the page: %v", h)
		}
	}
	for status, header := range map[int]string{403: "Origin: https://evil.example", 421: "Host: evil.example"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://%s/v1/watch", l.Addr()), nil)
		testkit.Must(t, err)
		name, value, _ := strings.Cut(header, ": ")
		if r.Header.Set(name, value); name == "Host" {
			r.Host = value
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		testkit.Must(t, err)
		if testkit.Must(t, resp.Body.Close()); resp.StatusCode != status {
			t.Errorf("%s: %d", header, resp.StatusCode)
		}
	}
}

// Guarantee: a client that has hung up holds no place, whether or not it says so; one that
// only sends nothing more is told on.
func TestWatchHangUp(t *testing.T) {
	wt := newWatchTest(t)
	wt.watch("").end()
	testkit.Eventually(t, "the place of a client that has hung up is free", func() bool { return wt.srv.hub.Watching() == 0 })
	ht := hangUpTest{apiTest: wt.apiTest, stoppableListener: wt.stoppableListener}
	c := ht.dial()
	_, err := io.WriteString(c, "GET /v1/watch HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
	testkit.Must(t, err)
	testkit.Must(t, c.CloseWrite())
	r := bufio.NewReader(c)
	for _, want := range []string{`{"event":"position","id":0}`, `"value":"v"`} {
		for {
			line, err := r.ReadString('\n')
			testkit.Must(t, err)
			if strings.Contains(line, want) {
				break
			}
		}
		wt.do("PUT", "/k", "v")
	}
}

// Guarantee: who does not know the changes of what it watches is not told a later position,
// and one that cannot be read says so.
func TestWatchLoading(t *testing.T) {
	wt := newWatchTest(t)
	w := wt.watch("state=true")
	w.wants(`reset 0 {"code":"start"}`, `synced 0 {"revision":0}`)
	wt.kv.dropItems()
	st := state.New(testkit.Peers())
	st.Changes.Keep(1<<20, 0)
	st.Apply(state.Command{Kind: state.KindPut, Key: "k", Value: []byte("v")})
	st.Changes.Keep(1<<20, st.Revision)
	wt.kv.mu.Lock()
	wt.kv.state = st
	wt.kv.loading.Store(false)
	wt.kv.mu.Unlock()
	wt.kv.revision.Advance(st.Revision)
	w.wants(`reset 0 {"code":"history_gone","oldest":1}`,
		`state  {"revision":1,"items":[{"key":"k","value":"v","create_revision":1,"mod_revision":1,"version":1}]}`, `synced 1 {"revision":1}`)
}

// Guarantee: a node that has heard nothing from a leader for long does not promise to tell of
// changes.
func TestWatchNeedsALeader(t *testing.T) {
	at := newAPITest(t)
	at.problem("never heard", at.do("GET", "/k?wait=1ms", ""), 503, "no_leader")
	for ago, code := range map[time.Duration]string{9 * time.Second: "not_found", 11 * time.Second: "no_leader"} {
		heard := time.Now().Add(-ago)
		at.node.contacts.Leader = &heard
		at.problem(fmt.Sprint(ago), at.do("GET", "/k?wait=1ms", ""), map[string]int{"not_found": 404, "no_leader": 503}[code], code)
	}
}
