//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/sim"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// changeFor is change with the ID that the answer names.
func (c *simCluster) changeFor(via uint64, r reconfig.Request) (uint64, error) {
	return c.Nodes[via].Life.members.Change(context.Background(), r)
}

// mustChange is change for what must succeed.
func (c *simCluster) mustChange(via uint64, r reconfig.Request) {
	c.T.Helper()
	if err := c.change(via, r); err != nil {
		c.T.Fatalf("%+v via node %d: %v\n%s", r, via, err, c.Describe())
	}
}

// member is what a node knows of a member, its ID 0 if it knows none.
func (c *simCluster) member(via, id uint64) membership.Member {
	m, _ := c.Nodes[via].Life.kv.Membership()
	return m.Members[id]
}

// awaitState waits until a node that joins has got the state.
func (c *simCluster) awaitState(id uint64) {
	c.T.Helper()
	c.Await("the state on a joining node", func() bool { return c.Nodes[id].Life.kv.applied.Get() > 0 })
}

// freshURL is one that no node of the test has.
func freshURL(n int) string { return fmt.Sprintf("http://10.1.0.%d:2380", n) }

// Without an ID a new member gets the next free one, those removed not counted
// as free, however many ask at once and on whichever node.
func TestSimNextFreeID(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.mustChange(c.Leader(), reconfig.Request{Op: membership.OpAdd, ID: 7, PeerURL: freshURL(7)})
		c.mustChange(1, reconfig.Request{Op: membership.OpRemove, ID: 7})
		var mu sync.Mutex
		var ids []uint64
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				id, err := c.changeFor(uint64(i%3+1), reconfig.Request{Op: membership.OpAddLearner, PeerURL: freshURL(10 + i)})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || c.member(uint64(i%3+1), id).PeerURL != freshURL(10+i) {
					t.Errorf("add %d got ID %d, %v", i, id, err)
				}
				ids = append(ids, id)
			})
		}
		wg.Wait()
		slices.Sort(ids)
		if !slices.Equal(ids, []uint64{8, 9, 10, 11, 12, 13}) {
			t.Errorf("the IDs are %v", ids)
		}
		if _, err := c.changeFor(1, reconfig.Request{Op: membership.OpAdd, PeerURL: freshURL(10)}); !errors.Is(err, problem.ErrMemberExists) {
			t.Errorf("a URL that a member has: %v", err)
		}
	})
}

// A request whose answer was lost is tried again, and still adds one member.
func TestSimAnswerLost(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		via := c.Followers()[0]
		ms := c.Nodes[via].Life.members
		ask, lost := ms.Ask, 0
		ms.Ask = func(ctx context.Context, url string, cluster uint64, r reconfig.Request) (reconfig.Reply, error) {
			reply, err := ask(ctx, url, cluster, r)
			if lost++; lost <= 2 {
				return reconfig.Reply{}, errors.New("lost")
			}
			return reply, err
		}
		for _, op := range []membership.Op{membership.OpAdd, membership.OpAddVoter, membership.OpAddLearner} {
			lost = 0
			id, err := c.changeFor(via, reconfig.Request{Op: op, PeerURL: freshURL(int(op))})
			if err != nil || c.member(via, id).PeerURL != freshURL(int(op)) {
				t.Errorf("%v: ID %d, %v", op, id, err)
			}
			c.mustChange(via, reconfig.Request{Op: membership.OpRemove, ID: id, Force: true})
		}
		if m, _ := c.Nodes[via].Life.kv.Membership(); len(m.Removed) != 3 || len(m.Members) != 3 {
			t.Errorf("members %+v, removed %v", m.Sorted(), m.Removed)
		}
	})
}

// A leader that dies in the middle of additions costs time, and adds nobody
// twice.
func TestSimLeaderCrashWhileAdding(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		for round := range 6 {
			leader := c.Leader()
			via := c.Followers()
			type answer struct {
				url string
				id  uint64
				err error
			}
			answers := make(chan answer)
			for i, node := range via {
				go func() {
					url := freshURL(10*round + i)
					id, err := c.changeFor(node, reconfig.Request{Op: membership.OpAddLearner, PeerURL: url})
					answers <- answer{url, id, err}
				}()
			}
			time.Sleep(time.Duration(c.Rng.Int64N(int64(12 * time.Millisecond))))
			c.Crash(leader)
			for range via {
				if a := <-answers; a.err != nil || c.member(via[0], a.id).PeerURL != a.url && c.member(via[1], a.id).PeerURL != a.url {
					t.Errorf("round %d: adding %s gave ID %d, %v", round, a.url, a.id, a.err)
				}
			}
			c.Start(leader)
			c.Put(c.Leader(), "k", c.Value())
			m, _ := c.Nodes[c.Leader()].Life.kv.Membership()
			if want := 3 + 2*(round+1); len(m.Members) != want {
				c.T.Fatalf("round %d: %d members, want %d: %+v", round, len(m.Members), want, m.Sorted())
			}
		}
	})
}

