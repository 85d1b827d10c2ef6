package suspect

import (
	"raftkv/internal/problem"
	"sync/atomic"
)

// Two histories contradict each other, and too few voters answer to tell which of
// them the majority keeps. Then nobody is out, and nobody is accused; but nothing
// can be committed either, and whoever waits has to hear why. A dispute ends when
// more voters answer, or when the two are of one history after all.

// disputes is with whom this node's history is in dispute. All but what is published
// is of Inquire's goroutine alone.
type disputes struct {
	// looks is how many looks in a row have found a dispute with a member; out stands
	// for one whose history is out.
	looks map[uint64]int
	// index is how far this node's state had come at the latest look at a member that
	// found neither history out.
	index map[uint64]uint64
	// open is published: with whom there is a dispute that has lasted.
	open atomic.Pointer[map[uint64]bool]
}

// disputeLooks is how many looks in a row make a dispute: at a single one the other
// voters may just have been slow to answer.
const disputeLooks = 2

// out marks a member whose history a majority does not share.
const out = -1

func newDisputes() disputes {
	return disputes{looks: make(map[uint64]int), index: make(map[uint64]uint64)}
}

// note counts a look at which neither history is out. It returns true the first time
// that makes a dispute.
func (p *disputes) note(id uint64) (begins bool) {
	n := max(p.looks[id], 0) + 1
	p.set(id, n)
	return n == disputeLooks
}

// goesOn reports whether this node has applied more since it last looked at a member
// whose history contradicts its own. Nothing is committed in a dispute, so there is
// none then, and the looks are counted anew.
func (p *disputes) goesOn(id, index uint64) bool {
	before, again := p.index[id]
	p.index[id] = index
	if !again || index <= before {
		return false
	}
	p.set(id, 0)
	return true
}

// win notes that a member's history is out. It returns true the first time.
func (p *disputes) win(id uint64) (first bool) {
	first = !p.won(id)
	p.set(id, out)
	return first
}

func (p *disputes) set(id uint64, looks int) {
	p.looks[id] = looks
	p.publish()
}

// settle notes that a member's history does not contradict this node's.
func (p *disputes) settle(id uint64) {
	delete(p.looks, id)
	p.publish()
}

// settleAll ends all disputes: this node is out, or a majority can commit.
func (p *disputes) settleAll() {
	for id, n := range p.looks {
		if n != out {
			delete(p.looks, id)
		}
	}
	p.publish()
}

// won reports whether a member's history was found to be out.
func (p *disputes) won(id uint64) bool { return p.looks[id] == out }

func (p *disputes) publish() {
	open := make(map[uint64]bool)
	for id, n := range p.looks {
		if n >= disputeLooks {
			open[id] = true
		}
	}
	p.open.Store(&open)
}

// with reports whether there is a dispute with a member.
func (p *disputes) with(id uint64) bool {
	open := p.open.Load()
	return open != nil && (*open)[id]
}

// Disputed returns problem.ErrDisputed while this node's history and another
// member's contradict each other and it is not known which one is out.
func (d *Doubts) Disputed() error {
	if open := d.disputes.open.Load(); open != nil && len(*open) > 0 {
		return problem.ErrDisputed
	}
	return nil
}
