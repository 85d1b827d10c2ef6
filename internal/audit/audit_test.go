package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// paper is where lines go in these tests.
type paper struct {
	mu    sync.Mutex
	bytes bytes.Buffer
	stuck chan struct{} // a write waits for it, if it is there
	full  int           // of a write so many bytes are taken, and the rest not; -1: all are
}

func newPaper() *paper { return &paper{full: -1} }

func (p *paper) Write(b []byte) (int, error) {
	if p.stuck != nil {
		<-p.stuck
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full >= 0 {
		p.bytes.Write(b[:p.full])
		return p.full, errors.New("no space left on device")
	}
	return p.bytes.Write(b)
}

// lines are those that were written, without start and stop.
func (p *paper) lines(t *testing.T) (all []map[string]any) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range strings.Split(strings.TrimSuffix(p.bytes.String(), "\n"), "\n") {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %q", err, text)
		}
		if line["event"] != eventStart && line["event"] != eventStop {
			all = append(all, line)
		}
	}
	return all
}

// begin opens a log on p.
func begin(t *testing.T, p *paper, reads bool, log *zap.Logger) *Log {
	t.Helper()
	l, err := Open(config.Config{ID: 7, Doors: config.Doors{AuditLog: "-", AuditReads: reads}}, p, log)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func lost(t *testing.T, l *Log) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	l.Register(reg)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// Guarantee: docs/audit.md has each field of each kind of line, and no other.
func TestFormatIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string][]string) // fields by event
	kinds := []string{eventStart, eventStop, eventRequest, eventExpire, eventGap, eventLost}
	types := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| ([\\w ]+) \\| ([\\w, ]+) \\|").FindAllStringSubmatch(string(text), -1) {
		types[m[1]] = m[2]
		for in := range strings.SplitSeq(m[3], ", ") {
			if in == "all" {
				for _, kind := range kinds {
					documented[kind] = append(documented[kind], m[1])
				}
			} else {
				documented[in] = append(documented[in], m[1])
			}
		}
	}
	found := make(map[string]map[string]bool)
	p := newPaper()
	l := begin(t, p, true, zap.NewNop())
	l.Request(Record{Name: "n", From: "f", Method: "PUT", Route: "kv", Keys: make([]string, maxKeys), Prefixes: []string{"p"}, Lease: 1, Member: 2,
		PeerURL: "u", Revision: 3, Took: time.Second}, 204, nil)
	l.Request(Record{Prefixes: []string{"p"}, Ranges: [][2]string{{"a", "b"}}}, 500, problem.ErrInternal)
	follow(t, l, true)
	l.sayLost(1, 2)
	l.over.Store(1)
	l.sayOver(never - 1)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for text := range strings.SplitSeq(strings.TrimSpace(p.bytes.String()), "\n") {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		event := line["event"].(string)
		if found[event] == nil {
			found[event] = make(map[string]bool)
		}
		for name, value := range line {
			found[event][name] = true
			want := map[string]string{"text": "string", "number": "float64", "list of texts": "[]interface {}", "list of pairs": "[]interface {}"}[types[name]]
			if got := reflect.TypeOf(value).String(); got != want {
				t.Errorf("%s is a %s, and %q in docs/audit.md", name, got, types[name])
			}
		}
	}
	for _, kind := range kinds {
		want := slices.Sorted(slices.Values(documented[kind]))
		if got := slices.Sorted(maps.Keys(found[kind])); !slices.Equal(got, want) {
			t.Errorf("%s has %v, docs/audit.md says %v", kind, got, want)
		}
		delete(documented, kind)
	}
	if len(documented) > 0 {
		t.Errorf("docs/audit.md has also %v", documented)
	}
	for _, n := range []string{fmt.Sprint(maxKeys), "16 KiB", fmt.Sprintf("queue of %d MiB", maxQueue>>20), fmt.Sprint(refusedPerSecond), "20,000", fmt.Sprintf("%d bytes of it", refusedKeyBytes), "100 MiB"} {
		if !strings.Contains(string(text), n) {
			t.Errorf("docs/audit.md does not say %s", n)
		}
	}
}