// A learner that was added as one stays one: over restarts, snapshots and
// changes of leader, until a person makes it a voter.
func TestSimPinnedLearner(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.mustChange(c.Leader(), reconfig.Request{Op: membership.OpAddLearner, ID: 4, PeerURL: sim.URL(4)})
		c.Join(4)
		c.mustChange(c.Leader(), addRequest(5))
		c.Join(5)
		c.awaitVoter(c.Leader(), 5) // by then 4 could have been one
		for range 40 {
			c.Put(c.Leader(), "k", c.Value())
		}
		for id := range uint64(5) {
			c.Crash(id + 1)
		}
		for id := range uint64(5) {
			c.Start(id + 1)
		}
		old := c.Leader()
		c.Crash(old)
		c.Put(c.Leader(), "k", c.Value())
		c.Start(old)
		time.Sleep(20 * time.Second)
		for _, id := range c.Up() {
			if mem := c.member(id, 4); !mem.Learner || !mem.Pinned {
				t.Errorf("node %d has node 4 as %+v", id, mem)
			}
		}
		c.Put(4, "k", c.Value())
		if view := c.Nodes[4].Life.members.View(context.Background()); !view[4].Reachable || !view[c.Leader()].Reachable {
			t.Errorf("on a learner, the leader's view is %+v", view)
		}
		c.mustChange(4, reconfig.Request{Op: membership.OpMakeVoter, ID: 4})
		c.awaitVoter(4, 4)
	})
}

// Roles change both ways; a leader that is to be a learner hands over first;
// each refusal says which and changes nothing.
func TestSimRoles(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		first := c.Leader()
		c.mustChange(first, reconfig.Request{Op: membership.OpMakeLearner, ID: first})
		if c.Leader() == first || !c.member(first, first).Pinned {
			t.Errorf("the former leader is %+v, the leader %d", c.member(first, first), c.Leader())
		}
		c.Put(first, "k", c.Value())
		second := c.Leader()
		third := 6 - first - second
		c.mustChange(first, reconfig.Request{Op: membership.OpMakeLearner, ID: third})
		c.mustChange(first, reconfig.Request{Op: membership.OpMakeLearner, ID: third})
		for _, force := range []bool{false, true} {
			if err := c.change(third, reconfig.Request{Op: membership.OpMakeLearner, ID: second, Force: force}); !errors.Is(err, problem.ErrLastVoter) {
				t.Errorf("the last voter as a learner: %v", err)
			}
		}
		for _, op := range []membership.Op{membership.OpMakeVoter, membership.OpMakeLearner, membership.OpMove} {
			if err := c.change(first, reconfig.Request{Op: op, ID: 9, PeerURL: freshURL(9)}); problem.CodeOf(err) != "not_found" {
				t.Errorf("%v of nobody: %v", op, err)
			}
		}
		// A learner that is down: one voter of two would be reachable.
		c.Crash(third)
		time.Sleep(2 * time.Second)
		if err := c.change(second, reconfig.Request{Op: membership.OpMakeVoter, ID: third}); !errors.Is(err, problem.ErrWouldLose) {
			t.Errorf("a learner that is down as the second voter: %v", err)
		}
		c.mustChange(second, reconfig.Request{Op: membership.OpMakeVoter, ID: first})
		c.mustChange(second, reconfig.Request{Op: membership.OpMakeVoter, ID: third}) // two of three are
		c.mustChange(second, reconfig.Request{Op: membership.OpMakeLearner, ID: third})
		c.Start(third)
		c.mustChange(third, reconfig.Request{Op: membership.OpMakeVoter, ID: third})
		c.Put(third, "k", c.Value())
	})
}

