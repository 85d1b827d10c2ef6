//go:build unix

package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"raftkv/client"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// goClient returns a client of package client, whose endpoints are those of the nodes in this order; all if none is named.
func (c *procCluster) goClient(ids ...int) *client.Client {
	c.t.Helper()
	if len(ids) == 0 {
		ids = c.ids()
	}
	var urls []string
	for _, i := range ids {
		urls = append(urls, c.url(i))
	}
	return goClient(c.t, client.Config{Endpoints: urls})
}

func goClient(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	kv, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kv.Close)
	return kv
}

// lockHall is where those go in who hold a lock, one at a time, and what the lock protects.
type lockHall struct {
	t       testing.TB
	mu      sync.Mutex
	inside  map[uint64]context.Context // by the fencing token
	newest  uint64                     // the largest token that was seen
	turns   int
	counted int // acknowledged steps of the counter in the store
	unsure  int // steps of unknown outcome
}

// enter takes in that somebody holds the lock.
func (h *lockHall) enter(fence uint64, held context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for other, ctx := range h.inside {
		if ctx.Err() == nil && held.Err() == nil {
			h.t.Errorf("%d holds the lock, and so does %d", fence, other)
		}
	}
	if fence <= h.newest {
		h.t.Errorf("the token %d came behind %d", fence, h.newest)
	}
	h.newest, h.inside[fence] = fence, held
	h.turns++
}

func (h *lockHall) leave(fence uint64, counted, unsure int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.inside, fence)
	h.counted, h.unsure = h.counted+counted, h.unsure+unsure
}

// work raises a counter by reading and writing it, as only who is alone may, for as long as the lock is held and not longer
// than it takes. Each write is one that the store refuses if the lock is another's by then.
func (h *lockHall) work(kv *client.Client, m *client.Mutex, fence uint64, held context.Context, long time.Duration) (counted, unsure int) {
	for end := time.Now().Add(long); held.Err() == nil && time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(held, 2*time.Second)
		item, err := kv.Get(ctx, "hall/count")
		n := 0
		if err == nil {
			n, err = strconv.Atoi(string(item.Value))
		} else if errors.Is(err, client.NotFound) {
			err = nil
		}
		if err == nil {
			var res client.TxnResult
			res, err = kv.Txn().If(m.Guard(fence)).Then(client.PutOp("hall/count", []byte(strconv.Itoa(n+1)))).Commit(ctx)
			switch {
			case err == nil && res.Succeeded:
				counted++
			case err == nil && held.Err() == nil:
				h.t.Errorf("the store refuses %d, whose holder has not lost it", fence)
			case errors.Is(err, client.ErrOutcomeUnknown):
				unsure++
			}
		}
		cancel()
		if unsure > 0 {
			return counted, unsure // what it would read next may be from before its own write
		}
	}
	return counted, unsure
}

// Guarantee: of many programs that contend for a lock one holds it at a time, whatever becomes of the nodes: the leader stands
// still, dies, and nodes come back. The fencing tokens grow, and what a holder writes under its token is never another's.
func TestClientLockContended(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Parallel() // it mostly waits
	c := newProcCluster(t, 3)
	c.start()
	h := &lockHall{t: t, inside: map[uint64]context.Context{}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var holders sync.WaitGroup
	for n := range 4 {
		kv := c.goClient(n%3+1, (n+1)%3+1, (n+2)%3+1)
		m := kv.Mutex("hall", client.LockTTL(1500*time.Millisecond))
		holders.Go(func() {
			for ctx.Err() == nil {
				fence, held, err := m.Lock(ctx)
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("Lock: %v", err)
					}
					return
				}
				h.enter(fence, held)
				counted, unsure := h.work(kv, m, fence, held, 100*time.Millisecond)
				h.leave(fence, counted, unsure)
				give, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				_ = m.Unlock(give) // that it was lost is no wonder here
				cancel()
			}
		})
	}
	more := func(n int) {
		t.Helper()
		h.mu.Lock()
		from := h.turns
		h.mu.Unlock()
		procEventually(t, procReadyWithin, "the lock goes on from hand to hand", func() error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.turns < from+n {
				return fmt.Errorf("%d turns of %d", h.turns-from, n)
			}
			return nil
		})
	}
	more(5)
	leader := c.leader()
	c.pause(leader)
	more(3)
	c.resume(leader)
	more(3)
	leader = c.leader()
	c.kill(leader)
	more(3)
	c.start(leader)
	c.stop(leader%3 + 1)
	more(3)
	c.start(leader%3 + 1)
	more(5)
	stop()
	holders.Wait()
	item, err := c.goClient().Get(t.Context(), "hall/count")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(item.Value))
	if err != nil || n < h.counted || n > h.counted+h.unsure {
		t.Errorf("the counter is %s, %d steps were acknowledged and %d may have happened", item.Value, h.counted, h.unsure)
	}
	t.Logf("%d turns, %d steps, %d unsure", h.turns, h.counted, h.unsure)
}

