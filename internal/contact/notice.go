package contact

import (
	"raftkv/internal/entry"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// NoticeDelay is how long a follower may at most not hear that entries are
// committed, where nobody waits for them.
const NoticeDelay = 5 * time.Millisecond

// notices decides when followers hear of a new commit index. raft tells them at
// once, in a message without entries that each must take in, write down and
// answer: half of all that is sent for a write, though only the leader, which
// knows already, has a client waiting. Mostly the next entries, which carry the
// commit index along (thesis §3.5), follow at their heels. So a notice waits
// for them, unless somebody waits at the follower: for a write that came
// through it, or for a read whose index it was told.
//
// To raft a notice that is held is a slow message, and one that is replaced by
// a newer one a lost message; it must expect both.
type notices struct {
	told    map[uint64]uint64 // by node: the highest commit index sent to it
	awaited map[uint64]uint64 // by node: up to here somebody may wait there
	all     uint64            // up to here somebody may wait on any node
	held    map[uint64]*raftpb.Message
	due     time.Time // when what is held then goes; zero: nothing is held
}

func newNotices() *notices {
	return &notices{told: make(map[uint64]uint64), awaited: make(map[uint64]uint64), held: make(map[uint64]*raftpb.Message)}
}

func (n *notices) appended(entries []*raftpb.Entry) {
	for _, e := range entries {
		if node := proposerOf(e); node != 0 {
			n.awaited[node] = e.GetIndex()
		} else {
			n.all = e.GetIndex()
		}
	}
}

// proposerOf returns the node that gathered a batch; 0 if an entry is none.
func proposerOf(e *raftpb.Entry) uint64 {
	if e.GetType() != raftpb.EntryNormal {
		return 0
	}
	return entry.NodeOf(e.GetData())
}

// add appends m to out, the messages to send now, or holds it.
func (n *notices) add(out []*raftpb.Message, m *raftpb.Message) []*raftpb.Message {
	to, commit := m.GetTo(), m.GetCommit()
	switch m.GetType() {
	case raftpb.MsgReadIndexResp:
		n.awaited[to] = max(n.awaited[to], m.GetIndex())
		if h := n.held[to]; h != nil {
			out = append(out, n.take(h))
		}
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		if m.GetType() == raftpb.MsgApp && len(m.GetEntries()) == 0 && n.canWait(to, commit) {
			if len(n.held) == 0 {
				n.due = time.Now().Add(NoticeDelay)
			}
			n.held[to] = m
			return out
		}
		n.told[to] = max(n.told[to], commit)
		if commit >= n.held[to].GetCommit() {
			n.drop(to)
		}
	}
	return append(out, m)
}

// canWait reports whether a message without entries is a notice of commit that
// nobody waits for. A message without entries and without a new commit index is a probe
// of raft's, and is sent.
func (n *notices) canWait(to, commit uint64) bool {
	told := n.told[to]
	return commit > told && n.awaited[to] <= told && n.all <= told
}

// forget drops what is known of a former member.
func (n *notices) forget(node uint64) {
	delete(n.told, node)
	delete(n.awaited, node)
	n.drop(node)
}

// take gives back what was held.
func (n *notices) take(m *raftpb.Message) *raftpb.Message {
	n.told[m.GetTo()] = m.GetCommit()
	n.drop(m.GetTo())
	return m
}

// drop drops what is held for a node.
func (n *notices) drop(node uint64) {
	delete(n.held, node)
	if len(n.held) == 0 {
		n.due = time.Time{}
	}
}

// flush gives back all that is held.
func (n *notices) flush() (out []*raftpb.Message) {
	for _, m := range n.held {
		out = append(out, n.take(m))
	}
	return out
}
