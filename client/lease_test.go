package client

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: a lease is kept alive for as long as it is not closed, through failures of
// endpoints, and is revoked by Close.
func TestLeaseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.fault = func(node int, r *http.Request) fakeFault { return fakeFault{refused: node == 1, hangs: node == 2} }
		c := f.client(3)
		type name struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), name{}, "b"))
		l, err := c.Lease(ctx, 3*time.Second)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := l.Context().Err(); err != nil {
			t.Fatalf("after an hour: %v", err)
		}
		if l.Context().Value(name{}) != "b" {
			t.Fatal("the lease's context has not the values of the caller's")
		}
		if n := f.sent("PUT /v1/leases/1"); n < 3600 || n > 4500 {
			t.Fatalf("it was kept alive %d times in an hour, three times each three seconds is 3600", n)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if cause := context.Cause(l.Context()); !errors.Is(cause, context.Canceled) || errors.Is(cause, ErrLeaseLost) {
			t.Fatalf("after Close: %v", cause)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatalf("a second Close: %v", err)
		}
		if n := f.sent("DELETE /v1/leases/1"); n != 1 {
			t.Fatalf("%d revocations", n)
		}
	})
}

// Guarantee: a lease is lost, for its holder, no later than its time after the last keepalive
// that succeeded was sent, and before the cluster takes its keys.
func TestLeaseIsLostInTime(t *testing.T) {
	for name, fault := range map[string]fakeFault{
		"refused": {refused: true}, "hangs": {hangs: true}, "lost": {lost: true},
		"another lease": {answer: &fakeAnswer{status: 200, body: `{"id":7,"ttl_seconds":10,"expires_in_seconds":10}`}},
		"a page":        {answer: &fakeAnswer{status: 200, body: `<html>`}},
		"401":           {answer: &fakeAnswer{status: 401, header: http.Header{"Content-Type": {"application/problem+json"}}, body: `{"code":"unauthenticated"}`}},
		"503":           {answer: &fakeAnswer{status: 503, header: http.Header{"Content-Type": {"application/problem+json"}}, body: `{"code":"no_leader","retry":true}`}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t)
				var cut bool
				var last time.Time // when the last request was sent that was answered
				f.fault = func(_ int, r *http.Request) fakeFault {
					if cut {
						return fault
					}
					last = time.Now()
					return fakeFault{slow: 200 * time.Millisecond}
				}
				c := f.client(3)
				l, err := c.Lease(t.Context(), 10*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(27 * time.Second)
				f.mu.Lock()
				cut = true
				f.mu.Unlock()
				until := l.Until()
				<-l.Context().Done()
				if !time.Now().Equal(until) {
					t.Errorf("it was to be held until %v, and is lost at %v", until, time.Now())
				}
				if took := time.Since(last); took < 9*time.Second || took > 10*time.Second {
					t.Fatalf("lost %v after the last keepalive was sent, want just under 10s", took)
				}
				if err := context.Cause(l.Context()); !errors.Is(err, ErrLeaseLost) {
					t.Fatal(err)
				}
				f.mu.Lock()
				cut = false
				f.mu.Unlock()
				time.Sleep(time.Minute)
				if l.Context().Err() == nil {
					t.Fatal("a lease that was lost came back")
				}
			})
		})
	}
}

// Guarantee: an answer to a keepalive that comes late counts from when that was sent.
func TestLeaseCountsFromSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		begun := time.Now()
		grant := true
		f.fault = func(_ int, r *http.Request) fakeFault {
			if grant {
				grant = false
				return fakeFault{slow: time.Second}
			}
			return fakeFault{hangs: true}
		}
		l, err := f.client(1).Lease(t.Context(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		<-l.Context().Done()
		if took := time.Since(begun); took > 10*time.Second {
			t.Fatalf("lost %v after it was asked for", took)
		}
	})
}

