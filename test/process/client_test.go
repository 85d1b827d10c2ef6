//go:build unix

package process

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raftkv/client"
	"raftkv/internal/testkit"
)

// Guarantee: to programs that use package client the loss of a node is latency. While the leader is
// killed, hangs, or is stopped no call fails, no write is lost and none happens twice: what is
// added is there once, what is appended once, and each update counts.
func TestProcClientFaults(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var (
		workers                  sync.WaitGroup
		added, appended, updated atomic.Int64
		slowest                  atomic.Int64
	)
	work := func(what string, count *atomic.Int64, call func(cl *client.Client) error) {
		cl := c.goClient()
		workers.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				if err := call(cl); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				count.Add(1)
				for took := int64(time.Since(begin)); ; {
					if was := slowest.Load(); took <= was || slowest.CompareAndSwap(was, took) {
						break
					}
				}
			}
		})
	}
	for range 4 {
		work("add", &added, func(cl *client.Client) error { _, err := cl.Add(t.Context(), "sum", 1); return err })
		work("append", &appended, func(cl *client.Client) error {
			_, _, err := cl.Append(t.Context(), "queue/", []byte("job"))
			return err
		})
	}
	work("update", &updated, func(cl *client.Client) error {
		_, err := cl.Update(t.Context(), "text", func(old []byte, _ bool) ([]byte, error) { return append(old, '.'), nil })
		return err
	})
	for _, fault := range []func(i int){
		func(i int) { c.kill(i); c.start(i) },
		func(i int) { c.pause(i); time.Sleep(3 * time.Second); c.resume(i) },
		func(i int) { c.stop(i); c.start(i) },
	} {
		before := added.Load() + appended.Load()
		fault(c.leader())
		testkit.Eventually(t, "calls go on", func() bool { return added.Load()+appended.Load() > before+50 })
	}
	end()
	workers.Wait()
	cl := c.goClient()
	sum, err := cl.Add(t.Context(), "sum", 0)
	testkit.Must(t, err)
	n, err := cl.Count(t.Context(), "queue/")
	testkit.Must(t, err)
	text, _, err := cl.Value(t.Context(), "text")
	testkit.Must(t, err)
	if sum != added.Load() || int64(n) != appended.Load() || int64(len(text)) != updated.Load() {
		t.Errorf("%d added, %d counted; %d appended, %d there; %d updates, %d counted", added.Load(), sum, appended.Load(), n, updated.Load(), len(text))
	}
	t.Logf("%d writes, the slowest took %v", sum+int64(n)+int64(len(text)), time.Duration(slowest.Load()))
}

// Guarantee: package client says what became of a write without a majority, adds and removes
// members, and hands leadership over; a node of another cluster is told.
func TestProcClientCluster(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3, "--request-timeout", "1s")
	c.start()
	cl, ctx := c.goClient(), t.Context()
	to := uint64(c.follower())
	if leader, err := cl.MoveLeader(ctx, to); leader != to || err != nil {
		t.Fatal(leader, err)
	}
	member, err := cl.AddMember(ctx, client.NewMember{PeerURL: procURL(procFreePort(t)), Role: "learner"})
	testkit.Must(t, err)
	if _, err = cl.AddMember(ctx, client.NewMember{PeerURL: member.PeerURL}); !errors.Is(err, client.MemberExists) || !errors.Is(err, client.ErrNotApplied) {
		t.Error(err)
	}
	moved := procURL(procFreePort(t))
	if m, err := cl.ChangeMember(ctx, member.ID, client.MemberChange{PeerURL: moved}); err != nil || m.PeerURL != moved || m.Role != "learner" {
		t.Error(m, err)
	}
	for range 2 { // the second time it is gone already
		testkit.Must(t, cl.RemoveMember(ctx, member.ID, false))
	}
	if err := cl.RemoveMember(ctx, 99, false); !errors.Is(err, client.NotFound) {
		t.Error(err)
	}
	all, err := cl.Members(ctx)
	testkit.Must(t, err)
	if len(all.Members) != 3 || !slices.Equal(all.Removed, []uint64{member.ID}) {
		t.Error(all)
	}

	other := newProcCluster(t, 1)
	other.start()
	strange, err := client.New(client.Config{Endpoints: []string{c.url(1), other.url(1)}})
	testkit.Must(t, err)
	defer strange.Close()
	revision, err := strange.Put(ctx, "k", nil)
	testkit.Must(t, err)

	left := c.follower()
	last, err := client.New(client.Config{Endpoints: []string{c.url(left)}})
	testkit.Must(t, err)
	defer last.Close()
	_, err = last.Get(ctx, "k", client.MinRevision(revision)) // so that it has the key, too
	testkit.Must(t, err)
	for _, id := range c.ids() {
		if id != left {
			c.pause(id)
		}
	}
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = cl.Put(short, "k", nil)
	if !errors.Is(err, client.ErrOutcomeUnknown) && !errors.Is(err, client.NoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if item, err := cl.Get(ctx, "k", client.Stale()); err != nil {
		t.Error("what the node has is read without a majority:", item, err)
	}
	for id := range c.nodes {
		if id != left {
			c.resume(id)
		}
	}
	c.waitReady(c.ids()...)
	c.kill(1)
	if _, err := strange.Put(ctx, "k", nil); !errors.Is(err, client.ErrOtherCluster) {
		t.Error(err)
	}
	if err := cl.Ready(ctx, c.url(1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}