// A voter that is added at once counts at once, so it may cost the majority.
func TestSimAddVoter(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.Leader()
		r := reconfig.Request{Op: membership.OpAddVoter, ID: 2, PeerURL: sim.URL(2)}
		if err := c.change(1, r); !errors.Is(err, problem.ErrWouldLose) {
			t.Errorf("a second voter that is not up: %v", err)
		}
		r.Force = true
		c.mustChange(1, r)
		c.Join(2)
		c.awaitVoter(2, 2)
		c.awaitState(2)
		c.Put(2, "k", c.Value())
		c.mustChange(2, reconfig.Request{Op: membership.OpAddVoter, PeerURL: sim.URL(3), Force: true})
		c.Join(3)
		c.awaitVoter(3, 3)
		c.awaitState(3)
		c.Put(3, "k", c.Value())
	})
}

// Leadership goes where it is asked to, from any node, and to nobody that
// cannot lead.
func TestSimMoveLeadership(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.mustChange(c.Leader(), reconfig.Request{Op: membership.OpAddLearner, ID: 4, PeerURL: sim.URL(4)})
		c.Join(4)
		c.awaitState(4)
		for to := range uint64(3) {
			for _, via := range []uint64{4, 1, 2, 3} {
				id, err := c.changeFor(via, reconfig.Request{Op: membership.OpLead, ID: to + 1})
				leader, _, _ := c.Nodes[via].Life.node.leaders.Get()
				if err != nil || id != to+1 || leader != to+1 {
					c.T.Fatalf("to %d via %d: %d, %v; it follows %d", to+1, via, id, err, leader)
				}
			}
		}
		if id, err := c.changeFor(4, reconfig.Request{Op: membership.OpLead}); err != nil || id == 3 || id == 0 || id == 4 {
			t.Errorf("to the best: %d, %v", id, err)
		}
		leader := c.Leader()
		for want, id := range map[string]uint64{"not_voter": 4, "not_found": 9} {
			if _, err := c.changeFor(4, reconfig.Request{Op: membership.OpLead, ID: id}); problem.CodeOf(err) != want {
				t.Errorf("to %d: %v, want %s", id, err, want)
			}
		}
		down := c.Followers()[0]
		c.Crash(down)
		time.Sleep(2 * time.Second)
		began := time.Now()
		if _, err := c.changeFor(leader, reconfig.Request{Op: membership.OpLead, ID: down}); !errors.Is(err, problem.ErrNotHandedOver) || time.Since(began) > 2*time.Second {
			t.Errorf("to a node that is down: %v after %v", err, time.Since(began))
		}
		c.Put(leader, "k", c.Value())
	})
}

// When leadership stays, the log says why once, beside what follows from it.
func TestSimHandOverFails(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		for _, tt := range []struct {
			message string
			fails   func(s *server)
		}{
			{"a membership change waits for another leader", func(s *server) {
				if err := s.members.HandOver(context.Background()); !errors.Is(err, problem.ErrNoLeader) {
					t.Errorf("handing over: %v", err)
				}
			}},
			{"stopping without a successor", func(s *server) { s.drain(&stoppableListener{server: &http.Server{}}) }},
		} {
			leader := c.Leader()
			core, logs := observer.New(zap.InfoLevel)
			s, ms := *c.Nodes[leader].Life, *c.Nodes[leader].Life.members
			s.log, ms.Log, s.members = zap.New(core), zap.New(core), &ms
			c.Net.Isolate(leader, c.Followers()...)
			tt.fails(&s)
			got := logs.All()
			if len(got) != 1 || got[0].Message != tt.message {
				t.Fatalf("logged: %+v, want %q", got, tt.message)
			}
			if why := got[0].ContextMap()["error"]; why != "leadership was not handed over within one election timeout" {
				t.Errorf("%s: %v", tt.message, why)
			}
			c.Net.Heal()
			c.Put(leader, "k", c.Value())
		}
	})
}

