//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"raftkv/internal/entry"
	"raftkv/internal/peerport"
	"raftkv/internal/refusal"
	"raftkv/internal/rounds"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/suspect"
	"raftkv/internal/testkit"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// target is a node as a forger knows it: everyone who reaches the peer port can
// find that out.
type target struct {
	srv                *server
	id, peer           uint64 // peer: a member that it hears, the leader if it is none
	other              uint64 // another member
	term               uint64
	last, lastTerm     uint64
	committed, applied uint64
}

// aim returns a running node as a target.
func (c *simCluster) aim(id uint64) target {
	c.T.Helper()
	tg := target{srv: c.Nodes[id].Life, id: id}
	for _, other := range []uint64{1, 2, 3} {
		if other != id {
			tg.peer, tg.other = other, tg.peer
		}
	}
	err := tg.srv.node.call(context.Background(), func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		tg.term, tg.committed, tg.applied = st.GetTerm(), st.GetCommit(), st.Applied
		if st.Lead != raft.None && st.Lead != id && st.Lead != tg.peer {
			tg.peer, tg.other = st.Lead, tg.peer
		}
	})
	last, lerr := tg.srv.storage.Mem.LastIndex()
	lastTerm, terr := tg.srv.storage.Mem.Term(last)
	if err := errors.Join(err, lerr, terr); err != nil {
		c.T.Fatal(err)
	}
	tg.last, tg.lastTerm = last, lastTerm
	return tg
}

// message is one from the target's peer in the target's term.
func (tg target) message(typ raftpb.MessageType) *raftpb.Message {
	return &raftpb.Message{Type: typ.Enum(), To: new(tg.id), From: new(tg.peer), Term: new(tg.term)}
}

// strike has the target take a message as from the network, and reports whether
// it lives on.
func (tg target) strike(m *raftpb.Message) (err error, alive bool) {
	sent := new(raftpb.Message)
	if b, merr := proto.Marshal(m); merr != nil || proto.Unmarshal(b, sent) != nil {
		return merr, true
	}
	err = tg.srv.node.Process(context.Background(), sent)
	synctest.Wait()
	return err, tg.srv.life.Err() == nil
}

func entryOf(index, term uint64) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(term)}
}

