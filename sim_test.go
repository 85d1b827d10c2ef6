//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/logging"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.uber.org/zap"
)

// simCluster is a cluster in the bubble.
type simCluster struct {
	T     *testing.T
	dir   string
	Seed  uint64
	Rng   *rand.Rand // of the schedule; the network has its own
	Net   *simNet
	Nodes map[uint64]*simPlace
	Peers []address.Peer // the voters of the first start
	tweak func(*config.Config)
	log   func(id uint64) *zap.Logger // nil: nobody reads it
	wire  func(*server)               // changes a node before it starts; nil: does not

	// lives is held, by the one who has put its token in, while a node of a random
	// test changes its life. That takes virtual time, which stands still while
	// anyone waits for a mutex.
	lives chan struct{}

	// Doubts: the test makes nodes doubt messages; else none may, in any test.
	Doubts bool

	mu      sync.Mutex
	clock   int64 // orders calls and returns; finer than virtual time
	History []porcupine.Operation
	values  uint64 // makes each written value unique

	Attacked bool                    // what comes to the nodes is not what they send alone
	refused  map[refusal.Kind]uint64 // by nodes whose lives have ended
}

// simPlace is a node's place in the cluster: its directory, and its current
// life if it is up.
type simPlace struct {
	ID    uint64
	Join  bool
	URL   string // where it is, if not at simURL
	lives int
	Dir   string
	Disk  simDisk       // sim_diskhang_test.go
	Life  *server       // nil: down
	ended chan struct{} // closed when the life has ended by itself or was ended
	Err   error         // why it ended; read after ended is closed
}

func simSeed(t *testing.T) uint64 {
	if s := os.Getenv("RAFTKV_SIM_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("RAFTKV_SIM_SEED=%s: %v", s, err)
		}
		return seed
	}
	return rand.Uint64()
}

// simulate runs a test in a bubble with n nodes up, and ends it with the
// global check.
func simulate(t *testing.T, n int, test func(c *simCluster)) {
	simulateWith(t, n, nil, test)
}

func simulateWith(t *testing.T, n int, tweak func(*config.Config), test func(c *simCluster)) {
	t.Helper()
	simulateSet(t, n, func(c *simCluster) { c.tweak = tweak }, test)
}

// simulateLogged is simulateWith, with a logger for each node.
func simulateLogged(t *testing.T, n int, tweak func(*config.Config), log func(id uint64) *zap.Logger, test func(c *simCluster)) {
	t.Helper()
	simulateSet(t, n, func(c *simCluster) { c.tweak, c.log = tweak, log }, test)
}

// simulateSet is simulate, on a cluster of which set has set what is to be so
// from the start.
func simulateSet(t *testing.T, n int, set func(*simCluster), test func(c *simCluster)) {
	t.Helper()
	seed := simSeed(t)
	t.Logf("RAFTKV_SIM_SEED=%d", seed)
	dir := t.TempDir()
	testkit.InBubble(t, func(t *testing.T) {
		c := newSimCluster(t, dir, seed, n, set)
		defer c.Close()
		test(c)
		c.Check()
	})
	testkit.Must(t, os.RemoveAll(dir)) // a soak runs a thousand of these in one test
}

// newSimCluster makes a cluster of n nodes and starts them. It is called in a
// bubble.
func newSimCluster(t *testing.T, dir string, seed uint64, n int, set func(*simCluster)) *simCluster {
	c := &simCluster{
		T: t, dir: dir, Seed: seed, Rng: rand.New(rand.NewPCG(seed, 1)),
		Net: newSimNet(t, seed), Nodes: make(map[uint64]*simPlace), lives: make(chan struct{}, 1),
	}
	set(c)
	for id := range uint64(n) {
		c.Peers = append(c.Peers, address.Peer{ID: id + 1, URL: simURL(id + 1)})
	}
	for _, p := range c.Peers {
		c.Nodes[p.ID] = &simPlace{ID: p.ID, Dir: c.NodeDir(p.ID, 0)}
		c.Start(p.ID)
	}
	return c
}

func simURL(id uint64) string { return fmt.Sprintf("http://10.0.0.%d:2380", id) }

func (c *simCluster) NodeDir(id uint64, life int) string {
	return filepath.Join(c.dir, fmt.Sprintf("node%d.%d", id, life))
}