// Many ask for different leaders at once, while members change and one leader
// dies: each gets an answer, and the cluster goes on.
func TestSimLeadershipFoughtOver(t *testing.T) {
	simulate(t, 5, func(c *simCluster) {
		c.Leader()
		var wg sync.WaitGroup
		nodes := make(map[uint64]*server)
		for id, n := range c.Nodes {
			nodes[id] = n.Life
		}
		for i := range uint64(5) {
			wg.Go(func() {
				for to := range uint64(5) {
					id, err := nodes[i+1].members.Change(context.Background(), reconfig.Request{Op: membership.OpLead, ID: (to+i)%5 + 1})
					if err == nil && id != (to+i)%5+1 {
						t.Errorf("asked for %d, got %d", (to+i)%5+1, id)
					}
				}
			})
			wg.Go(func() {
				_, err := nodes[i+1].members.Change(context.Background(), reconfig.Request{Op: membership.OpAddLearner, PeerURL: freshURL(int(i))})
				if err != nil && problem.Of(err).Status < 500 && !errors.Is(err, problem.ErrInProgress) {
					t.Errorf("adding: %v", err)
				}
			})
		}
		time.Sleep(30 * time.Millisecond)
		victim := c.Leader()
		c.Crash(victim)
		wg.Wait()
		c.Start(victim)
	})
}

// Guarantee: a node that leads between the change of its peer URL and its restart there, so
// that nobody can ask it, does not stop the cluster: the others follow another one, which
// commits, and it takes part as before once it has moved.
func TestSimMovedLeads(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		id := c.Followers()[0]
		other := id%3 + 1
		c.Put(other, "k", c.Value())
		c.mustChange(c.Leader(), reconfig.Request{Op: membership.OpMove, ID: id, PeerURL: freshURL(1)})
		began := time.Now()
		if err := c.change(other, reconfig.Request{Op: membership.OpLead, ID: id}); err != nil {
			t.Fatal(err)
		}
		for {
			res, _ := c.Do(1, other, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
			if res.Err == nil {
				break
			}
			if took := time.Since(began); took > time.Minute {
				t.Fatalf("nothing is committed for %v: %v", took, res.Err)
			}
		}
		t.Logf("a write took %v", time.Since(began))
		c.Crash(id)
		c.Nodes[id].URL = freshURL(1)
		c.Start(id)
		v := c.Value()
		c.Put(id, "k", v)
		c.Want(id, "k", v)
	})
}

// A member's peer URL changes; every node knows it, and the leader hands over
// before it is told to move.
func TestSimMovePeer(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		for i, id := range []uint64{c.Followers()[0], leader} {
			if err := c.change(c.Followers()[1], reconfig.Request{Op: membership.OpMove, ID: id, PeerURL: c.member(leader, id%3+1).PeerURL}); !errors.Is(err, problem.ErrMemberExists) {
				t.Errorf("to another's URL: %v", err)
			}
			for range 2 { // again is no change
				c.mustChange(leader, reconfig.Request{Op: membership.OpMove, ID: id, PeerURL: freshURL(i)})
			}
			if l := c.Leader(); l == id {
				t.Errorf("node %d still leads", id)
			}
			c.Put(id, "k", c.Value())
			c.Crash(id)
			c.Nodes[id].URL = freshURL(i)
			c.Start(id)
			v := c.Value()
			c.Put(id, "k", v)
			for _, via := range c.Up() {
				c.Want(via, "k", v)
				if mem := c.member(via, id); mem.PeerURL != freshURL(i) || mem.Learner {
					t.Errorf("node %d has %+v", via, mem)
				}
			}
			leader = c.Leader()
		}
	})
}

// From three nodes to five and back to three, every first node replaced, under
// load: clients that go to the next node see no failed request.
func TestSimReplaceEveryNode(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		load := c.StartLoad(8)
		for id := uint64(4); id <= 5; id++ {
			c.mustChange(c.Followers()[0], addRequest(id))
			c.Lives.Lock()
			c.Join(id)
			c.Lives.Unlock()
			c.awaitVoter(id, id)
		}
		for old := uint64(1); old <= 3; old++ {
			if old == 3 {
				c.mustChange(c.Followers()[0], addRequest(6))
				c.Lives.Lock()
				c.Join(6)
				c.Lives.Unlock()
				c.awaitVoter(6, 6)
			}
			c.mustChange(c.Followers()[0], reconfig.Request{Op: membership.OpRemove, ID: old})
			if err := <-c.EndOf(old); !errors.Is(err, problem.ErrRemoved) {
				t.Errorf("node %d ended with: %v", old, err)
			}
			c.Lives.Lock()
			_ = c.Ended(old)
			c.Lives.Unlock()
		}
		load.Finish()
		m, _ := c.Nodes[4].Life.kv.Membership()
		if !slices.Equal(m.Voters(), []uint64{4, 5, 6}) {
			t.Errorf("voters %v", m.Voters())
		}
	})
}