// Guarantee: a lease whose making took longer than its time is not handed out before it was seen
// alive, and made anew if it is not.
func TestLeaseThatTookLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		lost := 0
		f.fault = func(_ int, r *http.Request) fakeFault {
			if r.Method == http.MethodPost && lost < 3 {
				lost++
				return fakeFault{lost: true, late: 1500 * time.Millisecond}
			}
			return fakeFault{}
		}
		c := f.client(1)
		l, err := c.Lease(t.Context(), 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if l.ID() != 2 {
			t.Fatalf("lease %d, the first one was over when its answer came", l.ID())
		}
		time.Sleep(time.Minute)
		if err := l.Context().Err(); err != nil {
			t.Fatal(err)
		}
	})
}

// Guarantee: making a lease ends with its context, also while it is kept alive for the first time.
func TestLeaseEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		begun := time.Now()
		f.fault = func(_ int, r *http.Request) fakeFault {
			early := time.Since(begun) < 30*time.Second
			return fakeFault{lost: early && r.Method == http.MethodPost, hangs: r.Method == http.MethodPut}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 35*time.Second)
		defer cancel()
		c := f.client(1)
		c.timeout = time.Minute
		_, err := c.Lease(ctx, time.Minute)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 36*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		wantOutcome(t, err, true)
	})
}

// Guarantee: a lease that the cluster does not know any more is lost at once.
func TestLeaseRevokedByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		l, err := f.client(2).Lease(t.Context(), 30*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		f.endLease(l.ID(), Delete)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !errors.Is(context.Cause(l.Context()), ErrLeaseLost) {
			t.Fatal("the lease was revoked, and is not lost after a third of its time")
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatalf("Close of a lease that has gone: %v", err)
		}
	})
}

// Guarantee: a process that was stopped, or whose machine slept, finds that its lease is lost when
// it looks, before any timer has run, and an answer that has waited for it meanwhile changes
// nothing.
func TestLeaseOfAStoppedProcess(t *testing.T) {
	for name, passed := range map[string]func(m *moment){
		"stopped": func(m *moment) { m.at = m.at.Add(-11 * time.Second) },
		"slept":   func(m *moment) { m.wall = m.wall.Add(-11 * time.Second) },
	} {
		for _, answered := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l, err := newFakeCluster(t).client(1).Lease(t.Context(), 10*time.Second)
					if err != nil {
						t.Fatal(err)
					}
					if err := l.Context().Err(); err != nil {
						t.Fatal(err)
					}
					l.mu.Lock()
					l.look.Stop() // no timer runs, and the clock goes on
					passed(&l.sent)
					l.mu.Unlock()
					if answered && l.kept(thisMoment()) {
						t.Fatal("a keepalive that was answered after the time was over counts")
					}
					if err := l.Context().Err(); err == nil || !errors.Is(context.Cause(l.Context()), ErrLeaseLost) {
						t.Fatalf("%v", err)
					}
				})
			})
		}
	}
}

// Guarantee: that a machine slept is noticed within a second of its waking.
func TestLeaseNoticesSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := newFakeCluster(t).client(1).Lease(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it waits until it is to be kept alive
		l.mu.Lock()
		l.sent.wall = l.sent.wall.Add(-time.Hour)
		l.mu.Unlock()
		woke := time.Now()
		<-l.Context().Done()
		if late := time.Since(woke); late > lookEvery {
			t.Fatalf("noticed after %v", late)
		}
	})
}

// Guarantee: an endpoint that did not keep a lease alive is asked last by others, too.
func TestLeaseTellsOfEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		c := f.client(2)
		if _, err := c.Lease(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.fault = func(node int, _ *http.Request) fakeFault { return fakeFault{refused: node == 1} }
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if c.endpoints.all[0].until.IsZero() {
			t.Fatal("the endpoint does not rest")
		}
	})
}

// Guarantee: the end of the client is the end of its leases' contexts.
func TestLeaseOfAClosedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		c := f.client(1)
		l, err := c.Lease(t.Context(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		<-l.Context().Done()
		if cause := context.Cause(l.Context()); !errors.Is(cause, ErrClosed) {
			t.Fatal(cause)
		}
	})
}
