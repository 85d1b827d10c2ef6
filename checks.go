package main

import (
	"maps"
	"raftkv/internal/problem"
	"raftkv/internal/record"

	"github.com/tidwall/btree"
)

// Replicas that apply the same log hold the same state, unless memory, disk or
// this program fails. So that this shows, the leader puts checkpoints into the
// log, each node reports the hash of its state at that index, and the reports,
// which are commands too, are judged by all nodes alike, here: the majority of
// the voters is right.
//
// What a node serves between the moment when its state departs from that of the
// others and the verdict, at most one interval and the time of a report later,
// may be wrong, and so may a snapshot that it sends. What no hash has seen yet,
// bytes altered in memory and neither written since nor recomputed, can be
// served until the next full check. That is what "found by the next check" says,
// and what it does not.
//
// An answer that differs costs a node its place, and the lack of a majority
// stops the cluster. So nothing may get into the hash in which healthy replicas
// can differ: not their clocks, flags or versions, nor how they came to the
// state, by the log or by a snapshot.

// checks is the part of the replicated state by which the replicas are compared.
type checks struct {
	index   uint64            // of the newest checkpoint; 0: there was none
	full    uint64            // of the newest that wanted the hash computed anew
	voters  []uint64          // at index, in order: theirs is the majority
	reports map[uint64]report // by node: the answers to the newest checkpoint

	checked uint64 // the newest checkpoint that a majority has agreed on
	agreed  uint64 // the hash that it agreed on

	// diverged holds the members that were found to differ, and at which
	// checkpoint. They stay in it until they are removed: a node whose state
	// was wrong once has answered from it, and written it to its disk.
	diverged map[uint64]uint64
	// noMajority is the checkpoint at which the voters contradicted one
	// another and no majority was right; 0: not so. The next one that a
	// majority agrees on settles it.
	noMajority uint64

	// own is what this replica makes of its state at the newest checkpoint,
	// until the apply loop takes it. It is not part of the state.
	own *ownCheck
}

// report is what one node says of its state.
type report struct {
	hash uint64
	// void: the node does not trust its own state, or has said two things. It
	// speaks for no hash.
	void bool
}

// ownCheck is a replica's state at a checkpoint, as far as its hash goes.
type ownCheck struct {
	index           uint64
	rest, sum, keys uint64
	items           *btree.Map[string, *item] // a copy, for a full check; else nil
}

func (o *ownCheck) hash() uint64 { return stateHash(o.rest, o.sum, o.keys) }

// checkpoint begins a check. The hash is of the state as the commands before
// this one have left it, also those in the same entry.
func (s *state) checkpoint(full bool) {
	own := &ownCheck{index: s.index, rest: s.hashRest(), sum: s.sum, keys: s.keys()}
	c := &s.checks
	if c.contradicted() {
		c.noMajority = c.index // whoever could have settled it was not heard in time
	}
	c.index = s.index
	if full {
		c.full = s.index
		own.items = s.items.Copy()
	}
	c.voters, c.reports = s.membership.voters(), make(map[uint64]report)
	if c.diverged == nil {
		c.diverged = make(map[uint64]uint64)
	}
	c.own = own
}

// report takes in a node's answer. The same answer again, as after a restart,
// changes nothing; another one voids both.
func (s *state) report(node, index uint64, r report) {
	c := &s.checks
	if index != c.index || index == 0 {
		return // it comes too late
	}
	if was, ok := c.reports[node]; ok && was != r {
		r = report{void: true}
	}
	c.reports[node] = r
	s.judge()
}

// judge draws the conclusions from the reports. A voter that is down does not
// keep the others from a majority, as long as that is one of all voters; and
// while it could make one, nothing is decided.
func (s *state) judge() {
	c := &s.checks
	best, count, missing := c.count()
	quorum := len(c.voters)/2 + 1
	switch {
	case c.checked == c.index:
	case count >= quorum:
		c.checked, c.agreed, c.noMajority = c.index, best, 0
	case count+missing < quorum:
		c.noMajority = c.index
		return
	default:
		return
	}
	for node, r := range c.reports {
		_, member := s.membership.members[node]
		if member && c.diverged[node] == 0 && r != (report{hash: c.agreed}) {
			c.diverged[node] = c.index
		}
	}
}

// count returns the hash that most voters have reported, how many that are, and
// how many have not reported yet.
func (c *checks) count() (best uint64, count, missing int) {
	votes := make(map[uint64]int)
	for _, id := range c.voters {
		r, ok := c.reports[id]
		switch {
		case !ok:
			missing++
		case !r.void:
			if votes[r.hash]++; votes[r.hash] > count {
				best, count = r.hash, votes[r.hash]
			}
		}
	}
	return best, count, missing
}

// contradicted reports whether two voters have answered the newest checkpoint
// differently, and no majority has settled who is right.
func (c *checks) contradicted() bool {
	if c.checked == c.index {
		return false
	}
	seen := make(map[uint64]bool)
	for _, id := range c.voters {
		if r, ok := c.reports[id]; ok && !r.void {
			seen[r.hash] = true
		}
	}
	return len(seen) > 1
}

// verdict returns what the checks have found of a node, nil if nothing.
func (c *checks) verdict(node uint64) error {
	switch {
	case c.diverged[node] != 0:
		return problem.ErrDiverged
	case c.noMajority != 0:
		return problem.ErrNoMajority
	}
	return nil
}

func (c *checks) clone() checks {
	d := *c
	d.reports, d.diverged, d.own = maps.Clone(c.reports), maps.Clone(c.diverged), nil
	return d // the voters are never changed in place
}

// write passes on the records of c; there are none before the first checkpoint.
func (c *checks) write(put func(kind byte, payload []byte) error) error {
	if c.index == 0 {
		return nil
	}
	b := record.AppendUvarints(nil, c.index, c.full, c.checked, c.agreed, c.noMajority)
	if err := put(checkRecord, record.AppendUvarints(b, c.voters...)); err != nil {
		return err
	}
	for _, node := range sortedKeys(c.reports) {
		r := c.reports[node]
		if err := put(reportRecord, record.AppendUvarints(b[:0], node, uint64(record.BoolByte(r.void)), r.hash)); err != nil {
			return err
		}
	}
	for _, node := range sortedKeys(c.diverged) {
		if err := put(divergedRecord, record.AppendUvarints(b[:0], node, c.diverged[node])); err != nil {
			return err
		}
	}
	return nil
}

// restore takes over one record that write wrote.
func (c *checks) restore(kind byte, f *record.Reader) {
	switch kind {
	case checkRecord:
		c.index, c.full, c.checked, c.agreed, c.noMajority = f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint()
		for len(f.B) > 0 && !f.Bad {
			c.voters = append(c.voters, f.Uvarint())
		}
		c.reports, c.diverged = make(map[uint64]report), make(map[uint64]uint64)
	case reportRecord:
		node, void := f.Uvarint(), f.Uvarint() == 1
		if r := (report{hash: f.Uvarint(), void: void}); c.reports != nil {
			c.reports[node] = r
		} else {
			f.Bad = true
		}
	case divergedRecord:
		if node, at := f.Uvarint(), f.Uvarint(); c.diverged != nil {
			c.diverged[node] = at
		} else {
			f.Bad = true
		}
	}
}

// undecided reports whether the newest checkpoint still waits for its verdict.
func (c *checks) undecided() bool { return c.checked != c.index }

// answered reports whether a node need not, or can no longer, answer the
// checkpoint at index.
func (c *checks) answered(node, index uint64) bool {
	_, ok := c.reports[node]
	return ok || c.index != index
}
