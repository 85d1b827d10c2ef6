package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Cluster is a cluster in a bubble, with all that happens to it.
type Cluster[N Node] struct {
	T     testing.TB // of the bubble
	Seed  uint64
	Rng   *rand.Rand // of the schedule; the network has its own
	Net   *Net[N]
	Nodes map[uint64]*Place[N]
	Peers []address.Peer // the voters of the first start

	// Open makes the next life of a node from the directory of its place, which may
	// be empty, and connects it with Net. The life does not run yet.
	Open func(p *Place[N]) (N, error)
	// Ask carries out operations in place of Node.Do, if it is set.
	Ask func(ctx context.Context, life N, in history.Input) (state.Result, *state.Item)

	// Lives is held while a node of a random test changes its life.
	Lives Turn

	Doubts   bool // the test makes nodes doubt messages; else none may, in any test
	Attacked bool // what comes to the nodes is not what they send alone

	History []porcupine.Operation // what clients were told; the lock is mu

	dir     string
	mu      sync.Mutex
	clock   int64                   // orders calls and returns; finer than virtual time
	values  uint64                  // makes each written value unique
	refused map[refusal.Kind]uint64 // by nodes whose lives have ended
}

// Turn is a lock in virtual time. That stands still while anyone waits for a mutex,
// and goes on while one waits for a channel.
type Turn chan struct{}

// Lock waits for the turn and takes it.
func (t Turn) Lock() { t <- struct{}{} }

// Unlock gives the turn to another.
func (t Turn) Unlock() { <-t }

// New makes a cluster without nodes, in a bubble. The lives of a node are in
// directories of dir.
func New[N Node](t testing.TB, dir string, seed uint64) *Cluster[N] {
	return &Cluster[N]{
		T: t, Seed: seed, Rng: rand.New(rand.NewPCG(seed, 1)), Net: newNet[N](t, seed), Nodes: make(map[uint64]*Place[N]),
		Lives: make(Turn, 1), dir: dir, refused: make(map[refusal.Kind]uint64),
	}
}

// NodeDir is the directory of a node that was killed so often.
func (c *Cluster[N]) NodeDir(id uint64, life int) string {
	return filepath.Join(c.dir, fmt.Sprintf("node%d.%d", id, life))
}

// Found makes a new cluster of n nodes and starts them.
func (c *Cluster[N]) Found(n int) {
	c.T.Helper()
	c.Peers = Peers(n)
	for _, p := range c.Peers {
		c.Nodes[p.ID] = &Place[N]{ID: p.ID, Dir: c.NodeDir(p.ID, 0)}
		c.Start(p.ID)
	}
}

// Join starts a new node that joins.
func (c *Cluster[N]) Join(id uint64) {
	c.T.Helper()
	c.Nodes[id] = &Place[N]{ID: id, Join: true, Dir: c.NodeDir(id, 0)}
	c.Start(id)
}

// Start begins a new life of a node.
func (c *Cluster[N]) Start(id uint64) {
	c.T.Helper()
	if err := c.tryStart(c.Nodes[id]); err != nil {
		c.T.Fatalf("node %d does not start: %v", id, err)
	}
}

func (c *Cluster[N]) tryStart(p *Place[N]) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	life, err := c.Open(p)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	p.Life, p.ended, p.err = life, ended, nil
	p.lives++
	c.Net.attach(life)
	if err := life.Start(); err != nil {
		c.Net.detach(p.ID)
		life.End()
		p.down()
		return errors.Join(err, life.Close())
	}
	go func() {
		p.err = life.Wait()
		close(ended)
	}()
	for _, other := range c.Nodes {
		if other != p && other.Up() {
			other.Life.MeetAgain()
		}
	}
	return nil
}

func (p *Place[N]) down() {
	var none N
	p.Life = none
}

// halt ends the goroutines of a node's life, at whatever they were doing.
func (c *Cluster[N]) halt(p *Place[N]) {
	c.Net.detach(p.ID)
	p.Life.End()
	<-p.ended
	c.undoubted(p)
	c.noteRefusals(p.Life)
}

// Crash ends a life as SIGKILL would: the directory is copied before anything
// is closed, because closing would flush what a killed process never wrote.
// The next life starts from the copy.
func (c *Cluster[N]) Crash(id uint64) {
	c.T.Helper()
	p := c.Nodes[id]
	c.halt(p)
	copied := c.NodeDir(id, p.lives)
	if err := os.CopyFS(copied, os.DirFS(p.Dir)); err != nil {
		c.T.Fatal(err)
	}
	c.closed(p, p.Life.Close())
	if err := os.RemoveAll(p.Dir); err != nil {
		c.T.Error(err)
	}
	p.Dir = copied
}

// Stop ends a life gracefully, as SIGTERM would.
func (c *Cluster[N]) Stop(id uint64) {
	c.T.Helper()
	p := c.Nodes[id]
	p.Life.HandOver()
	c.halt(p)
	c.closed(p, p.Life.CloseInOrder(p.err))
}

// Ended waits until a node ends by itself and returns why.
func (c *Cluster[N]) Ended(id uint64) error {
	c.T.Helper()
	p := c.Nodes[id]
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		c.T.Fatalf("node %d does not end by itself", id)
	}
	c.Net.detach(p.ID)
	c.noteRefusals(p.Life)
	c.closed(p, p.Life.Close())
	return p.err
}

