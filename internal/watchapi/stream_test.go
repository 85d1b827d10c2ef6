package watchapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/api"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// store is a state that does not change.
type store struct{ *state.State }

func (s store) Look(look func(*state.State)) error { look(s.State); return nil }
func (s store) CopyWhole() (*state.State, error)   { return s.Copy(), nil }

// tornWriter takes no more, once, behind the first piece of a large write, and then again.
type tornWriter struct {
	header http.Header
	got    bytes.Buffer
	large  bool // the piece before was of a large write
	torn   bool
}

func (w *tornWriter) Header() http.Header              { return w.header }
func (w *tornWriter) WriteHeader(int)                  {}
func (w *tornWriter) FlushError() error                { return nil }
func (w *tornWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *tornWriter) SetWriteDeadline(time.Time) error { return nil }
func (w *tornWriter) Write(b []byte) (int, error) {
	if w.large && !w.torn {
		w.torn = true
		return 0, errors.New("not now")
	}
	w.large = len(b) == watch.PartBytes
	return w.got.Write(b)
}

// watchesOf serves watches of a state that these commands made, with no history
// of them.
func watchesOf(t *testing.T, commands ...[]byte) *Watches {
	st := state.New(testkit.Peers())
	statetest.Apply(t, st, commands...)
	st.Changes.Keep(1<<20, st.Revision)
	may := func() error { return nil }
	return &Watches{
		Log: zap.NewNop(), Look: store{st}.Look, May: may, Lists: api.NewLists(zap.NewNop(), store{st}, &api.Freshness{Fault: may}),
		Hub:     watch.New(watch.Config{Look: store{st}.Look, Revision: wait.NewLevel(st.Revision), May: may, Confirm: func(context.Context) error { return nil }}),
		Explain: func(err error) (error, bool) { return err, false },
	}
}

// Guarantee: behind half an event nothing is said any more: the client would read it as the
// rest of that event.
func TestNothingBehindHalfAnEvent(t *testing.T) {
	commands := [][]byte{statetest.Put("large", strings.Repeat("v", 3*watch.PartBytes))}
	for i := range heldItems {
		commands = append(commands, statetest.Put(fmt.Sprint("k", i), "v"))
	}
	s := watchesOf(t, commands...)
	w := &tornWriter{header: http.Header{}}
	testkit.Must(t, s.Serve(w, httptest.NewRequest(http.MethodGet, "/v1/watch?state=true&after_revision=1", nil)))
	if got := w.got.String(); !w.torn || strings.Contains(got, "unavailable") || !strings.Contains(got, "event: state") {
		t.Errorf("torn: %t; it ends with %.100q", w.torn, got[max(0, len(got)-100):])
	}
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Guarantee: a client that does not read keeps no node from stopping: its stream ends soon
// after the node began to, whoever writes it.
func TestStopDoesNotWaitForAReader(t *testing.T) {
	for name, commands := range map[string][][]byte{
		"a state":       {statetest.Put("a", "v"), statetest.Put("k", strings.Repeat("v", watch.PartBytes))},
		"a large state": {statetest.Put("a", "v"), statetest.Put("k", strings.Repeat("v", 2*heldBytes))},
	} {
		testkit.InBubble(t, func(t *testing.T) {
			s := watchesOf(t, commands...)
			ended := make(chan time.Time, 1)
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				testkit.Must(t, s.Serve(w, r))
				ended <- time.Now()
			})
			server, conns := &http.Server{Handler: handler, ConnContext: web.ConnContext}, make(pipes, 1)
			served := make(chan error, 1)
			go func() { served <- server.Serve(web.HangUpListener{Listener: conns}) }()
			client, conn := net.Pipe()
			conns <- conn
			_, err := io.WriteString(client, "GET /v1/watch?state=true&after_revision=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
			testkit.Must(t, err)
			_, err = io.ReadFull(client, make([]byte, 1000)) // and nothing more
			testkit.Must(t, err)
			time.Sleep(writeLimitStep + time.Second)
			stopping := time.Now()
			s.Hub.End()
			s.Lists.End()
			if took := (<-ended).Sub(stopping); took > 2*farewell {
				t.Errorf("%s: the stream ends %v after the node began to stop", name, took)
			}
			close(conns)
			testkit.Must(t, client.Close())
			if err := <-served; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
	}
}

// heard is what a client has got, and when the last of it came.
type heard struct {
	tornWriter
	last time.Time
}

func (h *heard) Write(b []byte) (int, error) {
	h.last = time.Now()
	return h.got.Write(b)
}

// Guarantee: many who are told of the same rest between two writes, but who is behind does not:
// with large values it could not keep up.
func TestWhoIsBehindDoesNotRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const changes, size, others = 40, 100 << 10, 1000
		var mu sync.Mutex
		st := state.New(testkit.Peers())
		st.Changes.Keep(1<<30, 0)
		look := func(look func(*state.State)) error {
			mu.Lock()
			defer mu.Unlock()
			look(st)
			return nil
		}
		may := func() error { return nil }
		revision := wait.NewLevel(0)
		hub := watch.New(watch.Config{Look: look, Revision: revision, May: may, Confirm: func(context.Context) error { return nil }})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- hub.Run(ctx) }()
		for range others {
			_, err := hub.Watch(watch.NewFilter([]string{"k"}, nil), 0)
			testkit.Must(t, err)
		}
		s := &Watches{Log: zap.NewNop(), Look: look, May: may, Hub: hub, Explain: func(err error) (error, bool) { return err, false }}
		h := &heard{tornWriter: tornWriter{header: http.Header{}}}
		life, hangUp := context.WithCancel(t.Context())
		go func() {
			ended <- s.Serve(h, httptest.NewRequest(http.MethodGet, "/v1/watch?key=k&after_revision=0", nil).WithContext(life))
		}()
		synctest.Wait()
		began := time.Now()
		mu.Lock()
		for range changes {
			statetest.Apply(t, st, statetest.Put("k", strings.Repeat("v", size)))
		}
		mu.Unlock()
		revision.Advance(changes)
		time.Sleep(5 * time.Second) // less than until a quiet stream says something
		synctest.Wait()
		took := h.last.Sub(began)
		hangUp()
		end()
		testkit.Must(t, errors.Join(<-ended, <-ended))
		if n := strings.Count(h.got.String(), "event: change"); n != changes {
			t.Errorf("%d changes of %d were told", n, changes)
		}
		// Each takes a write, since two are more than is taken at once.
		if took > hub.Spacing()*changes/4 || hub.Spacing() < time.Millisecond {
			t.Errorf("they were told in %v, with %v between two writes of who is not behind", took, hub.Spacing())
		}
	})
}

