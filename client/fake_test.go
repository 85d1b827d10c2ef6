package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeCluster is a cluster in memory, for tests in virtual time: it answers the requests
// of watches, leases, locks and elections, as docs/api.md and docs/watch.md have them, through as many
// endpoints as are wanted, and can lose what is sent.
type fakeCluster struct {
	t testing.TB

	mu       sync.Mutex
	revision uint64
	items    map[string]wireItem
	leases   map[uint64]*fakeLease
	last     uint64
	once     map[string]fakeAnswer
	history  []fakeChange
	oldest   uint64 // the position behind which history is whole
	streams  map[*fakeStream]bool
	requests []string // METHOD PATH of each that arrived

	// fault is asked for each request, with the number of the endpoint, from 1.
	fault func(node int, r *http.Request) fakeFault
}

// fakeFault is what becomes of a request.
type fakeFault struct {
	refused bool          // no connection
	late    time.Duration // before it arrives
	lost    bool          // the answer, after it was carried out
	slow    time.Duration // before the answer arrives
	hangs   bool          // it never arrives
	answer  *fakeAnswer   // in place of what it does
}

type fakeLease struct {
	ttl  time.Duration
	ends *time.Timer
}

type fakeAnswer struct {
	status int
	header http.Header
	body   string
}

type fakeChange struct {
	revision uint64
	events   []wireEvent
}

type fakeStream struct {
	node  int
	keys  []string
	under []string
	lines chan string
	ends  chan struct{}
}

func newFakeCluster(t testing.TB) *fakeCluster {
	return &fakeCluster{t: t, items: map[string]wireItem{}, leases: map[uint64]*fakeLease{}, once: map[string]fakeAnswer{}, streams: map[*fakeStream]bool{}}
}