// Any changes, on any node, over a bad network and with nodes that crash: what
// each node has of the members is what raft has, and equal in the end; an
// answer that names an ID is true.
func TestSimChangesUnderFaults(t *testing.T) {
	simulate(t, 5, func(c *simCluster) {
		c.Put(c.Leader(), "k", c.Value())
		c.Net.Disturb(0.05, 0.05, 20*time.Millisecond)
		var wg sync.WaitGroup
		for i := range uint64(4) {
			rng := rand.New(rand.NewPCG(c.Seed, i))
			wg.Go(func() {
				for n := range 15 {
					c.Lives.Lock()
					up := c.Up()
					srv := c.Nodes[up[rng.IntN(len(up))]].Life
					c.Lives.Unlock()
					r := randomRequest(rng, srv, fmt.Sprintf("http://10.2.%d.%d:2380", i, n))
					id, err := srv.members.Change(context.Background(), r)
					if m, _ := srv.kv.Membership(); err == nil && r.Op.Adds() && m.Members[id].PeerURL != r.PeerURL && !m.Removed[id] {
						t.Errorf("%+v: added as %d, which is %+v", r, id, m.Members[id])
					}
					if err != nil && problem.CodeOf(err) == "internal" {
						t.Errorf("%+v: %v", r, err)
					}
				}
			})
		}
		for range 6 {
			time.Sleep(time.Duration(c.Rng.Int64N(int64(3 * time.Second))))
			victim := uint64(c.Rng.Int64N(5)) + 1
			c.Lives.Lock()
			c.Crash(victim)
			c.Start(victim)
			c.Lives.Unlock()
		}
		wg.Wait()
		c.Net.Heal()
		m, _ := c.Nodes[c.Leader()].Life.kv.Membership()
		urls := make(map[string]bool)
		for _, mem := range m.Sorted() {
			if urls[mem.PeerURL] {
				t.Errorf("two members are at %s: %+v", mem.PeerURL, m.Sorted())
			}
			urls[mem.PeerURL] = true
		}
	})
}

// randomRequest returns any request that leaves the five nodes of a test in the
// cluster, where they are.
func randomRequest(rng *rand.Rand, srv *server, url string) reconfig.Request {
	m, _ := srv.kv.Membership()
	first := uint64(rng.IntN(5) + 1)
	added := membership.SortedKeys(m.Members)
	other := added[rng.IntN(len(added))]
	switch rng.IntN(6) {
	case 0:
		return reconfig.Request{Op: membership.OpMakeLearner, ID: first}
	case 1:
		return reconfig.Request{Op: membership.OpLead, ID: uint64(rng.IntN(6))}
	case 2:
		return reconfig.Request{Op: membership.OpMakeVoter, ID: first}
	case 3:
		if other > 5 {
			return reconfig.Request{Op: membership.OpMove, ID: other, PeerURL: url}
		}
	case 4:
		if other > 5 {
			return reconfig.Request{Op: membership.OpRemove, ID: other}
		}
	}
	return reconfig.Request{Op: membership.OpAddLearner, PeerURL: url}
}

// What a node that is removed says did not happen never does: the history, which
// leaves it out, is linearizable.
func TestSimRequestsOfARemovedNode(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		for _, id := range []uint64{c.Leader(), c.Followers()[0]} {
			srv := c.Nodes[id].Life
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for {
						res, _ := c.DoOn(i, srv, history.Input{Kind: history.Put, Key: fmt.Sprint("k", i), Value: c.Value()})
						if res.Err == nil {
							time.Sleep(time.Millisecond)
							continue
						}
						// Unknown is left to a node that did not get its own
						// removal: this network lets messages overtake.
						if !errors.Is(res.Err, problem.ErrStopping) && !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
							t.Errorf("node %d: %v", id, res.Err)
						}
						return
					}
				})
			}
			time.Sleep(20 * time.Millisecond)
			other := id%3 + 1
			if c.Nodes[other].Life == nil {
				other = other%3 + 1
			}
			c.mustChange(other, reconfig.Request{Op: membership.OpRemove, ID: id})
			wg.Wait()
			if err := c.Ended(id); !errors.Is(err, problem.ErrRemoved) {
				t.Errorf("node %d ended with: %v", id, err)
			}
			for _, up := range c.Up() {
				for i := range 8 {
					c.Do(1000, up, history.Input{Kind: history.Get, Key: fmt.Sprint("k", i)})
				}
			}
		}
	})
}