// Guarantee: what changes something is written, and what is refused for who asks; what reads
// only where it was asked for. Without a log there is nothing, and it costs nothing.
func TestWhatIsWritten(t *testing.T) {
	var off *Log
	l, all := &Log{}, &Log{reads: true}
	for _, tt := range []struct {
		method string
		status int
		want   bool
	}{
		{"PUT", 204, true}, {"POST", 200, true}, {"PATCH", 200, true}, {"DELETE", 404, true}, {"other", 405, true}, {"PUT", 503, true},
		{"GET", 200, false}, {"HEAD", 200, false}, {"GET", 404, false}, {"OPTIONS", 204, false}, {"GET", 400, false}, {"GET", 402, false},
		{"GET", 401, true}, {"GET", 403, true}, {"HEAD", 403, true},
	} {
		if got := l.Wants(tt.method, tt.status); got != tt.want {
			t.Errorf("%s %d: %t", tt.method, tt.status, got)
		}
		if !all.Wants(tt.method, tt.status) || off.Wants(tt.method, tt.status) {
			t.Errorf("%s %d: not with reads, or without a log", tt.method, tt.status)
		}
	}
	r := httptest.NewRequest("PUT", "/k", nil)
	if n := testing.AllocsPerRun(100, func() {
		if off.Wants("PUT", 401) {
			t.Error("it wants something")
		}
		same, n := off.Begin(r, "kv", time.Time{})
		n.Who("a")
		n.End(200, nil, nil)
		if same != r {
			t.Error("another request")
		}
	}); n != 0 {
		t.Errorf("no log costs %v allocations", n)
	}
	if err := off.Close(); err != nil || lost(t, off) != 0 || off.FollowExpiries(t.Context(), Expiries{}) != nil {
		t.Error(err)
	}
}

// Guarantee: a line names what a request is about, whichever way it is told, and of the query
// nothing but that.
func TestRequests(t *testing.T) {
	header := func(kv ...string) http.Header { return http.Header{kv[0]: {kv[1]}} }
	for _, tt := range []struct {
		method, target, route string
		header                http.Header
		status                int
		err                   error
		want                  string // fields, without those that are always there
	}{
		{"PUT", "/a/b%2Fc", "kv", header("Raftkv-Revision", "9"), 204, nil, `{"keys":["a/b/c"],"revision":9,"outcome":"done"}`},
		{"DELETE", "/v1/kv/%22%0A?x=secret", "kv", nil, 400, problem.ErrBadRequest, `{"keys":["\"\n"],"code":"bad_request","outcome":"not_applied"}`},
		{"PUT", "/v1/kv?key=a%2Fb&lease=7", "list", nil, 504, problem.ErrOutcomeUnknown, `{"keys":["a/b"],"code":"outcome_unknown","outcome":"unknown"}`},
		{"GET", "/v1/kv?prefix=a/&start=a/b&end=a/c&limit=3", "list", nil, 200, nil, `{"prefixes":["a/"],"ranges":[["a/b","a/c"]],"outcome":"done"}`},
		{"GET", "/v1/kv?start=b", "list", nil, 200, nil, `{"ranges":[["b",""]],"outcome":"done"}`},
		{"GET", "/v1/kv", "list", nil, 200, nil, `{"prefixes":[""],"outcome":"done"}`},
		{"GET", "/k?wait=3s", "poll", nil, 304, nil, `{"keys":["k"],"outcome":"done"}`},
		{"POST", "/v1/kv?prefix=jobs/", "list", header("Location", "/v1/kv/jobs%2F01"), 201, nil, `{"keys":["jobs/01"],"prefixes":["jobs/"],"outcome":"done"}`},
		{"DELETE", "/v1/kv?prefix=a/", "list", header("Raftkv-Revision", "4"), 200, nil, `{"prefixes":["a/"],"revision":4,"outcome":"done"}`},
		{"POST", "/v1/add?key=n&ttl=3s", "add", nil, 200, nil, `{"keys":["n"],"outcome":"done"}`},
		{"GET", "/v1/watch?key=a&prefix=b/&prefix=c/", "watch", nil, 403, problem.ErrForbidden, `{"keys":["a"],"prefixes":["b/","c/"],"code":"forbidden","outcome":"not_applied"}`},
		{"GET", "/v1/watch", "watch", nil, 401, problem.ErrUnauthenticated, `{"prefixes":[""],"code":"unauthenticated","outcome":"not_applied"}`},
		{"POST", "/v1/leases", "leases", header("Location", "/v1/leases/12"), 201, nil, `{"lease":12,"outcome":"done"}`},
		{"PUT", "/v1/leases/12", "lease", nil, 200, nil, `{"lease":12,"outcome":"done"}`},
		{"POST", "/v1/members", "members", header("Location", "/v1/members/4"), 201, nil, `{"member":4,"outcome":"done"}`},
		{"DELETE", "/v1/members/4", "member", nil, 204, nil, `{"member":4,"outcome":"done"}`},
		{"DELETE", "/4", "member", nil, 204, nil, `{"member":4,"outcome":"done"}`},
		{"DELETE", "/x/4", "member", nil, 400, problem.ErrBadRequest, `{"code":"bad_request","outcome":"not_applied"}`},
		{"GET", "/v1/snapshot", "snapshot", nil, 200, nil, `{"outcome":"done"}`},
		{"GET", "/v1/status", "status", nil, 200, nil, `{"outcome":"done"}`},
		{"GET", "/readyz", "readyz", nil, 503, nil, ``},
		{"GET", "/metrics", "metrics", nil, 200, nil, ``},
		{"GET", "/v1/kv?%zz", "list", nil, 400, problem.ErrBadRequest, `{"prefixes":[""],"code":"bad_request","outcome":"not_applied"}`},
	} {
		p := newPaper()
		l := begin(t, p, true, zap.NewNop())
		r := httptest.NewRequest(tt.method, tt.target, nil)
		r.Header.Set("Authorization", "Bearer secret")
		r.RemoteAddr = "192.0.2.1:99"
		r, n := l.Begin(r, tt.route, time.Now())
		if NoteOf(r.Context()) != n {
			t.Errorf("%s %s: the note is not found", tt.method, tt.target)
		}
		n.Who("me")
		n.End(tt.status, tt.header, tt.err)
		n.End(tt.status, tt.header, tt.err)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if strings.Contains(p.bytes.String(), "secret") {
			t.Errorf("%s %s: %s", tt.method, tt.target, p.bytes.String())
		}
		got := p.lines(t)
		if tt.want == "" {
			if len(got) > 0 {
				t.Errorf("%s %s: %v", tt.method, tt.target, got)
			}
			continue
		}
		want := map[string]any{"event": "request", "node": 7.0, "name": "me", "from": "192.0.2.1:99", "method": tt.method, "route": tt.route, "status": float64(tt.status)}
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 {
			t.Errorf("%s %s: %d lines", tt.method, tt.target, len(got))
			continue
		}
		if at, err := time.Parse(time.RFC3339, got[0]["time"].(string)); err != nil || time.Since(at) > time.Minute || at.Location() != time.UTC {
			t.Errorf("%s %s: at %v, %v", tt.method, tt.target, got[0]["time"], err)
		}
		delete(got[0], "time")
		delete(got[0], "ms")
		if !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s %s: %v\nwant %v", tt.method, tt.target, got[0], want)
		}
	}
}

