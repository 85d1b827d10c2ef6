package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
)

// toy is a node that replicates nothing: all toys of a test share their values. What
// is wrong with it the test sets.
type toy struct {
	id    uint64
	all   *toys
	ended chan struct{}

	unsound      error
	odd          bool // its state is not that of the others
	refused      map[refusal.Kind]uint64
	forgets      bool // the values that it acknowledges
	unreachables int
	got          []*raftpb.Message
	files        []string
}

type toys struct {
	mu     sync.Mutex
	values map[string]string
	index  uint64
}

func (n *toy) ID() uint64                    { return n.id }
func (n *toy) PeerURL() string               { return URL(n.id) }
func (n *toy) String() string                { return "a toy" }
func (n *toy) Start() error                  { return nil }
func (n *toy) Wait() error                   { <-n.ended; return nil }
func (n *toy) End()                          { close(n.ended) }
func (n *toy) HandOver()                     {}
func (n *toy) Close() error                  { return nil }
func (n *toy) CloseInOrder(error) error      { return nil }
func (n *toy) Refuse(error)                  {}
func (n *toy) Claim(uint64, string)          {}
func (n *toy) MeetAgain()                    {}
func (n *toy) Leader() uint64                { return 1 }
func (n *toy) IsRemoved(uint64) bool         { return false }
func (n *toy) Fault() error                  { return n.unsound }
func (n *toy) Refused(k refusal.Kind) uint64 { return n.refused[k] }

func (n *toy) Unreachable(uint64) {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	n.unreachables++
}

func (n *toy) Receive(_ context.Context, m *raftpb.Message) error {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	n.got = append(n.got, m)
	return nil
}

func (n *toy) ReceiveSnapshot(_ context.Context, file io.Reader, _ *raftpb.Message) error {
	b, err := io.ReadAll(file)
	if err == nil {
		n.files = append(n.files, string(b))
	}
	return err
}

func (n *toy) Do(_ context.Context, in history.Input) (res state.Result, it *state.Item) {
	time.Sleep(time.Millisecond)
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	switch old, ok := n.all.values[in.Key]; {
	case in.Kind == history.Get && !ok:
		return res, nil
	case in.Kind == history.Get:
		return res, &state.Item{Value: old}
	case in.Kind == history.Delete && !ok:
		res.Err = problem.ErrNotFound
		return res, nil
	case in.Kind == history.Create && ok:
		res.Err = problem.ErrPrecondition
		return res, nil
	}
	n.all.index++
	if in.Kind == history.Delete {
		delete(n.all.values, in.Key)
	} else if !n.forgets {
		n.all.values[in.Key] = in.Value
	}
	return res, nil
}

func (n *toy) Hash() (string, uint64) {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	return fmt.Sprint(n.all.values, n.odd), n.all.index
}

// recorder is a test whose failures are expected.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Helper() {}

func (r *recorder) Error(args ...any) { r.said = append(r.said, fmt.Sprint(args...)) }