// client returns a client of n endpoints.
func (f *fakeCluster) client(n int) *Client {
	f.t.Helper()
	cfg := Config{Transport: f}
	for i := 1; i <= n; i++ {
		cfg.Endpoints = append(cfg.Endpoints, fmt.Sprintf("http://127.0.0.1:%d", i))
	}
	c, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

// RoundTrip carries a request out, or loses it.
func (f *fakeCluster) RoundTrip(r *http.Request) (*http.Response, error) {
	node, _ := strconv.Atoi(r.URL.Port())
	var fault fakeFault
	f.mu.Lock()
	if f.fault != nil {
		fault = f.fault(node, r)
	}
	f.mu.Unlock()
	switch {
	case fault.refused:
		return nil, errors.New("connection refused")
	case fault.hangs:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case sleep(r.Context(), fault.late) != nil:
		if fault.late > 0 { // it is on its way, and arrives without anybody waiting for it
			go f.serve(node, r.Clone(context.Background()))
		}
		return nil, r.Context().Err()
	}
	if fault.answer != nil {
		return fault.answer.response(r), nil
	}
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	f.mu.Unlock()
	if r.URL.Path == "/v1/watch" {
		return f.watch(node, r)
	}
	a := f.serve(node, r)
	if fault.lost {
		return nil, io.ErrUnexpectedEOF
	}
	if err := sleep(r.Context(), fault.slow); err != nil {
		return nil, err
	}
	return a.response(r), nil
}

func (a *fakeAnswer) response(r *http.Request) *http.Response {
	h := a.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if _, own := h["Raftkv-Cluster-Id"]; !own {
		h.Set("Raftkv-Cluster-Id", "c1")
	}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(strings.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: r}
}

func fakeProblem(status int, code Code, retry bool) fakeAnswer {
	return fakeAnswer{status, http.Header{"Content-Type": {"application/problem+json"}}, fmt.Sprintf(`{"code":%q,"detail":"as the test wants it","outcome":"not_applied","retry":%v}`, string(code), retry)}
}

// serve carries out a request for a key or a lease.
func (f *fakeCluster) serve(_ int, r *http.Request) (a fakeAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, _, _ := strings.Cut(r.Header.Get("Idempotency-Key"), ";")
	if was, ok := f.once[id]; ok && id != "" {
		return was
	}
	defer func() {
		if id != "" {
			f.once[id] = a
		}
	}()
	if key, ok := strings.CutPrefix(r.URL.Path, "/v1/kv/"); ok {
		return f.serveKey(key, r)
	}
	text, ok := strings.CutPrefix(r.URL.Path, "/v1/leases")
	if !ok {
		return fakeProblem(404, NoSuchPath, false)
	}
	if r.Method == http.MethodPost {
		var body struct {
			TTL string `json:"ttl"`
		}
		var ttl time.Duration
		err := json.NewDecoder(r.Body).Decode(&body)
		if err == nil {
			ttl, err = time.ParseDuration(body.TTL)
		}
		if err != nil {
			return fakeProblem(400, BadRequest, false)
		}
		f.last++
		n := f.last
		f.leases[n] = &fakeLease{ttl, time.AfterFunc(ttl, func() { f.endLease(n, Expire) })}
		return fakeAnswer{201, nil, fmt.Sprintf(`{"id":%d,"ttl_seconds":%v}`, n, ttl.Seconds())}
	}
	n, _ := strconv.ParseUint(strings.TrimPrefix(text, "/"), 10, 64)
	l := f.leases[n]
	switch {
	case l == nil:
		return fakeProblem(404, NoSuchLease, false)
	case r.Method == http.MethodPut:
		l.ends.Reset(l.ttl)
		return fakeAnswer{200, nil, fmt.Sprintf(`{"id":%d,"ttl_seconds":%v,"expires_in_seconds":%v}`, n, l.ttl.Seconds(), l.ttl.Seconds())}
	}
	l.ends.Stop()
	f.dropLease(n, Delete)
	return fakeAnswer{status: 204}
}

func (f *fakeCluster) serveKey(key string, r *http.Request) fakeAnswer {
	it, there := f.items[key]
	h := http.Header{"Raftkv-Revision": {strconv.FormatUint(f.revision, 10)}}
	if there {
		h.Set("Etag", fmt.Sprintf("%q", strconv.FormatUint(it.ModRevision, 10)))
	}
	switch {
	case r.Method == http.MethodGet && there:
		text, _ := json.Marshal(it)
		return fakeAnswer{200, h, string(text)}
	case r.Method != http.MethodPut && !there:
		return fakeProblem(404, NotFound, false)
	case r.Header.Get("If-None-Match") == "*" && there:
		a := fakeProblem(412, PreconditionFailed, false)
		a.header.Set("Etag", h.Get("Etag"))
		return a
	case r.Method == http.MethodDelete:
		f.change(wireEvent{Delete, wireItem{Key: key}})
		return fakeAnswer{204, http.Header{"Raftkv-Revision": {strconv.FormatUint(f.revision, 10)}}, ""}
	}
	lease, _ := strconv.ParseUint(r.URL.Query().Get("lease"), 10, 64)
	if lease != 0 && f.leases[lease] == nil {
		return fakeProblem(409, NoSuchLease, false)
	}
	var value []byte
	if r.Body != nil { // it is of a client
		value, _ = io.ReadAll(r.Body)
	}
	f.change(f.put(key, string(value), lease))
	return fakeAnswer{201, http.Header{"Etag": {fmt.Sprintf("%q", strconv.FormatUint(f.revision, 10))}}, ""}
}

// put is the event of a write. Guarded by mu.
func (f *fakeCluster) put(key, value string, lease uint64) wireEvent {
	b := []byte(value)
	return wireEvent{Put, wireItem{Key: key, Base64: &b, Lease: lease}}
}

// write changes keys from outside of a client, in one revision.
func (f *fakeCluster) write(events ...wireEvent) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.change(events...)
}

// change makes a revision. Guarded by mu.
func (f *fakeCluster) change(events ...wireEvent) uint64 {
	f.revision++
	for i := range events {
		e := &events[i]
		if e.Type != Put {
			delete(f.items, e.Key)
			continue
		}
		was := f.items[e.Key]
		e.ModRevision, e.CreateRevision, e.Version = f.revision, was.CreateRevision, was.Version+1
		if was.CreateRevision == 0 {
			e.CreateRevision = f.revision
		}
		f.items[e.Key] = e.wireItem
	}
	ch := fakeChange{f.revision, events}
	f.history = append(f.history, ch)
	for s := range f.streams {
		s.tell(ch)
	}
	return f.revision
}

// forget makes the changes so far unknown to all.
func (f *fakeCluster) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history, f.oldest = nil, f.revision
}

func (f *fakeCluster) endLease(id uint64, how EventType) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropLease(id, how)
}

// dropLease takes a lease away, with its keys. Guarded by mu.
func (f *fakeCluster) dropLease(id uint64, how EventType) {
	if f.leases[id] == nil {
		return
	}
	delete(f.leases, id)
	var events []wireEvent
	for _, key := range slices.Sorted(maps.Keys(f.items)) {
		if f.items[key].Lease == id {
			events = append(events, wireEvent{how, wireItem{Key: key}})
		}
	}
	if len(events) > 0 {
		f.change(events...)
	}
}

