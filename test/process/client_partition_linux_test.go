package process

import (
	"context"
	"errors"
	"raftkv/client"
	"sync"
	"testing"
	"time"
)

// Guarantee: a program that holds a lock through a leader which is cut off from the others is told that it has lost it before
// somebody else gets it from them, and the store refuses what it writes under its token.
func TestClientLockPartition(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Parallel() // it mostly waits
	lab := newNetLab(t, 3)
	lab.start()
	leader, one, two := lab.leader(1)
	inside := lab.client.Transport.(procDescribed).plain
	kv := goClient(t, client.Config{Endpoints: []string{lab.url(leader)}, Transport: inside})
	other := goClient(t, client.Config{Endpoints: []string{lab.url(one), lab.url(two)}, Transport: inside})

	const ttl = 2 * time.Second
	m := kv.Mutex("cut", client.LockTTL(ttl))
	fence, held, err := m.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lost time.Time
	var watching sync.WaitGroup
	watching.Go(func() { <-held.Done(); lost = time.Now() })
	time.Sleep(ttl + ttl/2)
	if err := held.Err(); err != nil {
		t.Fatalf("before anything is cut: %v", err)
	}
	cut := time.Now()
	lab.sever(leader, one)
	lab.sever(leader, two)
	next, _, err := other.Mutex("cut").Lock(t.Context())
	got := time.Now()
	if err != nil || next <= fence {
		t.Fatalf("the token %d behind %d: %v", next, fence, err)
	}
	if held.Err() == nil || !errors.Is(context.Cause(held), client.ErrLeaseLost) {
		t.Fatalf("two hold it: %v", context.Cause(held))
	}
	watching.Wait()
	if lost.After(got) || lost.Sub(cut) > ttl+500*time.Millisecond {
		t.Errorf("it was told %v after the cut, with a time to live of %v, and the other one got it after %v", lost.Sub(cut), ttl, got.Sub(cut))
	}
	lab.heal()
	res, err := kv.Txn().If(m.Guard(fence)).Then(client.PutOp("cut/late", nil)).Commit(t.Context())
	if err != nil || res.Succeeded {
		t.Errorf("a write under the old token: %+v, %v", res, err)
	}
	if err := m.Unlock(t.Context()); !errors.Is(err, client.ErrLeaseLost) {
		t.Errorf("Unlock: %v", err)
	}
	t.Logf("told after %v, another one got it after %v", lost.Sub(cut), got.Sub(cut))
}
