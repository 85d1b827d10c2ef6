package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: who leads no more proclaims nothing, and is told so.
func TestElectionProclaimOfAFormerLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		e := f.client(1).Election("x")
		if _, _, err := e.Campaign(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		asked := 0
		f.mu.Lock()
		f.fault = func(_ int, r *http.Request) fakeFault {
			if r.URL.Path != "/v1/txn" {
				return fakeFault{}
			}
			asked++
			return fakeFault{answer: &fakeAnswer{status: 200, body: `{"succeeded":false,"revision":1,"results":[]}`}}
		}
		f.mu.Unlock()
		if err := e.Proclaim(t.Context(), nil); !errors.Is(err, ErrLeaseLost) || asked != 1 {
			t.Fatal(err, asked)
		}
		lease, _ := e.h.current()
		lease.lost()
		if err := e.Proclaim(t.Context(), nil); !errors.Is(err, ErrLeaseLost) || asked != 1 {
			t.Fatal(err, asked)
		}
	})
}

// Guarantee: one of many leads; the others see who, and what that one proclaims; they follow
// when it resigns or is lost.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		a, b := f.client(2).Election("x"), f.client(2).Election("x")
		if _, err := a.Leader(t.Context()); !errors.Is(err, NotFound) {
			t.Fatal(err)
		}
		var seen []string
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		observed := make(chan struct{})
		go func() {
			defer close(observed)
			for item, err := range b.Observe(ctx) {
				if err != nil {
					return
				}
				seen = append(seen, fmt.Sprintf("%s@%d", item.Value, item.CreateRevision))
			}
		}()
		synctest.Wait()
		fa, leading, err := a.Campaign(t.Context(), []byte("a"))
		if err != nil || leading.Err() != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if item, err := b.Leader(t.Context()); err != nil || string(item.Value) != "a" || item.CreateRevision != fa {
			t.Fatal(item, err)
		}
		f.say(0, `{"event":"reset","id":0,"data":{"code":"history_gone"}}`)
		synctest.Wait()
		f.cut(0) // the observer comes back, and nothing is said twice
		time.Sleep(10 * time.Second)
		if err := b.Proclaim(t.Context(), nil); !errors.Is(err, ErrNotHeld) {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			if err := a.Resign(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		fb, _, err := b.Campaign(t.Context(), []byte("b"))
		if err != nil || fb <= fa || leading.Err() == nil {
			t.Fatal(fb, err)
		}
		synctest.Wait()
		cancel()
		<-observed
		if got, want := fmt.Sprint(seen), fmt.Sprintf("[@0 a@%d @0 b@%d]", fa, fb); got != want {
			t.Fatalf("observed %s, want %s", got, want)
		}
	})
}