// has reports whether a key is there.
func (f *fakeCluster) has(key string) (wireItem, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	it, ok := f.items[key]
	return it, ok
}

// sent counts requests that arrived.
func (f *fakeCluster) sent(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasPrefix(r, what) {
			n++
		}
	}
	return n
}

// say sends a line to all streams, or to those of one node.
func (f *fakeCluster) say(node int, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		if node == 0 || s.node == node {
			s.lines <- line + "\n"
		}
	}
}

// cut breaks the streams of a node, or of all.
func (f *fakeCluster) cut(node int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.streams {
		if node == 0 || s.node == node {
			close(s.ends)
			delete(f.streams, s)
		}
	}
}

func (s *fakeStream) wants(key string) bool {
	return len(s.keys)+len(s.under) == 0 || slices.Contains(s.keys, key) ||
		slices.ContainsFunc(s.under, func(p string) bool { return strings.HasPrefix(key, p) })
}

// tell sends a change, one event in a part.
func (s *fakeStream) tell(ch fakeChange) {
	var events []wireEvent
	for _, e := range ch.events {
		if s.wants(e.Key) {
			events = append(events, e)
		}
	}
	for i, e := range events {
		text, _ := json.Marshal(e)
		if i < len(events)-1 {
			s.lines <- fmt.Sprintf(`{"event":"change","data":{"revision":%d,"more":true,"events":[%s]}}`+"\n", ch.revision, text)
		} else {
			s.lines <- fmt.Sprintf(`{"event":"change","id":%d,"data":{"revision":%d,"events":[%s]}}`+"\n", ch.revision, ch.revision, text)
		}
	}
}

// watch begins a stream.
func (f *fakeCluster) watch(node int, r *http.Request) (*http.Response, error) {
	q := r.URL.Query()
	s := &fakeStream{node: node, keys: q["key"], under: q["prefix"], lines: make(chan string, 100_000), ends: make(chan struct{})}
	f.mu.Lock()
	after, given := uint64(0), q.Has("after_revision")
	after, _ = strconv.ParseUint(q.Get("after_revision"), 10, 64)
	state := q.Get("state") == "true"
	switch gone := given && (after < f.oldest || after > f.revision); {
	case state && (after == 0 || gone):
		s.lines <- `{"event":"reset","id":0,"data":{"code":"start"}}` + "\n"
		for _, key := range slices.Sorted(maps.Keys(f.items)) {
			if s.wants(key) {
				text, _ := json.Marshal(f.items[key])
				s.lines <- fmt.Sprintf(`{"event":"state","data":{"revision":%d,"items":[%s]}}`+"\n", f.revision, text)
			}
		}
		s.lines <- fmt.Sprintf(`{"event":"synced","id":%d,"data":{"revision":%d}}`+"\n", f.revision, f.revision)
	case gone:
		s.lines <- fmt.Sprintf(`{"event":"reset","id":%d,"data":{"code":"history_gone","oldest":%d}}`+"\n", f.revision, f.oldest)
	case !given:
		s.lines <- fmt.Sprintf(`{"event":"position","id":%d}`+"\n", f.revision)
	default:
		for _, ch := range f.history {
			if ch.revision > after {
				s.tell(ch)
			}
		}
	}
	f.streams[s] = true
	f.mu.Unlock()
	h := http.Header{"Content-Type": {"application/x-ndjson"}, "Raftkv-Cluster-Id": {"c1"}}
	return &http.Response{StatusCode: 200, Header: h, Body: &fakeBody{f: f, s: s, ctx: r.Context()}, Request: r}, nil
}

// fakeBody is what comes of a stream.
type fakeBody struct {
	f    *fakeCluster
	s    *fakeStream
	ctx  context.Context
	rest bytes.Buffer
}

func (b *fakeBody) Read(p []byte) (int, error) {
	if b.rest.Len() == 0 {
		select {
		case l := <-b.s.lines:
			b.rest.WriteString(l)
		default:
			select {
			case l := <-b.s.lines:
				b.rest.WriteString(l)
			case <-b.s.ends:
				return 0, io.ErrUnexpectedEOF
			case <-b.ctx.Done():
				return 0, b.ctx.Err()
			}
		}
	}
	return b.rest.Read(p)
}

func (b *fakeBody) Close() error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	delete(b.f.streams, b.s)
	return nil
}