func (c *simCluster) config(n *simPlace) config.Config {
	cfg := config.DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.PeerURL, cfg.Join = n.ID, n.Dir, simURL(n.ID), n.Join
	if n.URL != "" {
		cfg.PeerURL = n.URL
	}
	if !n.Join {
		cfg.Cluster = c.Peers
	}
	if c.tweak != nil {
		c.tweak(&cfg)
	}
	return cfg
}

// Start begins a new life of a node.
func (c *simCluster) Start(id uint64) {
	c.T.Helper()
	if err := c.TryStart(id); err != nil {
		c.T.Fatalf("node %d does not start: %v", id, err)
	}
}

func (c *simCluster) TryStart(id uint64) error {
	n := c.Nodes[id]
	cfg := c.config(n)
	log := zap.NewNop()
	if c.log != nil {
		log = c.log(id)
	} else if os.Getenv("RAFTKV_SIM_LOG") != "" {
		log = logging.New(0, "console", "debug", os.Stderr).With(zap.Uint64("node", id))
	}
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return err
	}
	if old, err := storage.Booted(n.Dir); err != nil {
		return err
	} else if !old {
		if err := c.firstStart(n, log); err != nil {
			return err
		}
	}
	st, err := storage.Open(log, n.Dir, func(id storage.Identity, reconfigured bool) error {
		return boot.CheckIdentity(cfg, id, reconfigured)
	})
	if err != nil {
		return err
	}
	if cfg.SnapshotCount < 1000 { // a test that wants snapshots wants them sent, too
		st.Tail.Limit = int64(cfg.SnapshotCount) * storage.EntryWeight
	}
	st.Wal = n.Disk.Under(st.Wal)
	srv := newServer(cfg, log, st, 9121)
	srv.members.Ask = c.Net.asker(id)
	srv.members.AskView = c.Net.viewer(id)
	srv.node.known.AskPeer = c.Net.informer(id)
	srv.node.doubts.AskStand = c.Net.stander(id)
	srv.room.Tell = c.Net.diskTeller(id)
	if c.wire != nil {
		c.wire(srv)
	}
	srv.connect(c.Net.Transport(srv), c.Net.found(id))
	n.Life, n.ended, n.Err = srv, make(chan struct{}), nil
	n.lives++
	c.Net.attach(srv)
	if err := srv.start(); err != nil {
		srv.end()
		return errors.Join(err, st.Close())
	}
	go func(ended chan struct{}) {
		<-srv.life.Done()
		n.Err = srv.group.Wait()
		close(ended)
	}(n.ended)
	for other, n := range c.Nodes { // whom it opens its streams to
		if other != id && n.Life != nil {
			n.Life.node.doubts.MeetAgain()
		}
	}
	return nil
}

func (c *simCluster) firstStart(n *simPlace, log *zap.Logger) error {
	id := storage.Identity{Format: storage.DirFormat, Node: n.ID, Instance: storage.NewInstance(), ClusterID: address.ClusterIDOf(c.Peers)}
	if n.Join {
		return storage.Create(log, n.Dir, id, state.First(nil))
	}
	id.Initial = address.FormatPeers(c.Peers)
	return storage.Create(log, n.Dir, id, state.First(c.Peers))
}

// halt ends the goroutines of a node's life, at whatever they were doing.
func (c *simCluster) halt(n *simPlace) {
	c.Net.detach(n.ID)
	n.Life.end()
	<-n.ended
	c.undoubted(n)
	c.noteRefusals(n.Life)
}

// undoubted checks that a life saw no message that contradicts its log, unless
// the test makes such messages.
func (c *simCluster) undoubted(n *simPlace) {
	if doubts := n.Life.node.refusals.Count(refusal.RefusedContradiction); doubts > 0 && !c.Doubts && !c.Attacked {
		c.T.Errorf("node %d doubted %d messages of a healthy cluster", n.ID, doubts)
	}
}

// Crash ends a life as SIGKILL would: the directory is copied before anything
// is closed, because closing would flush what a killed process never wrote.
// The next life starts from the copy.
func (c *simCluster) Crash(id uint64) {
	c.T.Helper()
	n := c.Nodes[id]
	c.halt(n)
	copied := c.NodeDir(id, n.lives)
	if err := os.CopyFS(copied, os.DirFS(n.Dir)); err != nil {
		c.T.Fatal(err)
	}
	if err := n.Life.storage.Close(); err != nil {
		c.T.Errorf("node %d: %v", id, err)
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		c.T.Error(err)
	}
	n.Life, n.Dir = nil, copied
}

