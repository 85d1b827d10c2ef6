package web

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// slowWriter takes so long for each piece.
type slowWriter time.Duration

func (s slowWriter) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(s))
	return len(b), nil
}

// Guarantee: a list that is streamed rests three times as long as it works, but no longer
// than it must, and not for its reader's sake.
func TestStreamRests(t *testing.T) {
	for name, tt := range map[string]struct {
		made, written time.Duration // of each of 100 pieces
		rest          time.Duration // for each
	}{
		"as it should be":     {100 * time.Microsecond, 100 * time.Microsecond, 600 * time.Microsecond},
		"a slow reader":       {100 * time.Microsecond, time.Second, 600 * time.Microsecond},
		"a processor is dear": {50 * time.Millisecond, time.Millisecond, restLimit},
		"nothing to do":       {0, time.Second, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := NewRestingWriter(t.Context(), slowWriter(tt.written))
			began := time.Now()
			for range 100 {
				time.Sleep(tt.made)
				if n, err := w.Write(make([]byte, 10)); n != 10 || err != nil {
					t.Fatal(n, err)
				}
			}
			if got, want := time.Since(began), 100*(tt.made+tt.written+tt.rest); got != want {
				t.Errorf("%s: 100 pieces took %v, want %v", name, got, want)
			}
		})
	}
}

// Guarantee: the end of a node ends a rest.
func TestStreamRestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		w := NewRestingWriter(ctx, slowWriter(0))
		time.Sleep(time.Second)
		began := time.Now()
		time.AfterFunc(restLimit/2, end)
		if _, err := w.Write(nil); err != nil || time.Since(began) != restLimit/2 {
			t.Errorf("it rested %v, %v", time.Since(began), err)
		}
	})
}
