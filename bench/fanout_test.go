package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// chunked returns a body as it is sent, in chunks of so many bytes.
func chunked(body []byte, size int) []byte {
	var out bytes.Buffer
	for part := range slices.Chunk(body, size) {
		fmt.Fprintf(&out, "%X\r\n%s\r\n", len(part), part)
	}
	return out.Bytes()
}

// Ensure that the numbers of all changes are found in a stream, wherever it is cut into
// chunks and into reads, and that its end is one.
func TestStreamFindsNumbers(t *testing.T) {
	numbers := []uint32{0, 7, 123456789, 999999999, 1}
	for name, tt := range map[string]struct {
		marker
		event func(value []byte) string
	}{
		"raftkv": {plainMarker, func(value []byte) string {
			return fmt.Sprintf("event: change\nid: 8\ndata: {\"revision\":8,\"events\":[{\"key\":\"k\",\"value\":%q}]}\n\nid: 9\n\n", value)
		}},
		"gateway": {base64Marker, func(value []byte) string {
			text, err := json.Marshal(map[string][]byte{"key": appendKey(nil, hotKey), "value": value})
			if err != nil {
				t.Fatal(err)
			}
			return string(text) + "\n"
		}},
	} {
		var body []byte
		for _, n := range numbers {
			value, numberAt := tt.value()
			setDigits(value[numberAt:][:numberDigits], uint64(n))
			body = append(body, tt.event(value)...)
		}
		for _, size := range []int{1, 2, 7, 16, 100, len(body)} {
			sent := append(chunked(body, size), "0\r\n\r\n"...)
			for _, read := range []int{1, 3, 50, len(sent)} {
				s := stream{marker: tt.marker}
				var got []uint32
				var err error
				for part := range slices.Chunk(sent, read) {
					if err != nil {
						break
					}
					got, err = s.feed(part, got)
				}
				if !slices.Equal(got, numbers) || !errors.Is(err, errStreamEnded) {
					t.Errorf("%s in chunks of %d, reads of %d: %v, %v", name, size, read, got, err)
				}
			}
		}
	}
	for _, bad := range []string{"x\r\n", "5\r\n~12x4", "c\r\n~12345678x..\r\n"} {
		s := stream{marker: plainMarker}
		if got, err := s.feed([]byte(bad), nil); err == nil && len(got) > 0 || err == nil && s.need == 0 {
			t.Errorf("%q: %v, and no error", bad, got)
		}
	}
}

// Ensure that nothing else in the gateway's events looks like the front of a value.
func TestNothingElseIsMarked(t *testing.T) {
	var all []byte
	for c := range 3 {
		all = append(all, "xyz"[:c]...)
		for b := byte(' '); b < 0x7f; b++ {
			if b >= '0' && b <= '9' || b >= 'a' && b <= 'z' {
				all = append(all, b)
			}
		}
		if text := base64.StdEncoding.EncodeToString(all); strings.Contains(text, "+") {
			t.Errorf("%s has a +", text)
		}
	}
	value, _ := base64Marker.value()
	if text := base64.StdEncoding.EncodeToString(value); strings.Count(text, "+") != 4 || !strings.HasPrefix(text, "++++MDAw") {
		t.Errorf("a value is %s", text)
	}
}

// hotServer is a server of one key that can be watched.
type hotServer struct {
	mu       sync.Mutex
	watchers []chan []byte
	skip     int // the change that no watcher is told of, counted from 1; 0 is none
	puts     int
}