func round(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// Guarantee: no message that a stranger can write makes raft panic, which would
// end the node. Each of these does, when it gets to raft; the ones about
// terms leave a cluster that elects nobody for ever. The cluster goes on as if
// nothing had come.
func TestSimHostileMessages(t *testing.T) {
	cases := map[string]struct {
		kind  refusal.Kind
		forge func(tg target) []*raftpb.Message
	}{
		"proposal of nothing": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgProp)
			m.Term = nil
			return []*raftpb.Message{m}
		}},
		"proposal with a term": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgProp)
			m.Entries = []*raftpb.Entry{{Data: putBatch("k", "v")}}
			return []*raftpb.Message{m}
		}},
		"read with a term": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgReadIndex)
			m.Entries = []*raftpb.Entry{{Data: []byte("context")}}
			return []*raftpb.Message{m}
		}},
		"read of nothing": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgReadIndex)
			m.Term = nil
			return []*raftpb.Message{m}
		}},
		"from itself": {refusal.RefusedAddress, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgHeartbeat)
			m.From = new(tg.id)
			vote := tg.message(raftpb.MsgVote)
			vote.From, vote.Term = new(tg.id), new(tg.term+1)
			return []*raftpb.Message{m, vote}
		}},
		"leadership passed on": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			return []*raftpb.Message{tg.message(raftpb.MsgTransferLeader)}
		}},
		"leader forgotten": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			return []*raftpb.Message{tg.message(raftpb.MsgForgetLeader)}
		}},
		"vote without a term": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			var ms []*raftpb.Message
			for _, from := range []uint64{tg.peer, tg.other} { // one of them may be who it voted for
				m := tg.message(raftpb.MsgVote)
				m.From, m.Term, m.LogTerm, m.Index = new(from), nil, new(tg.lastTerm+1), new(tg.last)
				ms = append(ms, m)
			}
			return ms
		}},
		"short round": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgHeartbeatResp)
			m.Context = []byte{1, 2, 3}
			return []*raftpb.Message{m}
		}},
		"round that was not begun": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			var ms []*raftpb.Message
			for _, from := range []uint64{tg.peer, tg.other} {
				m := tg.message(raftpb.MsgHeartbeatResp)
				m.From, m.Context = new(from), round(math.MaxUint64)
				ms = append(ms, m)
			}
			return ms
		}},
		"entries with a gap": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgApp)
			m.Index, m.LogTerm = new(tg.last), new(tg.lastTerm)
			m.Entries = []*raftpb.Entry{entryOf(tg.last+5, tg.term)}
			return []*raftpb.Message{m}
		}},
		"entries that go back": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgApp)
			m.Index, m.LogTerm = new(tg.last), new(tg.lastTerm)
			m.Entries = []*raftpb.Entry{entryOf(tg.committed, tg.lastTerm+1)}
			return []*raftpb.Message{m}
		}},
		"entry of a later term": {refusal.RefusedMalformed, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgApp)
			m.Index, m.LogTerm = new(tg.last), new(tg.lastTerm)
			m.Entries = []*raftpb.Entry{entryOf(tg.last+1, math.MaxUint64)}
			return []*raftpb.Message{m}
		}},
		"last term": {refusal.RefusedTerm, func(tg target) []*raftpb.Message {
			var ms []*raftpb.Message
			for _, typ := range []raftpb.MessageType{
				raftpb.MsgHeartbeat, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp,
				raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow, raftpb.MsgHeartbeatResp,
			} {
				m := tg.message(typ)
				m.Term, m.Reject = new(uint64(math.MaxUint64)), new(true)
				ms = append(ms, m)
			}
			return ms
		}},
		"commit beyond the log": {refusal.RefusedContradiction, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgHeartbeat)
			m.Commit = new(uint64(1e9))
			return []*raftpb.Message{m}
		}},
		"acknowledgement beyond the log": {refusal.RefusedContradiction, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgAppResp)
			m.Index = new(uint64(1e9))
			return []*raftpb.Message{m}
		}},
		"leap of a term": {refusal.RefusedTerm, func(tg target) []*raftpb.Message {
			m := tg.message(raftpb.MsgHeartbeat)
			m.Term = new(tg.term + peerport.MaxTermLeap + 1)
			return []*raftpb.Message{m}
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.Attacked = true
				c.Put(c.Leader(), "k", c.Value())
				leader := c.Leader()
				for _, id := range c.Up() {
					tg := c.aim(id)
					for _, m := range tc.forge(tg) {
						before := c.Refusals(tc.kind)
						err, alive := tg.strike(m)
						if !alive {
							c.T.Fatalf("node %d, leader %d, ended: %v", id, leader, tg.srv.group.Wait())
						}
						// What raft would not look at in this node's role may pass.
						looks := map[raftpb.MessageType]bool{
							raftpb.MsgHeartbeatResp: id == leader || tc.kind != refusal.RefusedMalformed || name == "short round",
							raftpb.MsgAppResp:       id == leader || tc.kind != refusal.RefusedContradiction,
							raftpb.MsgHeartbeat:     id != leader || tc.kind != refusal.RefusedContradiction,
						}
						role, has := looks[m.GetType()]
						if now := c.Refusals(tc.kind); now == before && (role || !has) {
							t.Errorf("node %d took %v: %v", id, m, err)
						}
					}
				}
				if now := c.Leader(); now != leader {
					t.Errorf("leader %d became %d", leader, now)
				}
			})
		})
	}
}

// putBatch is the entry of a batch of one write, of a node that is none.
func putBatch(key, value string) []byte {
	return entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 9, Boot: 1}), state.EncodeWrite(state.KindPut, state.Condition{}, key, []byte(value)))
}

// Guarantee: a snapshot whose message gives it other members than its state has,
// or members that are no configuration, is refused and leaves no file.
func TestSimHostileSnapshot(t *testing.T) {
	members := func(voters []uint64, more func(*raftpb.ConfState)) *raftpb.ConfState {
		cs := &raftpb.ConfState{Voters: voters}
		if more != nil {
			more(cs)
		}
		return cs
	}
	cases := map[string]*raftpb.ConfState{
		"nobody":          members(nil, nil),
		"one twice":       members([]uint64{1, 1, 2, 3}, nil),
		"voter, learner":  members([]uint64{1, 2, 3}, func(cs *raftpb.ConfState) { cs.Learners = []uint64{3} }),
		"joint":           members([]uint64{1, 2, 3}, func(cs *raftpb.ConfState) { cs.VotersOutgoing = []uint64{1, 2} }),
		"to be learners":  members([]uint64{1, 2, 3}, func(cs *raftpb.ConfState) { cs.LearnersNext = []uint64{2} }),
		"to be left":      members([]uint64{1, 2, 3}, func(cs *raftpb.ConfState) { cs.AutoLeave = new(true) }),
		"ID 0":            members([]uint64{0, 1, 2, 3}, nil),
		"not the state's": members([]uint64{1, 2, 3, 4}, nil),
	}
	for name, cs := range cases {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.Attacked = true
				c.Put(c.Leader(), "k", c.Value())
				id := c.Followers()[0]
				tg := c.aim(id)
				tg.srv.kv.mu.Lock()
				st := tg.srv.kv.state.Copy()
				tg.srv.kv.mu.Unlock()
				st.Index, st.Term = tg.last+100, tg.term
				var file bytes.Buffer
				testkit.Must(t, state.Write(&file, st))
				before := testkit.SnapFiles(t, tg.srv.cfg.DataDir)
				_, err := tg.srv.node.inbox.SaveDBFrom(&file, st.Index)
				testkit.Must(t, err)
				m := tg.message(raftpb.MsgSnap)
				m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(st.Index), Term: new(st.Term), ConfState: cs}}
				err, alive := tg.strike(m)
				if !alive {
					c.T.Fatalf("node %d ended: %v", id, tg.srv.group.Wait())
				}
				if err == nil {
					c.T.Fatal("it was taken")
				}
				if after := testkit.SnapFiles(t, tg.srv.cfg.DataDir); len(after) != len(before) {
					t.Errorf("in snap/: %v, before: %v", after, before)
				}
			})
		})
	}
}

