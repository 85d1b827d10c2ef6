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
	t     *testing.T
	dir   string
	seed  uint64
	rng   *rand.Rand // of the schedule; the network has its own
	net   *simNet
	nodes map[uint64]*simNode
	peers []address.Peer // the voters of the first start
	tweak func(*config.Config)
	log   func(id uint64) *zap.Logger // nil: nobody reads it
	wire  func(*server)               // changes a node before it starts; nil: does not

	// lives is held, by the one who has put its token in, while a node of a random
	// test changes its life. That takes virtual time, which stands still while
	// anyone waits for a mutex.
	lives chan struct{}

	// doubts: the test makes nodes doubt messages; else none may, in any test.
	doubts bool

	mu      sync.Mutex
	clock   int64 // orders calls and returns; finer than virtual time
	history []porcupine.Operation
	values  uint64 // makes each written value unique

	attacked bool                    // what comes to the nodes is not what they send alone
	refused  map[refusal.Kind]uint64 // by nodes whose lives have ended
}

// simNode is a node's place in the cluster: its directory, and its current
// life if it is up.
type simNode struct {
	id    uint64
	join  bool
	url   string // where it is, if not at simURL
	lives int
	dir   string
	disk  simDisk       // sim_diskhang_test.go
	srv   *server       // nil: down
	ended chan struct{} // closed when the life has ended by itself or was ended
	err   error         // why it ended; read after ended is closed
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
		defer c.close()
		test(c)
		c.check()
	})
	testkit.Must(t, os.RemoveAll(dir)) // a soak runs a thousand of these in one test
}

// newSimCluster makes a cluster of n nodes and starts them. It is called in a
// bubble.
func newSimCluster(t *testing.T, dir string, seed uint64, n int, set func(*simCluster)) *simCluster {
	c := &simCluster{
		t: t, dir: dir, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)),
		net: newSimNet(t, seed), nodes: make(map[uint64]*simNode), lives: make(chan struct{}, 1),
	}
	set(c)
	for id := range uint64(n) {
		c.peers = append(c.peers, address.Peer{ID: id + 1, URL: simURL(id + 1)})
	}
	for _, p := range c.peers {
		c.nodes[p.ID] = &simNode{id: p.ID, dir: c.nodeDir(p.ID, 0)}
		c.start(p.ID)
	}
	return c
}

func simURL(id uint64) string { return fmt.Sprintf("http://10.0.0.%d:2380", id) }

func (c *simCluster) nodeDir(id uint64, life int) string {
	return filepath.Join(c.dir, fmt.Sprintf("node%d.%d", id, life))
}

func (c *simCluster) config(n *simNode) config.Config {
	cfg := config.DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.PeerURL, cfg.Join = n.id, n.dir, simURL(n.id), n.join
	if n.url != "" {
		cfg.PeerURL = n.url
	}
	if !n.join {
		cfg.Cluster = c.peers
	}
	if c.tweak != nil {
		c.tweak(&cfg)
	}
	return cfg
}

// start begins a new life of a node.
func (c *simCluster) start(id uint64) {
	c.t.Helper()
	if err := c.tryStart(id); err != nil {
		c.t.Fatalf("node %d does not start: %v", id, err)
	}
}