// procHolderEnv has the endpoints of TestClientLockHolder's cluster.
const procHolderEnv = "TEST_LOCK_HOLDER"

// TestClientLockHolder is the program that TestClientLockOfAStoppedHolder starts: it holds a lock, and says so, a line at a time.
func TestClientLockHolder(t *testing.T) {
	endpoints := os.Getenv(procHolderEnv)
	if endpoints == "" {
		t.Skip("a program of another test")
	}
	kv := goClient(t, client.Config{Endpoints: strings.Split(endpoints, ",")})
	fence, held, err := kv.Mutex("stopped", client.LockTTL(time.Second)).Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for held.Err() == nil { // which looks at the clock
		fmt.Printf("holds %d\n", fence)
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("lost: %v\n", context.Cause(held))
}

// Guarantee: a program that was stopped while it held a lock finds that it has lost it, once it goes on, before it does anything
// more. Meanwhile another one got the lock, with a larger token.
func TestClientLockOfAStoppedHolder(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Parallel() // it mostly waits
	c := newProcCluster(t, 3)
	c.start()
	self, err := os.Executable()
	testkit.Must(t, err)
	cmd := exec.Command(self, "-test.run=^TestClientLockHolder$")
	cmd.Env = append(os.Environ(), procHolderEnv+"="+strings.Join([]string{c.url(1), c.url(2), c.url(3)}, ","))
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	out, err := cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, procStartCmd(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said := make(chan string, 100_000)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said <- lines.Text()
		}
		close(said)
	}()
	first := <-said
	fence, err := strconv.ParseUint(strings.TrimPrefix(first, "holds "), 10, 64)
	if err != nil {
		t.Fatalf("it said %q", first)
	}
	time.Sleep(3 * time.Second) // three times the time to live: it is kept alive
	m := c.goClient().Mutex("stopped")
	if _, _, err := m.TryLock(t.Context()); !errors.Is(err, client.ErrHeld) {
		t.Fatalf("TryLock while it is held: %v", err)
	}
	testkit.Must(t, cmd.Process.Signal(syscall.SIGSTOP))
	next, held, err := m.Lock(t.Context())
	if err != nil || next <= fence {
		t.Fatalf("the token %d behind %d: %v", next, fence, err)
	}
	for len(said) > 0 {
		<-said // from before it was stopped
	}
	testkit.Must(t, cmd.Process.Signal(syscall.SIGCONT))
	var after []string
	for line := range said {
		after = append(after, line)
	}
	// What it wrote last may have lain in the pipe, or be the end of the step that it was stopped in.
	if len(after) == 0 || len(slices.DeleteFunc(slices.Clone(after), func(s string) bool { return !strings.HasPrefix(s, "holds") })) > 1 || !slices.Contains(after, "lost: the lease is lost") {
		t.Errorf("once it went on it said %.500q", after)
	}
	if err := held.Err(); err != nil {
		t.Error(err)
	}
}