// forger makes messages out of bytes, so that a fuzzer steers what it makes:
// mostly such as the target might take, of fields that lie about where its own
// are.
type forger struct {
	data []byte
}

func (f *forger) byte() byte {
	if len(f.data) == 0 {
		return 0
	}
	b := f.data[0]
	f.data = f.data[1:]
	return b
}

// near returns a number about one of bases, or one far away from all.
func (f *forger) near(bases ...uint64) uint64 {
	b := f.byte()
	switch {
	case b >= 250:
		return math.MaxUint64 - uint64(b-250)
	case b >= 240:
		return uint64(b - 240)
	}
	offsets := [8]uint64{0, 0, 0, 0, 1, math.MaxUint64, 2, math.MaxUint64 - 1} // mostly none
	return bases[int(b)%len(bases)] + offsets[b>>4%8]
}

func (f *forger) bytes(n int) []byte {
	var b []byte
	for range n {
		b = append(b, f.byte())
	}
	return b
}

// entries are what no node stops at: a new command would tell it to, and a
// membership change has to fit the state.
func (f *forger) entries(tg target, first uint64) (entries []*raftpb.Entry) {
	index := first
	for range f.byte() % 5 {
		e := entryOf(index, f.near(tg.term, tg.lastTerm))
		switch b := f.byte() % 8; {
		case b < 4:
			e.Data = putBatch("forged", "value")
		case b < 6:
			e.Data = nil
		case b == 6:
			e.Index = new(f.near(index, tg.committed))
		default:
			e.Data = putBatch("forged", "cut")[:4]
		}
		entries = append(entries, e)
		index++
	}
	return entries
}

// message makes one.
func (f *forger) message(tg target) *raftpb.Message {
	typ := raftpb.MessageType(f.byte() % 26)
	if peerport.PeerMessages[typ] == nil { // less often what is refused for its type alone, or is never wrong
		typ = raftpb.MessageType(f.byte() % 26)
	}
	termless := typ == raftpb.MsgProp || typ == raftpb.MsgReadIndex
	m := &raftpb.Message{
		Type: typ.Enum(), To: new(tg.id), From: new(tg.peer),
		Term: new(f.near(tg.term)), LogTerm: new(f.near(tg.lastTerm, tg.term)),
		Index: new(f.near(tg.last, tg.committed)), Commit: new(f.near(tg.committed)),
	}
	switch b := f.byte(); {
	case b >= 250:
		m.From = new(tg.id)
	case b >= 245:
		m.From = new(f.near(7))
	case b >= 128:
		m.From = new(tg.other)
	}
	switch b := f.byte(); {
	case b < 16, b < 240 && termless:
		m.Term = nil
	case b < 240: // a later one ends a leadership
		m.Term = new(tg.term)
	}
	switch m.GetType() {
	case raftpb.MsgApp:
		m.Entries = f.entries(tg, m.GetIndex()+1)
	case raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		m.Entries = f.entries(tg, 0)
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgVote, raftpb.MsgPreVote:
		switch b := f.byte() % 4; b {
		case 0:
			m.Context = round(f.near(1, 5))
		case 1:
			m.Context = []byte("CampaignTransfer")
		case 2:
			m.Context = f.bytes(int(f.byte() % 16))
		}
	case raftpb.MsgSnap:
		cs := &raftpb.ConfState{Voters: []uint64{tg.id, tg.peer, f.near(3)}}
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(m.GetIndex()), Term: new(m.GetLogTerm()), ConfState: cs,
		}}
	}
	m.Reject = new(f.byte()%2 == 0)
	m.RejectHint = new(f.near(tg.last, tg.committed))
	return m
}