// Guarantee: what only the body says is in the line; what can change nothing counts as a read;
// a watch has its line when it begins, and one only.
func TestNotes(t *testing.T) {
	for _, reads := range []bool{false, true} {
		p := newPaper()
		l := begin(t, p, reads, zap.NewNop())
		_, n := l.Begin(httptest.NewRequest("POST", "/v1/txn", nil), "txn", time.Now())
		n.About([]string{"a"}, []string{"p/"})
		n.About([]string{"b"}, nil)
		n.Reads()
		n.End(200, nil, nil)
		_, n = l.Begin(httptest.NewRequest("GET", "/v1/watch?key=w", nil), "watch", time.Now())
		n.Begun()
		n.End(200, nil, problem.ErrStopping)
		_, n = l.Begin(httptest.NewRequest("POST", "/v1/members", nil), "members", time.Now())
		n.Member(0, "http://node:1")
		n.End(409, nil, problem.ErrMemberExists)
		_, n = l.Begin(httptest.NewRequest("GET", "/v1/snapshot", nil), "snapshot", time.Now())
		n.End(200, nil, nil)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		var got []string
		for _, line := range p.lines(t) {
			got = append(got, fmt.Sprintf("%v %v %v %v %v", line["route"], line["keys"], line["prefixes"], line["peer_url"], line["outcome"]))
		}
		want := []string{"txn [a b] [p/] <nil> done", "watch [w] <nil> <nil> begun", "members <nil> <nil> http://node:1 not_applied", "snapshot <nil> <nil> <nil> done"}
		if !reads {
			want = want[2:]
		}
		if !slices.Equal(got, want) {
			t.Errorf("reads %t:\n%q\nwant\n%q", reads, got, want)
		}
	}
}

