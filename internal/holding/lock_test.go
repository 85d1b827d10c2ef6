package holding

import (
	"context"
	"errors"
	"io"
	"net/http"
	"raftkv/client"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestAcquireTellsSilence has a line say, once, that nobody answers who could give the lock;
// but none while somebody else holds it, or if it was got before.
func TestAcquireTellsSilence(t *testing.T) {
	refused := func(*http.Request) (*http.Response, error) { return nil, errors.New("nobody listens") }
	answers := func(r *http.Request) (*http.Response, error) {
		body := `{"key":"lock/x","value":"somebody","create_revision":1,"mod_revision":1,"version":1}`
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Raftkv-Cluster-Id": {"ab"}, "Raftkv-Revision": {"1"}},
			Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r}, nil
	}
	for _, test := range []struct {
		name    string
		answer  roundTrip
		waiting time.Duration
		lines   int
	}{
		{"nobody answers", refused, time.Hour, 1},
		{"got before the line", refused, tellAfter - 1, 0},
		{"got while it is looked", refused, tellAfter + 1, 0},
		{"held by somebody", answers, time.Hour, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := client.New(client.Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: test.answer})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				k := candidate{key: "lock/x", wait: func(ctx context.Context) (uint64, context.Context, error) {
					time.Sleep(test.waiting)
					return 7, ctx, nil
				}}
				var said strings.Builder
				h, err := newFlags().acquire(t.Context(), c, k, &said, "raftkv lock")
				if err != nil || h.fence != 7 {
					t.Errorf("got %+v, %v", h, err)
				}
				if n := strings.Count(said.String(), "\n"); n != test.lines {
					t.Errorf("%d lines, want %d: %s", n, test.lines, &said)
				}
				if test.lines > 0 && !(strings.HasPrefix(said.String(), "raftkv lock: still waiting: ") && strings.Contains(said.String(), "nobody listens")) {
					t.Errorf("said %q", &said)
				}
			})
		})
	}
}