func (s *hotServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		value, err := io.ReadAll(r.Body)
		if err != nil || len(value) != watchSize || r.URL.Path != "/"+string(appendKey(nil, hotKey)) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.puts++; s.puts != s.skip {
			for _, c := range s.watchers {
				c <- value
			}
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c := make(chan []byte, 1000)
	s.mu.Lock()
	s.watchers = append(s.watchers, c)
	s.mu.Unlock()
	flush := http.NewResponseController(w)
	_, _ = io.WriteString(w, "retry: 1500\n\n")
	_ = flush.Flush()
	_, _ = io.WriteString(w, "id: 1\n\n")
	for {
		_ = flush.Flush()
		select {
		case <-r.Context().Done():
			return
		case value := <-c:
			fmt.Fprintf(w, "event: change\nid: 2\ndata: {\"value\":%q}\n\n", value)
		}
	}
}

// ownSystem is one node in the process of the test.
type ownSystem struct{ system }

func (ownSystem) state(*node) (nodeState, error) { return nodeState{leads: true}, nil }

func (s *hotServer) lane(t *testing.T, watchers int) *fanned {
	if runtime.GOOS != "linux" {
		t.Skip("needs epoll")
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	n := &node{id: 1, client: strings.TrimPrefix(server.URL, "http://"), process: &process{cmd: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}}
	return &fanned{lane: watchLane{name: raftkvLeader, watch: watchRaftkv, write: hotRaftkv}, watchers: watchers, drain: time.Minute,
		on: &cluster{system: ownSystem{}, nodes: []*node{n}}}
}

// Ensure that a turn counts each change at each watcher, and those that count as fast as they
// were.
func TestFanOutTurn(t *testing.T) {
	l := (&hotServer{}).lane(t, 20)
	s := settings{warm: 50 * time.Millisecond, length: 300 * time.Millisecond}
	for range 2 {
		if err := l.turn(t.Context(), s, 200); err != nil || l.firstErr != nil {
			t.Fatal(err, l.firstErr)
		}
	}
	if !slices.Equal(l.seen, []float64{100, 100}) {
		t.Errorf("%v %% were seen", l.seen)
	}
	if l.changes[0] < 150 || l.changes[0] > 250 || l.events[0] < 0.5*20*l.changes[0] || l.p50[0] <= 0 || l.p50[0] > l.p99[0] {
		t.Errorf("%v changes and %v events a second, p50 %v, p99 %v", l.changes, l.events, l.p50, l.p99)
	}
	o := fanOutOutcome(fanOutRow{name: "x", rate: 200}, []*fanned{l})
	if len(o.Lines) != 1 || len(o.Lines[0].Remarks) != 0 || len(o.Targets) != 2 || !o.Targets[0].Met {
		t.Errorf("%+v", o)
	}
}

// Ensure that a change that a watcher does not see is missing in the share of those seen, and
// an error.
func TestFanOutTurnWithLoss(t *testing.T) {
	l := (&hotServer{skip: 3}).lane(t, 2)
	l.drain = 100 * time.Millisecond
	s := settings{length: 100 * time.Millisecond}
	if err := l.turn(t.Context(), s, 100); err != nil {
		t.Fatal(err)
	}
	if l.firstErr == nil || l.seen[0] >= 100 || l.seen[0] < 80 {
		t.Errorf("%v %% were seen: %v", l.seen, l.firstErr)
	}
	if o := fanOutOutcome(fanOutRow{name: "x", rate: 100}, []*fanned{l}); o.Targets[0].Met || o.Targets[1].Met || len(o.Lines[0].Remarks) != 1 {
		t.Errorf("%+v", o)
	}
}

// Ensure that watches that the server ends, or refuses, are errors.
func TestWatchesThatEnd(t *testing.T) {
	l := (&hotServer{}).lane(t, 1)
	a := newAudience(newChanges(1), 0, time.Minute)
	end := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.RawQuery, "refused") {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		_, _ = io.WriteString(w, "\nid: 5\n\n")
		_ = http.NewResponseController(w).Flush()
		<-end
	}))
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	w, err := l.lane.watch(t.Context(), addr, 3, func(int) uint64 { return hotKey }, a)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := w.lost(); err != nil {
		t.Error(err)
	}
	close(end)
	if err := waitFor(t.Context(), time.Minute, func() error {
		if w.lost() == nil {
			return errors.New("nothing is lost")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, _, err := beginStream(addr, "GET /refused?refused HTTP/1.1\r\nHost: x\r\n\r\n", "\nid: "); err == nil {
		t.Error("a watch that was refused began")
	}
}