// Guarantee: a line is bounded: so many keys and so many bytes of them, exactly; the first is
// there in any case, as long as a key can be; and what is left out is counted.
func TestLinesAreBounded(t *testing.T) {
	long := strings.Repeat("x", config.MaxKeyBytes)
	for _, tt := range []struct {
		rec        Record
		k, p, r, m int
	}{
		{Record{Keys: make([]string, maxKeys)}, maxKeys, 0, 0, 0},
		{Record{Keys: make([]string, maxKeys+1)}, maxKeys, 0, 0, 1},
		{Record{Keys: make([]string, maxKeys), Prefixes: []string{""}, Ranges: [][2]string{{}}}, maxKeys, 0, 0, 2},
		{Record{Keys: make([]string, maxKeys-1), Prefixes: []string{""}, Ranges: [][2]string{{}}}, maxKeys - 1, 1, 0, 1},
		{Record{Keys: []string{long, long, long, long}}, 4, 0, 0, 0},
		{Record{Keys: []string{long, long, long, long + "y"}}, 3, 0, 0, 1},
		{Record{Prefixes: []string{long, long, long, long, "a", "b"}}, 0, 4, 0, 2},
		{Record{Ranges: [][2]string{{long, long}, {long, long}, {"", "a"}}}, 0, 0, 2, 1},
		{Record{Keys: []string{long + long + long + long + long, "b"}}, 1, 0, 0, 1},
		{Record{Ranges: [][2]string{{long + "y", long + long}}}, 0, 0, 1, 0},
		{Record{Prefixes: []string{long + "y"}}, 0, 1, 0, 0},
	} {
		k, p, r, m := tt.rec.bounded(whole)
		if len(k) != tt.k || len(p) != tt.p || len(r) != tt.r || m != tt.m {
			t.Errorf("%d, %d, %d: %d, %d, %d and %d more; want %d, %d, %d and %d", len(tt.rec.Keys), len(tt.rec.Prefixes), len(tt.rec.Ranges), len(k), len(p), len(r), m, tt.k, tt.p, tt.r, tt.m)
		}
		for _, pair := range r {
			k = append(k, pair[:]...)
		}
		for _, key := range append(k, p...) {
			if len(key) > config.MaxKeyBytes {
				t.Errorf("a key of %d bytes", len(key))
			}
		}
	}
}

// Guarantee: the line of a request of nobody known that was refused is short, whatever it names:
// 64 bytes of the first, exactly. That of somebody known is not.
func TestRefusedAreShort(t *testing.T) {
	long := strings.Repeat("\x01", config.MaxKeyBytes)
	for _, tt := range []struct {
		rec  Record
		want string
	}{
		{Record{Keys: []string{long, "b"}, Prefixes: []string{"c"}}, fmt.Sprintf(`"keys":["%s"],"more":2`, strings.Repeat(`\u0001`, refusedKeyBytes))},
		{Record{Prefixes: []string{long}}, fmt.Sprintf(`"prefixes":["%s"],"status"`, strings.Repeat(`\u0001`, refusedKeyBytes))},
		{Record{Ranges: [][2]string{{long, long}}}, fmt.Sprintf(`"ranges":[["%s","%[1]s"]],"status"`, strings.Repeat(`\u0001`, refusedKeyBytes))},
		{Record{Keys: []string{long, "b"}, Name: "known"}, fmt.Sprintf(`"keys":["%s","b"],"status"`, strings.Repeat(`\u0001`, len(long)))},
	} {
		p := newPaper()
		l := begin(t, p, false, zap.NewNop())
		l.Request(tt.rec, 401, problem.ErrUnauthenticated)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if text := p.bytes.String(); !strings.Contains(text, tt.want) {
			t.Errorf("%d bytes without %.100s: %.200s", len(text), tt.want, text)
		}
	}
}

// Guarantee: who is refused for hours because nobody knows them gets so many lines in an hour,
// exactly: the files hold what others have done for days.
func TestLongFloodOfRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		l := begin(t, p, false, zap.NewNop())
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		for range refusedPerHour/refusedPerSecond + 2 {
			for range refusedPerSecond {
				l.Request(Record{Method: "PUT"}, 401, problem.ErrUnauthenticated)
			}
			time.Sleep(time.Second) // the queue is written meanwhile, too
		}
		over := 2 * refusedPerSecond
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		l.Request(Record{Method: "PUT"}, 401, problem.ErrUnauthenticated)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		written, told := 0, 0.0
		for _, line := range p.lines(t) {
			if line["event"] == eventLost {
				told += line["lines"].(float64)
			} else {
				written++
			}
		}
		if written != refusedPerHour+1 || told != float64(over) || lost(t, l) != float64(over) {
			t.Errorf("%d written, %v told, %v lost; want %d and %d", written, told, lost(t, l), refusedPerHour+1, over)
		}
	})
}