// Stop ends a life gracefully, as SIGTERM would.
func (c *simCluster) Stop(id uint64) {
	c.T.Helper()
	n := c.Nodes[id]
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if m, _ := n.Life.kv.Membership(); len(m.Voters()) > 1 {
		_, _ = n.Life.members.Transfer(ctx, 0) // as server.drain: it stops all the same
	}
	c.halt(n)
	if err := n.Life.closeStorage(n.Err); err != nil {
		c.T.Errorf("node %d: %v", id, err)
	}
	n.Life = nil
}

// Ended waits until a node ends by itself and returns why.
func (c *simCluster) Ended(id uint64) error {
	c.T.Helper()
	n := c.Nodes[id]
	select {
	case <-n.ended:
	case <-time.After(time.Minute):
		c.T.Fatalf("node %d does not end by itself", id)
	}
	c.Net.detach(n.ID)
	c.noteRefusals(n.Life)
	if err := n.Life.storage.Close(); err != nil {
		c.T.Errorf("node %d: %v", id, err)
	}
	n.Life = nil
	return n.Err
}

func (c *simCluster) Close() {
	for _, n := range c.Nodes {
		n.Disk.Set(0)
		if n.Life != nil {
			c.halt(n)
			if err := n.Life.storage.Close(); err != nil {
				c.T.Errorf("node %d: %v", n.ID, err)
			}
			n.Life = nil
		}
	}
	time.Sleep(time.Minute) // what is on its way arrives nowhere
}