func (c *simCluster) tryStart(id uint64) error {
	n := c.nodes[id]
	cfg := c.config(n)
	log := zap.NewNop()
	if c.log != nil {
		log = c.log(id)
	} else if os.Getenv("RAFTKV_SIM_LOG") != "" {
		log = logging.New(0, "console", "debug", os.Stderr).With(zap.Uint64("node", id))
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	if old, err := storage.Booted(n.dir); err != nil {
		return err
	} else if !old {
		if err := c.firstStart(n, log); err != nil {
			return err
		}
	}
	st, err := storage.Open(log, n.dir, func(id storage.Identity, reconfigured bool) error {
		return boot.CheckIdentity(cfg, id, reconfigured)
	})
	if err != nil {
		return err
	}
	if cfg.SnapshotCount < 1000 { // a test that wants snapshots wants them sent, too
		st.Tail.Limit = int64(cfg.SnapshotCount) * storage.EntryWeight
	}
	st.Wal = n.disk.under(st.Wal)
	srv := newServer(cfg, log, st, 9121)
	srv.members.Ask = c.net.asker(id)
	srv.members.AskView = c.net.viewer(id)
	srv.node.known.AskPeer = c.net.informer(id)
	srv.node.doubts.AskStand = c.net.stander(id)
	srv.room.Tell = c.net.diskTeller(id)
	if c.wire != nil {
		c.wire(srv)
	}
	srv.connect(c.net.transport(srv), c.net.found(id))
	n.srv, n.ended, n.err = srv, make(chan struct{}), nil
	n.lives++
	c.net.attach(srv)
	if err := srv.start(); err != nil {
		srv.end()
		return errors.Join(err, st.Close())
	}
	go func(ended chan struct{}) {
		<-srv.life.Done()
		n.err = srv.group.Wait()
		close(ended)
	}(n.ended)
	for other, n := range c.nodes { // whom it opens its streams to
		if other != id && n.srv != nil {
			n.srv.node.doubts.MeetAgain()
		}
	}
	return nil
}

func (c *simCluster) firstStart(n *simNode, log *zap.Logger) error {
	id := storage.Identity{Format: storage.DirFormat, Node: n.id, Instance: storage.NewInstance(), ClusterID: address.ClusterIDOf(c.peers)}
	if n.join {
		return storage.Create(log, n.dir, id, state.First(nil))
	}
	id.Initial = address.FormatPeers(c.peers)
	return storage.Create(log, n.dir, id, state.First(c.peers))
}

// halt ends the goroutines of a node's life, at whatever they were doing.
func (c *simCluster) halt(n *simNode) {
	c.net.detach(n.id)
	n.srv.end()
	<-n.ended
	c.undoubted(n)
	c.noteRefusals(n.srv)
}

// undoubted checks that a life saw no message that contradicts its log, unless
// the test makes such messages.
func (c *simCluster) undoubted(n *simNode) {
	if doubts := n.srv.node.refusals.Count(refusal.RefusedContradiction); doubts > 0 && !c.doubts && !c.attacked {
		c.t.Errorf("node %d doubted %d messages of a healthy cluster", n.id, doubts)
	}
}

// crash ends a life as SIGKILL would: the directory is copied before anything
// is closed, because closing would flush what a killed process never wrote.
// The next life starts from the copy.
func (c *simCluster) crash(id uint64) {
	c.t.Helper()
	n := c.nodes[id]
	c.halt(n)
	copied := c.nodeDir(id, n.lives)
	if err := os.CopyFS(copied, os.DirFS(n.dir)); err != nil {
		c.t.Fatal(err)
	}
	if err := n.srv.storage.Close(); err != nil {
		c.t.Errorf("node %d: %v", id, err)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		c.t.Error(err)
	}
	n.srv, n.dir = nil, copied
}

// stop ends a life gracefully, as SIGTERM would.
func (c *simCluster) stop(id uint64) {
	c.t.Helper()
	n := c.nodes[id]
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if m, _ := n.srv.kv.Membership(); len(m.Voters()) > 1 {
		_, _ = n.srv.members.Transfer(ctx, 0) // as server.drain: it stops all the same
	}
	c.halt(n)
	if err := n.srv.closeStorage(n.err); err != nil {
		c.t.Errorf("node %d: %v", id, err)
	}
	n.srv = nil
}

// ended waits until a node ends by itself and returns why.
func (c *simCluster) ended(id uint64) error {
	c.t.Helper()
	n := c.nodes[id]
	select {
	case <-n.ended:
	case <-time.After(time.Minute):
		c.t.Fatalf("node %d does not end by itself", id)
	}
	c.net.detach(n.id)
	c.noteRefusals(n.srv)
	if err := n.srv.storage.Close(); err != nil {
		c.t.Errorf("node %d: %v", id, err)
	}
	n.srv = nil
	return n.err
}

func (c *simCluster) close() {
	for _, n := range c.nodes {
		n.disk.set(0)
		if n.srv != nil {
			c.halt(n)
			if err := n.srv.storage.Close(); err != nil {
				c.t.Errorf("node %d: %v", n.id, err)
			}
			n.srv = nil
		}
	}
	time.Sleep(time.Minute) // what is on its way arrives nowhere
}

// up returns the IDs of the nodes that are running, in order.
func (c *simCluster) up() []uint64 {
	var ids []uint64
	for id, n := range c.nodes {
		if n.srv != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// await polls a condition in virtual time.
func (c *simCluster) await(what string, ok func() bool) {
	c.t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("a minute has gone by without: %s\n%s", what, c.describe())
}

func (c *simCluster) describe() string {
	var b bytes.Buffer
	for _, id := range c.up() {
		srv := c.nodes[id].srv
		m, index := srv.kv.Membership()
		fmt.Fprintf(&b, "node %d: %+v applied %d members %+v removed %v\n", id, *srv.node.status.Load(), index, m.Sorted(), m.Removed)
	}
	return b.String()
}

// leader waits for a leader that a majority of the running nodes knows.
func (c *simCluster) leader() uint64 {
	c.t.Helper()
	var leader uint64
	c.await("a leader", func() bool {
		votes := make(map[uint64]int)
		for _, id := range c.up() {
			l, _, _ := c.nodes[id].srv.node.leaders.Get()
			votes[l]++
		}
		for l, n := range votes {
			if l != 0 && n > len(c.up())/2 && c.nodes[l].srv != nil {
				leader = l
				return true
			}
		}
		return false
	})
	return leader
}

// followers returns the running nodes that do not lead.
func (c *simCluster) followers() []uint64 {
	leader := c.leader()
	return slices.DeleteFunc(c.up(), func(id uint64) bool { return id == leader })
}

func (c *simCluster) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	return c.clock
}

// do carries out one operation on a node, and adds it to the history.
func (c *simCluster) do(client int, id uint64, in history.Input) (state.Result, *state.Item) {
	return c.doOn(client, c.nodes[id].srv, in)
}

func (c *simCluster) doOn(client int, srv *server, in history.Input) (state.Result, *state.Item) {
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
	c.history = append(c.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	return res, it
}

func (c *simCluster) value() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values++
	return fmt.Sprintf("v%d", c.values)
}

// put writes on a node and must succeed.
func (c *simCluster) put(id uint64, key, value string) {
	c.t.Helper()
	if res, _ := c.do(0, id, history.Input{Kind: history.Put, Key: key, Value: value}); res.Err != nil {
		c.t.Fatalf("put %s on node %d: %v\n%s", key, id, res.Err, c.describe())
	}
}

// want reads on a node, linearizably, and compares.
func (c *simCluster) want(id uint64, key, value string) {
	c.t.Helper()
	res, it := c.do(0, id, history.Input{Kind: history.Get, Key: key})
	if res.Err != nil || it == nil || string(it.Value) != value {
		c.t.Fatalf("get %s on node %d: %+v, %v; want %q\n%s", key, id, it, res.Err, value, c.describe())
	}
}

// hash is that of a node's whole replicated state, with the index it is of.
func (n *simNode) hash() (hash string, index uint64) {
	n.srv.kv.mu.Lock()
	st := n.srv.kv.state.Copy()
	n.srv.kv.mu.Unlock()
	h := sha256.New()
	if err := state.Write(h, st); err != nil {
		return err.Error(), st.Index
	}
	return string(h.Sum(nil)), st.Index
}

// check is the end of every test: the network is healed and every node that
// belongs to the cluster is started. Then all converge to the same state at the
// same index, and the history must be linearizable, which includes that every
// acknowledged write is there.
func (c *simCluster) check() {
	c.t.Helper()
	c.net.heal()
	for id, n := range c.nodes {
		switch {
		case n.srv == nil && !c.gone(id):
			c.start(id)
		case n.srv != nil && c.gone(id):
			if err := c.ended(id); !errors.Is(err, problem.ErrRemoved) {
				c.t.Errorf("removed node %d ended with: %v", id, err)
			}
		}
	}
	if len(c.up()) == 0 {
		return
	}
	leader := c.leader()
	c.put(leader, "check", c.value())
	c.readAll()
	c.await("convergence", func() bool {
		hashes := make(map[string]bool)
		for _, id := range c.up() {
			h, index := c.nodes[id].hash()
			hashes[h+strconv.FormatUint(index, 10)] = true
		}
		return len(hashes) == 1
	})
	c.net.checkLeaders()
	c.checkRefusals()
	for _, id := range c.up() {
		if err := c.nodes[id].srv.kv.Sound(); err != nil {
			c.t.Errorf("node %d: %v", id, err)
		}
		c.undoubted(c.nodes[id])
	}
	if !porcupine.CheckOperations(history.Model, c.history) {
		c.t.Errorf("the history of %d operations is not linearizable", len(c.history))
	}
	for _, id := range c.up() {
		if n := c.nodes[id]; n.err != nil {
			c.t.Errorf("node %d: %v", id, n.err)
		}
	}
}

// readAll reads every key of the history on every node.
func (c *simCluster) readAll() {
	keys := make(map[string]bool)
	for _, op := range c.history {
		keys[op.Input.(history.Input).Key] = true
	}
	for key := range keys {
		for _, id := range c.up() {
			c.await("a read of "+key, func() bool {
				res, _ := c.do(1000, id, history.Input{Kind: history.Get, Key: key})
				return res.Err == nil
			})
		}
	}
}

// gone reports whether a node was removed, as any running node knows.
func (c *simCluster) gone(id uint64) bool {
	for _, up := range c.up() {
		if c.nodes[up].srv.kv.isRemoved(id) {
			return true
		}
	}
	return false
}