// Guarantee: no request waits for the audit log. A reader that has stopped costs lines, which
// are counted, and told of once it goes on.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, said := observer.New(zapcore.ErrorLevel)
		p := newPaper()
		l := begin(t, p, false, zap.New(logs))
		p.stuck = make(chan struct{})
		began := time.Now()
		const requests = 100_000 // more than the queue takes
		for range requests {
			l.Request(Record{Method: "PUT", Keys: []string{"k"}}, 204, nil)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("they waited for %v", took)
		}
		dropped := lost(t, l)
		if dropped == 0 || dropped >= requests {
			t.Fatalf("%v of %d were lost", dropped, requests)
		}
		close(p.stuck)
		synctest.Wait()
		l.Request(Record{Method: "DELETE"}, 204, nil)
		synctest.Wait()
		var there, told float64
		for _, line := range p.lines(t) {
			switch line["event"] {
			case eventRequest:
				there++
			case eventLost:
				told += line["lines"].(float64)
				if line["total"] != dropped {
					t.Errorf("%v", line)
				}
			}
		}
		if there != requests+1-dropped || told != dropped {
			t.Errorf("of %d lines %v are there, %v were lost, %v told of", requests+1, there, dropped, told)
		}
		if said.FilterMessageSnippet("audit log were lost").Len() == 0 {
			t.Error("the log does not say so")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		l.Request(Record{Method: "PUT"}, 204, nil) // of a request that outlasts the node
	})
}

// Guarantee: a disk that is full costs the lines that it does not take, and no others: what is
// cut short stays in a line of its own. It is said once a minute while it lasts, and when it
// is over.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, said := observer.New(zapcore.InfoLevel)
		p := newPaper()
		l := begin(t, p, false, zap.New(logs))
		write := func(key string) {
			l.Request(Record{Method: "PUT", Keys: []string{key}}, 204, nil)
			synctest.Wait()
		}
		count := func(part string) int { return said.FilterMessageSnippet(part).Len() }
		write("a")
		p.full = 10
		write("b")
		p.full = 0
		for range 100 {
			write("c")
		}
		if n := count("cannot be written"); n != 1 {
			t.Errorf("it is said %d times", n)
		}
		time.Sleep(failureEvery)
		write("d")
		if n := count("cannot be written"); n != 2 {
			t.Errorf("after a minute it is said %d times", n)
		}
		p.full = -1
		write("e")
		if n := count("written again"); n != 1 || lost(t, l) != 102 {
			t.Errorf("that it is over is said %d times, %v are lost", n, lost(t, l))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		texts := strings.Split(p.bytes.String(), "\n")
		if len(texts) != 7 || !strings.HasSuffix(texts[1], "}") || len(texts[2]) != 10 || !strings.Contains(texts[3], `"e"`) ||
			!strings.Contains(texts[4], `"lines":102`) || !strings.Contains(texts[5], eventStop) {
			t.Errorf("%q", texts)
		}
	})
}

// Guarantee: who is refused because nobody knows them gets so many lines in a second, exactly,
// and pushes nobody else's out; how many more there were is told.
func TestFloodOfRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPaper()
		l := begin(t, p, false, zap.NewNop())
		for range refusedPerSecond + 5 {
			l.Request(Record{Method: "PUT"}, 401, problem.ErrUnauthenticated)
			l.Request(Record{Method: "PUT", Name: "known"}, 403, problem.ErrForbidden)
			l.Request(Record{Method: "PUT"}, 204, nil)
		}
		time.Sleep(time.Second)
		l.Request(Record{Method: "PUT"}, 401, problem.ErrUnauthenticated)
		for range refusedPerSecond {
			l.Request(Record{Method: "PUT"}, 401, problem.ErrUnauthenticated)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		got := make(map[string]int)
		for _, line := range p.lines(t) {
			got[fmt.Sprint(line["event"], line["status"], line["lines"], line["total"], line["code"])]++
		}
		want := map[string]int{
			"request401 <nil> <nil>unauthenticated": 2 * refusedPerSecond, "request403 <nil> <nil>forbidden": refusedPerSecond + 5,
			"request204 <nil> <nil> <nil>": refusedPerSecond + 5, "lost<nil> 5 5refused": 1, "lost<nil> 1 6refused": 1,
		}
		if !maps.Equal(got, want) || lost(t, l) != 6 {
			t.Errorf("%v, %v lost", got, lost(t, l))
		}
	})
}