// Up returns the IDs of the nodes that are running, in order.
func (c *simCluster) Up() []uint64 {
	var ids []uint64
	for id, n := range c.Nodes {
		if n.Life != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Await polls a condition in virtual time.
func (c *simCluster) Await(what string, ok func() bool) {
	c.T.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.T.Fatalf("a minute has gone by without: %s\n%s", what, c.describe())
}

func (c *simCluster) describe() string {
	var b bytes.Buffer
	for _, id := range c.Up() {
		srv := c.Nodes[id].Life
		m, index := srv.kv.Membership()
		fmt.Fprintf(&b, "node %d: %+v applied %d members %+v removed %v\n", id, *srv.node.status.Load(), index, m.Sorted(), m.Removed)
	}
	return b.String()
}

// Leader waits for a leader that a majority of the running nodes knows.
func (c *simCluster) Leader() uint64 {
	c.T.Helper()
	var leader uint64
	c.Await("a leader", func() bool {
		votes := make(map[uint64]int)
		for _, id := range c.Up() {
			l, _, _ := c.Nodes[id].Life.node.leaders.Get()
			votes[l]++
		}
		for l, n := range votes {
			if l != 0 && n > len(c.Up())/2 && c.Nodes[l].Life != nil {
				leader = l
				return true
			}
		}
		return false
	})
	return leader
}

// Followers returns the running nodes that do not lead.
func (c *simCluster) Followers() []uint64 {
	leader := c.Leader()
	return slices.DeleteFunc(c.Up(), func(id uint64) bool { return id == leader })
}

func (c *simCluster) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	return c.clock
}

// Do carries out one operation on a node, and adds it to the history.
func (c *simCluster) Do(client int, id uint64, in history.Input) (state.Result, *state.Item) {
	return c.DoOn(client, c.Nodes[id].Life, in)
}

func (c *simCluster) DoOn(client int, srv *server, in history.Input) (state.Result, *state.Item) {
	call := c.now()
	var res state.Result
	var it *state.Item
	switch in.Kind {
	case history.Get:
		if res.Err = srv.reads.Confirm(context.Background()); res.Err == nil {
			it, _ = srv.kv.get(in.Key)
		}
	case history.Delete:
		res = srv.proposals.Propose(context.Background(), state.EncodeWrite(state.KindDelete, state.Condition{}, in.Key, nil))
	case history.Create:
		res = srv.proposals.Propose(context.Background(), state.EncodeWrite(state.KindPut, state.Condition{Kind: state.IfMissing}, in.Key, []byte(in.Value)))
	default:
		res = srv.proposals.Propose(context.Background(), state.EncodeWrite(state.KindPut, state.Condition{}, in.Key, []byte(in.Value)))
	}
	end := c.now()
	out := history.Output{OK: res.Err == nil}
	if it != nil {
		out.Value = string(it.Value)
	}
	switch {
	case errors.Is(res.Err, problem.ErrOutcomeUnknown):
		out.Unknown, end = true, math.MaxInt64
	case res.Err == nil, errors.Is(res.Err, problem.ErrNotFound), errors.Is(res.Err, problem.ErrPrecondition):
	default:
		return res, it // it did not happen, and saw nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.History = append(c.History, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	return res, it
}

func (c *simCluster) Value() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values++
	return fmt.Sprintf("v%d", c.values)
}

// Put writes on a node and must succeed.
func (c *simCluster) Put(id uint64, key, value string) {
	c.T.Helper()
	if res, _ := c.Do(0, id, history.Input{Kind: history.Put, Key: key, Value: value}); res.Err != nil {
		c.T.Fatalf("put %s on node %d: %v\n%s", key, id, res.Err, c.describe())
	}
}

// Want reads on a node, linearizably, and compares.
func (c *simCluster) Want(id uint64, key, value string) {
	c.T.Helper()
	res, it := c.Do(0, id, history.Input{Kind: history.Get, Key: key})
	if res.Err != nil || it == nil || string(it.Value) != value {
		c.T.Fatalf("get %s on node %d: %+v, %v; want %q\n%s", key, id, it, res.Err, value, c.describe())
	}
}

// hash is that of a node's whole replicated state, with the index it is of.
func (n *simPlace) hash() (hash string, index uint64) {
	n.Life.kv.mu.Lock()
	st := n.Life.kv.state.Copy()
	n.Life.kv.mu.Unlock()
	h := sha256.New()
	if err := state.Write(h, st); err != nil {
		return err.Error(), st.Index
	}
	return string(h.Sum(nil)), st.Index
}

// Check is the end of every test: the network is healed and every node that
// belongs to the cluster is started. Then all converge to the same state at the
// same index, and the history must be linearizable, which includes that every
// acknowledged write is there.
func (c *simCluster) Check() {
	c.T.Helper()
	c.Net.Heal()
	for id, n := range c.Nodes {
		switch {
		case n.Life == nil && !c.gone(id):
			c.Start(id)
		case n.Life != nil && c.gone(id):
			if err := c.Ended(id); !errors.Is(err, problem.ErrRemoved) {
				c.T.Errorf("removed node %d ended with: %v", id, err)
			}
		}
	}
	if len(c.Up()) == 0 {
		return
	}
	leader := c.Leader()
	c.Put(leader, "check", c.Value())
	c.readAll()
	c.Await("convergence", func() bool {
		hashes := make(map[string]bool)
		for _, id := range c.Up() {
			h, index := c.Nodes[id].hash()
			hashes[h+strconv.FormatUint(index, 10)] = true
		}
		return len(hashes) == 1
	})
	c.Net.checkLeaders()
	c.checkRefusals()
	for _, id := range c.Up() {
		if err := c.Nodes[id].Life.kv.Sound(); err != nil {
			c.T.Errorf("node %d: %v", id, err)
		}
		c.undoubted(c.Nodes[id])
	}
	if !porcupine.CheckOperations(history.Model, c.History) {
		c.T.Errorf("the history of %d operations is not linearizable", len(c.History))
	}
	for _, id := range c.Up() {
		if n := c.Nodes[id]; n.Err != nil {
			c.T.Errorf("node %d: %v", id, n.Err)
		}
	}
}

// readAll reads every key of the history on every node.
func (c *simCluster) readAll() {
	keys := make(map[string]bool)
	for _, op := range c.History {
		keys[op.Input.(history.Input).Key] = true
	}
	for key := range keys {
		for _, id := range c.Up() {
			c.Await("a read of "+key, func() bool {
				res, _ := c.Do(1000, id, history.Input{Kind: history.Get, Key: key})
				return res.Err == nil
			})
		}
	}
}

// gone reports whether a node was removed, as any running node knows.
func (c *simCluster) gone(id uint64) bool {
	for _, up := range c.Up() {
		if c.Nodes[up].Life.kv.isRemoved(id) {
			return true
		}
	}
	return false
}