// Guarantee: a mirror, and a copy that is kept by a watch with State, are what the store holds, whoever of the nodes dies,
// stops and starts again, and also after the nodes have forgotten what was changed while the client was cut off.
func TestClientMirrorOverFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Parallel() // it mostly waits
	s := newWatchScene(t)
	kv := goClient(t, client.Config{Endpoints: s.nodes()})
	m, err := kv.Mirror(t.Context(), "w/")
	testkit.Must(t, err)
	defer m.Close()
	var mu sync.Mutex
	watched := map[string]watchItem{}
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for ch, err := range kv.Watch(ctx, client.WatchConfig{Prefixes: []string{"w/"}, State: true}) {
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			for _, e := range ch.Events {
				if e.Type == client.Put {
					watched[e.Key] = watchOf(e.Item)
				} else {
					delete(watched, e.Key)
				}
			}
			mu.Unlock()
		}
	})
	defer watching.Wait()
	defer stop()
	s.run(func(when string) {
		t.Helper()
		procEventually(t, watchWithin, when+": the copies are what the store holds", func() error {
			want, copied := s.c.held(s.other(), "w/"), map[string]watchItem{}
			for key, item := range m.All() {
				copied[key] = watchOf(item)
			}
			mu.Lock()
			defer mu.Unlock()
			return errors.Join(watchDiffers(copied, want), watchDiffers(watched, want))
		})
	})
	if err := m.Err(); err != nil {
		t.Error(err)
	}
}

// watchOf is an item as the tests of watches compare it.
func watchOf(i client.Item) watchItem {
	value := i.Value
	if value == nil {
		value = []byte{}
	}
	return watchItem{Key: i.Key, ValueBase64: value, CreateRevision: i.CreateRevision, ModRevision: i.ModRevision, Version: i.Version, Lease: i.Lease}
}

// Guarantee: a watch tells each change once, in order, while nodes die, stop and come back: none is missing of those that
// were acknowledged.
func TestClientWatchMissesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Parallel() // it mostly waits
	c := newProcCluster(t, 3)
	c.start()
	kv := c.goClient()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		mu    sync.Mutex
		wrote = map[uint64]string{} // acknowledged, by revision
		told  []client.Change
		load  sync.WaitGroup
	)
	begun := make(chan uint64, 1)
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		cfg := client.WatchConfig{Prefixes: []string{"load/"}, Synced: func(r uint64) { begun <- r }}
		for ch, err := range kv.Watch(ctx, cfg) {
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			told = append(told, ch)
			mu.Unlock()
			if bytes.Equal(ch.Events[0].Value, []byte("the last one")) {
				return
			}
		}
	}()
	<-begun
	writing, enough := context.WithCancel(ctx)
	for n := range 3 {
		w := c.goClient(n+1, (n+1)%3+1, (n+2)%3+1)
		load.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				key := fmt.Sprintf("load/%d/%d", n, i%50)
				revision, err := w.Put(ctx, key, []byte(strconv.Itoa(i)))
				if err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				mu.Lock()
				wrote[revision] = key
				mu.Unlock()
			}
		})
	}
	more := func() {
		t.Helper()
		mu.Lock()
		from := len(told)
		mu.Unlock()
		procEventually(t, procReadyWithin, "the watch goes on", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(told) < from+50 {
				return fmt.Errorf("%d changes", len(told)-from)
			}
			return nil
		})
	}
	more()
	leader := c.leader()
	c.kill(leader)
	more()
	c.start(leader)
	c.kill(c.follower())
	more()
	for _, i := range c.ids() {
		if !c.nodes[i].running() {
			c.start(i)
		}
	}
	c.stop(c.leader())
	more()
	enough()
	load.Wait()
	last, err := kv.Put(ctx, "load/last", []byte("the last one"))
	testkit.Must(t, err)
	wrote[last] = "load/last"
	select {
	case <-seen:
	case <-time.After(watchWithin):
		t.Fatal("the watch has not told the last change")
	}
	var before uint64
	for _, ch := range told {
		if ch.Revision <= before || len(ch.Events) != 1 || ch.Events[0].ModRevision != ch.Revision {
			t.Fatalf("behind %d: %+v", before, ch)
		}
		if key, ok := wrote[ch.Revision]; ok && key != ch.Events[0].Key {
			t.Errorf("revision %d is of %s, and %s was told", ch.Revision, key, ch.Events[0].Key)
		}
		delete(wrote, ch.Revision)
		before = ch.Revision
	}
	if len(wrote) > 0 {
		t.Errorf("%d changes were not told, the first of revision %d", len(wrote), slices.Min(slices.Collect(maps.Keys(wrote))))
	}
	t.Logf("%d changes", len(told))
}