// Guarantee: a client whose large state cannot be caught up with leaves its place to others, and
// is told so; one with a small state is told that anew.
func TestStateThatTurnsOver(t *testing.T) {
	for _, tt := range []struct {
		keys int
		once bool
		want string
	}{{heldItems + 1, true, "overloaded"}, {1, false, "stopping"}} {
		st := state.New(testkit.Peers())
		for i := range tt.keys {
			statetest.Apply(t, st, statetest.Put(fmt.Sprint("k", i), "v"))
		}
		looks := 0
		var over error
		look := func(look func(*state.State)) error {
			// What is changed is gone before anybody has taken it.
			statetest.Apply(t, st, statetest.Put("k0", "v"))
			st.Changes.Keep(1<<20, st.Revision)
			look(st)
			if looks++; looks > 20 {
				over = problem.ErrStopping
			}
			return nil
		}
		may := func() error { return over }
		lists := api.NewLists(zap.NewNop(), turning{store{st}, look}, &api.Freshness{Fault: may})
		s := &Watches{
			Log: zap.NewNop(), Look: look, May: may, Lists: lists,
			Hub:     watch.New(watch.Config{Look: look, Revision: wait.NewLevel(st.Revision), May: func() error { return nil }, Confirm: func(context.Context) error { return nil }}),
			Explain: func(err error) (error, bool) { return err, false },
		}
		w := &heard{tornWriter: tornWriter{header: http.Header{}}}
		testkit.Must(t, s.Serve(w, httptest.NewRequest(http.MethodGet, "/v1/watch?state=true&after_revision=1", nil)))
		got := w.got.String()
		n := strings.Count(got, "event: synced")
		if !strings.Contains(got, `"code":"`+tt.want+`"`) || tt.once != (n == 1) || n == 0 {
			t.Errorf("%d keys: %d times synced; it ends with %.200q", tt.keys, n, got[max(0, len(got)-200):])
		}
	}
}

// turning is a store that is changed with each look.
type turning struct {
	store
	look func(func(*state.State)) error
}

func (s turning) Look(look func(*state.State)) error { return s.look(look) }
