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
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strings"
	"testing"
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
