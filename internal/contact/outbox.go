package contact

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Outbox holds back messages to other nodes that need not be sent at once, and often not
// at all: the news of a commit where nobody waits for it (notice.go), and questions whose
// answers nobody needs (quorum.go). The raft loop owns it.
type Outbox struct {
	Due *time.Timer // when there is something to Flush

	notices *notices
	reads   *readQuorum
	armed   time.Time // when Due fires; zero: not at all
}

// NewOutbox returns an Outbox that holds nothing.
func NewOutbox() *Outbox {
	o := &Outbox{Due: time.NewTimer(0), notices: newNotices(), reads: newReadQuorum()}
	o.Due.Stop()
	return o
}

// Add appends m to out, the messages to send now, or holds it. It asks raft who the members
// are.
func (o *Outbox) Add(out []*raftpb.Message, m *raftpb.Message, members progress) []*raftpb.Message {
	if !o.reads.holds(m, members) {
		out = o.notices.add(out, m)
	}
	o.arm()
	return out
}

// Appended notes where somebody waits for entries that go into a leader's log:
// on the node that proposed them, and, for all but batches, everywhere.
func (o *Outbox) Appended(entries []*raftpb.Entry) { o.notices.appended(entries) }

// Tick notes that raft's clock is about to tick.
func (o *Outbox) Tick() { o.reads.ticks++ }

// Note notes a message that has come.
func (o *Outbox) Note(m *raftpb.Message, members progress) {
	o.reads.note(m, members)
	o.arm()
}

// Flush gives back what has been held long enough.
func (o *Outbox) Flush() (out []*raftpb.Message) {
	now := time.Now()
	if due := o.reads.due; !due.IsZero() && !now.Before(due) {
		for _, m := range o.reads.flush() {
			out = o.notices.add(out, m)
		}
	}
	if due := o.notices.due; !due.IsZero() && !now.Before(due) {
		out = append(out, o.notices.flush()...)
	}
	o.arm()
	return out
}

// Forget drops what is known of a former member.
func (o *Outbox) Forget(node uint64) {
	o.notices.forget(node)
	o.reads.forget(node)
}

// arm sets Due to when the first of what is held has been held long enough.
func (o *Outbox) arm() {
	next := o.notices.due
	if due := o.reads.due; next.IsZero() || !due.IsZero() && due.Before(next) {
		next = due
	}
	if next.Equal(o.armed) {
		return
	}
	o.armed = next
	if next.IsZero() {
		o.Due.Stop()
	} else {
		o.Due.Reset(time.Until(next))
	}
}