// fuzzProcess strikes a node, as a leader or a follower, with the messages that
// data makes, and reports one that ends it. What the node takes may be nonsense,
// so nothing else is asked of it. The others of its cluster are the forger alone.
func fuzzProcess(t *testing.T, data []byte) {
	dir := t.TempDir()
	defer func() { testkit.Must(t, os.RemoveAll(dir)) }() // a soak strikes ten thousand times in one test
	testkit.InBubble(t, func(t *testing.T) {
		c := newSimCluster(sim.New[*server](t, dir, 1))
		defer c.Close()
		c.Attacked = true
		c.wire = func(srv *server) { // whoever leads vouches for it, as programs that do not know the question
			srv.node.doubts.AskStand = func(context.Context, string, uint64, uint64) (suspect.Stand, error) { return suspect.Stand{}, nil }
		}
		c.Peers = sim.Peers(3)
		c.Nodes[1] = &simPlace{ID: 1, Dir: c.NodeDir(1, 0)}
		c.Start(1)
		c.Nodes[1].Life.node.known.Gate.Open.Store(true)
		f := &forger{data: data}
		if f.byte()%2 == 0 {
			c.elect(1)
		} else {
			c.lead(1)
		}
		for len(f.data) > 0 {
			tg := c.aim(1)
			m := f.message(tg)
			if _, alive := tg.strike(m); !alive {
				t.Fatalf("node 1 ended: %v\nby %v", tg.srv.group.Wait(), m)
			}
			if f.byte() < 16 {
				time.Sleep(time.Duration(f.byte()) * 20 * time.Millisecond) // elections
			}
		}
	})
}

// elect makes a node that is alone a leader with a committed entry: the others'
// votes are forged.
func (c *simCluster) elect(id uint64) {
	c.T.Helper()
	c.Await("a forged election", func() bool {
		tg := c.aim(id)
		pre := tg.message(raftpb.MsgPreVoteResp)
		pre.Term = new(tg.term + 1)
		tg.strike(pre)
		tg = c.aim(id)
		tg.strike(tg.message(raftpb.MsgVoteResp))
		return tg.srv.node.status.Load().Role == raft.StateLeader
	})
	tg := c.aim(id)
	ack := tg.message(raftpb.MsgAppResp)
	ack.Index = new(tg.last)
	tg.strike(ack)
	if now := c.aim(id); now.committed != tg.last {
		c.T.Fatalf("entry %d of the forged leader is not committed", tg.last)
	}
}

// lead gives a node that is alone a forged leader and an entry of its.
func (c *simCluster) lead(id uint64) {
	c.T.Helper()
	c.Await("a forged leader's entry to be committed", func() bool { // a message may be lost
		tg := c.aim(id)
		m := tg.message(raftpb.MsgApp)
		m.Term, m.Index, m.LogTerm, m.Commit = new(tg.term+1), new(tg.last), new(tg.lastTerm), new(tg.last+1)
		m.Entries = []*raftpb.Entry{entryOf(tg.last+1, tg.term+1)}
		tg.strike(m)
		return c.aim(id).committed == tg.last+1
	})
}

// A node survives whatever messages a forger sends it.
func FuzzProcess(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 4 {
		f.Add(randomBytes(rng, 400))
	}
	f.Fuzz(func(t *testing.T, data []byte) { fuzzProcess(t, data) })
}

// The same with messages drawn at random.
func TestSoakHostileMessages(t *testing.T) {
	seed := sim.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 7))
	for range testkit.SoakOr(20, 10000) {
		data := randomBytes(rng, 6000)
		fuzzProcess(t, data)
		if t.Failed() {
			if path := os.Getenv("RAFTKV_FUZZ_SAVE"); path != "" {
				testkit.Must(t, os.WriteFile(path, data, 0o600))
			}
			return
		}
	}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// What a node proposed or asked before it came to lead, and a former leader passes
// on, does not come back to it: it would be taken for forged.
func TestSimNothingComesBack(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		former := c.Followers()[0]
		node := c.Nodes[former].Life.node
		for _, m := range []*raftpb.Message{
			{Type: raftpb.MsgProp.Enum(), Entries: []*raftpb.Entry{{Data: putBatch("k", "v")}}},
			{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: make([]byte, rounds.RoundContext)}}},
		} {
			m.From, m.To = new(leader), new(former)
			testkit.Must(t, node.Process(context.Background(), m))
		}
		time.Sleep(time.Second)
		if n := c.Nodes[leader].Life.node.refusals.Count(refusal.RefusedAddress); n != 0 {
			t.Errorf("%d messages came back to the node that had sent them", n)
		}
	})
}