func (r *recorder) Errorf(format string, args ...any) { r.Error(fmt.Sprintf(format, args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// withToys runs a test on three toys, and returns what was wrong with it.
func withToys(t *testing.T, test func(c *Cluster[*toy])) []string {
	t.Helper()
	r := &recorder{TB: t}
	testkit.InBubble(t, func(t *testing.T) {
		all := &toys{values: make(map[string]string)}
		c := New[*toy](r, t.TempDir(), 1)
		c.Open = func(p *Place[*toy]) (*toy, error) {
			return &toy{id: p.ID, all: all, ended: make(chan struct{}), refused: make(map[refusal.Kind]uint64)}, nil
		}
		done := make(chan struct{})
		go func() { // Fatalf ends it
			defer close(done)
			c.Found(3)
			test(c)
			c.Check()
		}()
		<-done
		c.Close()
	})
	return r.said
}

// Guarantee: each promise that the global check judges fails it when it is broken.
// Without this a simulation that sees nothing passes.
func TestCheckFindsWhatIsBroken(t *testing.T) {
	for want, breaks := range map[string]func(c *Cluster[*toy]){
		"": func(c *Cluster[*toy]) {},
		"a minute has gone by without: convergence": func(c *Cluster[*toy]) { c.Nodes[2].Life.odd = true },
		"node 3: out":                           func(c *Cluster[*toy]) { c.Nodes[3].Life.unsound = errors.New("out") },
		"1 messages between nodes were refused": func(c *Cluster[*toy]) { c.Nodes[2].Life.refused[refusal.RefusedTerm] = 1 },
		"of a healthy cluster":                  func(c *Cluster[*toy]) { c.Nodes[2].Life.refused[refusal.RefusedContradiction] = 1 },
		"is not linearizable": func(c *Cluster[*toy]) {
			c.Nodes[2].Life.forgets = true
			c.Put(2, "k", c.Value())
		},
		"two nodes led in the same term": func(c *Cluster[*toy]) {
			for id := range uint64(2) {
				tr := c.Net.Transport(c.Nodes[id+1].Life)
				tr.AddPeer(3, nil)
				tr.Send([]*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(id + 1), To: new(uint64(3)), Term: new(uint64(7))}})
			}
		},
	} {
		said := withToys(t, func(c *Cluster[*toy]) {
			var clients sync.WaitGroup
			for i := range 3 {
				clients.Go(func() { c.RandomClient(i) })
			}
			load := c.StartLoad(2)
			clients.Wait()
			load.Finish()
			breaks(c)
		})
		if want == "" && len(said) > 0 || want != "" && (len(said) == 0 || !strings.Contains(said[0], want)) {
			t.Errorf("it says %q, want %q", said, want)
		}
	}
}

// Random faults end with their clients, and leave a cluster that passes the check.
func TestRandomFaultsEnd(t *testing.T) {
	lives := make(map[uint64]int)
	said := withToys(t, func(c *Cluster[*toy]) {
		done := make(chan struct{})
		go func() { time.Sleep(time.Minute); close(done) }()
		c.RandomFaults(done)
		for id, p := range c.Nodes {
			lives[id] = p.lives
		}
	})
	if len(said) > 0 || lives[1] < 2 || lives[2] < 2 || lives[3] < 2 {
		t.Errorf("%q, lives %v", said, lives)
	}
}

// A message arrives, twice, or not at all, as the network was told, and its sender
// hears of one that did not; it goes only to peers that the sender was told of.
func TestNetDoesAsItIsTold(t *testing.T) {
	for name, tt := range map[string]struct {
		set         func(c *Cluster[*toy])
		arrive      int
		unreachable int
	}{
		"healed":         {func(*Cluster[*toy]) {}, 1, 0},
		"repeated":       {func(c *Cluster[*toy]) { c.Net.Disturb(0, 1, time.Second) }, 2, 0},
		"dropped":        {func(c *Cluster[*toy]) { c.Net.Disturb(1, 0, time.Second) }, 0, 1},
		"cut":            {func(c *Cluster[*toy]) { c.Net.Sever(1, 2) }, 0, 1},
		"cut, other way": {func(c *Cluster[*toy]) { c.Net.Sever(2, 1) }, 1, 0},
		"isolated":       {func(c *Cluster[*toy]) { c.Net.Isolate(2, 1, 3) }, 0, 1},
		"down":           {func(c *Cluster[*toy]) { c.Crash(2) }, 0, 1},
	} {
		said := withToys(t, func(c *Cluster[*toy]) {
			tt.set(c)
			from, to := c.Nodes[1].Life, c.Nodes[2].Life
			tr := c.Net.Transport(from)
			m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1))}
			tr.Send([]*raftpb.Message{m}) // to nobody
			tr.AddPeer(2, nil)
			tr.Send([]*raftpb.Message{m})
			time.Sleep(2 * time.Second)
			from.all.mu.Lock()
			defer from.all.mu.Unlock()
			got := 0
			if to != nil {
				got = len(to.got)
			}
			if got != tt.arrive || from.unreachables != tt.unreachable || c.Net.EmptyAppends() != 1 {
				t.Errorf("%s: %d arrived, %d were reported, %d were sent", name, got, from.unreachables, c.Net.EmptyAppends())
			}
		})
		if len(said) > 0 {
			t.Errorf("%s: %q", name, said)
		}
	}
}

// A snapshot arrives as it was sent, unless it is spoiled: then it breaks off or is
// not the same.
func TestNetSpoilsSnapshots(t *testing.T) {
	file := strings.Repeat("snapshot", 100)
	said := withToys(t, func(c *Cluster[*toy]) {
		tr := c.Net.Transport(c.Nodes[1].Life)
		tr.AddPeer(2, nil)
		to := c.Nodes[2].Life
		send := func() (arrived bool) {
			m := snap.NewMessage(&raftpb.Message{Type: raftpb.MsgSnap.Enum(), To: new(uint64(2))}, io.NopCloser(bytes.NewBufferString(file)), int64(len(file)))
			tr.SendSnapshot(m)
			return <-m.CloseNotify()
		}
		for range 5 {
			if !send() || to.files[len(to.files)-1] != file {
				t.Error("it did not arrive whole")
			}
		}
		sent := len(to.files)
		c.Net.SpoilSnapshots(1)
		for range 20 {
			send()
		}
		flipped := to.files[sent:]
		for _, f := range flipped {
			if len(f) != len(file) || f == file {
				t.Error("it arrived whole, and was to be spoiled")
			}
		}
		if len(flipped) == 0 || len(flipped) == 20 || c.Net.Transfers() != 25 {
			t.Errorf("of 20 to be spoiled %d arrived; %d were sent", len(flipped), c.Net.Transfers())
		}
	})
	if len(said) > 0 {
		t.Error(said)
	}
}

// A disk takes its time for what is saved, for syncs under way too.
func TestDiskTakesItsTime(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		var d Disk
		d.Set(Hang)
		began := time.Now()
		go func() {
			time.Sleep(time.Hour)
			d.Set(2 * time.Hour)
		}()
		d.sync()
		if took := time.Since(began); took != 2*time.Hour {
			t.Errorf("it took %v", took)
		}
		d.Set(0)
		if d.sync(); time.Since(began) != 2*time.Hour {
			t.Error("a disk that takes no time took some")
		}
	})
}
