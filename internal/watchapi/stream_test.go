package watchapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/api"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"raftkv/internal/watch"
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

// Guarantee: behind half an event nothing is said any more: the client would read it as the
// rest of that event.
func TestNothingBehindHalfAnEvent(t *testing.T) {
	st := state.New(testkit.Peers())
	commands := [][]byte{statetest.Put("large", strings.Repeat("v", 3*watch.PartBytes))}
	for i := range heldItems {
		commands = append(commands, statetest.Put(fmt.Sprint("k", i), "v"))
	}
	statetest.Apply(t, st, commands...)
	st.Changes.Keep(1<<20, st.Revision)
	may := func() error { return nil }
	s := &Watches{
		Log: zap.NewNop(), Look: store{st}.Look, May: may, Lists: api.NewLists(zap.NewNop(), store{st}, &api.Freshness{Fault: may}),
		Hub:     watch.New(watch.Config{Look: store{st}.Look, Revision: wait.NewLevel(st.Revision), May: may, Confirm: func(context.Context) error { return nil }}),
		Explain: func(err error) (error, bool) { return err, false },
	}
	w := &tornWriter{header: http.Header{}}
	testkit.Must(t, s.Serve(w, httptest.NewRequest(http.MethodGet, "/v1/watch?state=true&after_revision=1", nil)))
	if got := w.got.String(); !w.torn || strings.Contains(got, "unavailable") || !strings.Contains(got, "event: state") {
		t.Errorf("torn: %t; it ends with %.100q", w.torn, got[max(0, len(got)-100):])
	}
}
