//go:build unix

package main

import (
	"context"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/sim"
	"raftkv/internal/suspect"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Guarantee: a leader that was cut off, and asks the others before it hears that another
// one leads, accuses nobody and is not accused, though its log ends with entries that
// the others have not. New connections get through a link that has healed before those
// that were open send again, so its questions come first.
func TestSimDeposedLeaderAsks(t *testing.T) {
	for name, tt := range map[string]struct {
		writes int  // on the other side; the leader has four entries of its own
		alone  bool // the third voter is down when it asks
	}{
		"the others have less":      {1, false},
		"the others have more":      {30, false},
		"one has less, one is down": {1, true},
		"one has more, one is down": {30, true},
	} {
		t.Run(name, func(t *testing.T) {
			var asked askedLeaders
			patient := func(cfg *config.Config) { cfg.ElectionTimeout = 10 * time.Second }
			set := func(c *simCluster) { c.tweak, c.wire = patient, asked.count }
			simulateSet(t, 3, set, func(c *simCluster) { simDeposed(c, &asked, tt.writes, tt.alone) })
		})
	}
}

// askedLeaders counts the answers that leaders got from nodes of a later term, and
// those that nodes got from a leader of an earlier one.
type askedLeaders struct{ byDeposed, ofDeposed atomic.Int64 }

// count has a node's answers counted.
func (a *askedLeaders) count(srv *server) {
	ask := srv.node.doubts.AskStand
	srv.node.doubts.AskStand = func(ctx context.Context, url string, node, index uint64) (suspect.Stand, error) {
		answer, err := ask(ctx, url, node, index)
		switch st := srv.node.status.Load(); {
		case err != nil:
		case st.Role == raft.StateLeader && answer.Term > st.Term:
			a.byDeposed.Add(1)
		case answer.Leads && answer.Term < st.Term:
			a.ofDeposed.Add(1)
		}
		return answer, err
	}
}

func simDeposed(c *simCluster, asked *askedLeaders, writes int, alone bool) {
	const (
		looks = 3 // at the second one a dispute would begin
		tail  = 4
	)
	deposed := c.Leader()
	c.named()
	c.Put(deposed, "base", c.Value())
	successor, third := c.Followers()[0], c.Followers()[1]
	srv := c.Nodes[deposed].Life
	var term, last uint64
	c.Await("the others to have all", func() bool { // or the successor might not be elected
		term, last = srv.node.status.Load().Term, lastInLog(c.T, srv)
		return lastInLog(c.T, c.Nodes[successor].Life) == last && lastInLog(c.T, c.Nodes[third].Life) == last
	})
	c.Net.Isolate(deposed, successor, third)
	var clients sync.WaitGroup
	full := strings.Repeat("x", 256<<10) // a batch that does not wait for the one before
	for i := range tail {
		clients.Go(func() { c.DoOn(10+i, srv, history.Input{Kind: history.Put, Key: "tail", Value: c.Value() + full}) })
		c.Await("the entry", func() bool { return lastInLog(c.T, srv) > last+uint64(i) })
	}
	// It had begun to hand over when the link broke.
	over := &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(deposed), To: new(successor), Term: new(term)}
	testkit.Must(c.T, c.Nodes[successor].Life.node.Process(context.Background(), over))
	c.Await("its successor to lead", func() bool { return c.Nodes[successor].Life.node.status.Load().Role == raft.StateLeader })
	for range writes {
		c.Put(successor, "k", c.Value())
	}
	if alone {
		c.Crash(third)
	}
	c.Net.Heal()
	c.Net.Disturb(1, 0, sim.Delay) // no message passes, but questions do
	for range looks {
		time.Sleep(time.Second) // the least time between two questions
		for _, id := range c.Up() {
			c.Nodes[id].Life.MeetAgain()
		}
	}
	time.Sleep(time.Second / 2)
	if st := srv.node.status.Load(); st.Role != raft.StateLeader || st.Term != term {
		c.T.Errorf("it is %v in term %d, and was to lead in term %d: this tests nothing", st.Role, st.Term, term)
	}
	if has, others := lastInLog(c.T, srv), c.Nodes[successor].Life.kv.applied.Get(); (has < others) != (writes > tail) {
		c.T.Errorf("its log ends at %d, and the others have applied %d: this tests something else", has, others)
	}
	if by, of := asked.byDeposed.Load(), asked.ofDeposed.Load(); by < looks || of < looks {
		c.T.Errorf("it got %d answers, and gave %d: this tests nothing", by, of)
	}
	wantNobodyAccused(c)
	c.Net.Heal()
	if alone {
		c.Start(third)
	}
	clients.Wait()
	c.Await("it to follow", func() bool { return srv.Leader() == successor })
	c.Put(deposed, "k", c.Value())
	wantNobodyAccused(c)
}

// wantNobodyAccused checks that every running node serves, as far as histories go.
func wantNobodyAccused(c *simCluster) {
	c.T.Helper()
	for _, id := range c.Up() {
		if s := c.Nodes[id].Life.status(); s.Diverged || s.Disputed {
			c.T.Errorf("node %d: diverged: %t, disputed: %t", id, s.Diverged, s.Disputed)
		}
	}
}

// lastInLog is the last entry of a node's log on disk.
func lastInLog(t testing.TB, srv *server) uint64 {
	t.Helper()
	last, err := srv.storage.Mem.LastIndex()
	testkit.Must(t, err)
	return last
}