// EndOf tells why a node has ended by itself, once it has. Ended has to follow.
func (c *Cluster[N]) EndOf(id uint64) <-chan error {
	p := c.Nodes[id]
	why := make(chan error, 1)
	go func() {
		<-p.ended
		why <- p.err
	}()
	return why
}

// closed notes that a life is over, with the error of closing it.
func (c *Cluster[N]) closed(p *Place[N], err error) {
	c.T.Helper()
	if err != nil {
		c.T.Errorf("node %d: %v", p.ID, err)
	}
	p.down()
}

// Close ends all lives.
func (c *Cluster[N]) Close() {
	for _, p := range c.Nodes {
		p.Disk.Set(0)
		if p.Up() {
			c.halt(p)
			c.closed(p, p.Life.Close())
		}
	}
	time.Sleep(time.Minute) // what is on its way arrives nowhere
}

// GiveUp ends a test of a cluster that cannot serve any more, or has two histories
// of which no check can make one. The global check finds nothing left to judge.
func (c *Cluster[N]) GiveUp() {
	c.Close()
	c.Nodes, c.History = make(map[uint64]*Place[N]), nil
}

// Up returns the IDs of the nodes that are running, in order.
func (c *Cluster[N]) Up() []uint64 {
	var ids []uint64
	for id, p := range c.Nodes {
		if p.Up() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Await polls a condition in virtual time.
func (c *Cluster[N]) Await(what string, ok func() bool) {
	c.T.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.T.Fatalf("a minute has gone by without: %s\n%s", what, c.Describe())
}

// Describe tells what a failed test should show of the running nodes.
func (c *Cluster[N]) Describe() string {
	var b bytes.Buffer
	for _, id := range c.Up() {
		fmt.Fprintf(&b, "node %d: %s\n", id, c.Nodes[id].Life.String())
	}
	return b.String()
}

// Leader waits for a leader that a majority of the running nodes knows.
func (c *Cluster[N]) Leader() uint64 {
	c.T.Helper()
	var leader uint64
	c.Await("a leader", func() bool {
		votes := make(map[uint64]int)
		for _, id := range c.Up() {
			votes[c.Nodes[id].Life.Leader()]++
		}
		for l, n := range votes {
			if at := c.Nodes[l]; at != nil && n > len(c.Up())/2 && at.Up() { // one that has left may be followed still
				leader = l
				return true
			}
		}
		return false
	})
	return leader
}

// Followers returns the running nodes that do not lead.
func (c *Cluster[N]) Followers() []uint64 {
	c.T.Helper()
	leader := c.Leader()
	return slices.DeleteFunc(c.Up(), func(id uint64) bool { return id == leader })
}

func (c *Cluster[N]) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	return c.clock
}

// Do carries out one operation on a node, and adds it to the history.
func (c *Cluster[N]) Do(client int, id uint64, in history.Input) (state.Result, *state.Item) {
	return c.DoOn(client, c.Nodes[id].Life, in)
}

// DoOn is Do, on a life that may be over.
func (c *Cluster[N]) DoOn(client int, life N, in history.Input) (state.Result, *state.Item) {
	ask := c.Ask
	if ask == nil {
		ask = func(ctx context.Context, life N, in history.Input) (state.Result, *state.Item) {
			return life.Do(ctx, in)
		}
	}
	in.Sent = time.Now()
	call := c.now()
	res, it := ask(context.Background(), life, in)
	end := c.now()
	out := told(in, res, it)
	out.Told = time.Now()
	switch {
	case errors.Is(res.Err, problem.ErrOutcomeUnknown):
		out, end = history.Output{Unknown: true}, math.MaxInt64
	case res.Err == nil, errors.Is(res.Err, problem.ErrNotFound), errors.Is(res.Err, problem.ErrPrecondition):
	default:
		return res, it // it did not happen, and saw nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.History = append(c.History, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	return res, it
}

// told is what a client was told by an answer.
func told(in history.Input, res state.Result, it *state.Item) history.Output {
	out := history.Output{OK: res.Err == nil, Deleted: res.Deleted}
	if it != nil {
		out.Value = it.Value
	}
	if res.Txn == nil {
		return out
	}
	for _, r := range res.Txn.Results {
		switch in.Kind {
		case history.Add:
			out.Number = r.Number
		case history.Append:
			out.Key = r.Key
		}
		for _, found := range r.Items {
			out.Items = append(out.Items, history.Item{Key: found.Key, Value: found.Item.Value})
		}
	}
	out.OK = out.OK && res.Txn.Succeeded
	return out
}

// Value returns a value that no other write has.
func (c *Cluster[N]) Value() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values++
	return fmt.Sprintf("v%d", c.values)
}

// Put writes on a node and must succeed.
func (c *Cluster[N]) Put(id uint64, key, value string) {
	c.T.Helper()
	if res, _ := c.Do(0, id, history.Input{Kind: history.Put, Key: key, Value: value}); res.Err != nil {
		c.T.Fatalf("put %s on node %d: %v\n%s", key, id, res.Err, c.Describe())
	}
}

// Want reads on a node, linearizably, and compares.
func (c *Cluster[N]) Want(id uint64, key, value string) {
	c.T.Helper()
	res, it := c.Do(0, id, history.Input{Kind: history.Get, Key: key})
	if res.Err != nil || it == nil || string(it.Value) != value {
		c.T.Fatalf("get %s on node %d: %+v, %v; want %q\n%s", key, id, it, res.Err, value, c.Describe())
	}
}
