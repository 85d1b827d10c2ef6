// Package verdict answers: which replicas are right, by what they say of their states? At
// a checkpoint each node reports the hash of its state, and the majority of the voters is
// right. The reports are commands in the log, so all nodes judge alike: what is found is a
// part of the replicated state, and pure like it. Package state says what the hash is of.
package verdict

import (
	"maps"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"slices"
)

// The kinds of the records of a state file that Checks have. The values are on disk.
const (
	CheckRecord    byte = 6 // index, full, checked, agreed, no majority, voters
	ReportRecord   byte = 7 // node, void, hash
	DivergedRecord byte = 8 // node, index
)

// Checks is the part of the replicated state by which the replicas are compared.
type Checks struct {
	Index   uint64            // of the newest checkpoint; 0: there was none
	Full    uint64            // of the newest that wanted the hash computed anew
	Voters  []uint64          // at Index, in order: theirs is the majority
	Reports map[uint64]Report // by node: the answers to the newest checkpoint

	Checked uint64 // the newest checkpoint that a majority has agreed on
	Agreed  uint64 // the hash that it agreed on

	// Diverged holds the members that were found to differ, and at which
	// checkpoint. They stay in it until they are removed: a node whose state
	// was wrong once has answered from it, and written it to its disk.
	Diverged map[uint64]uint64
	// NoMajority is the checkpoint at which the voters contradicted one
	// another and no majority was right; 0: not so. The next one that a
	// majority agrees on settles it.
	NoMajority uint64
}

// Report is what one node says of its state.
type Report struct {
	Hash uint64
	// Void: the node does not trust its own state, or has said two things. It
	// speaks for no hash.
	Void bool
}

// Begin begins a check at an index, which voters are to answer; full: with their hashes
// computed anew.
func (c *Checks) Begin(index uint64, full bool, voters []uint64) {
	if c.contradicted() {
		c.NoMajority = c.Index // whoever could have settled it was not heard in time
	}
	c.Index = index
	if full {
		c.Full = index
	}
	c.Voters, c.Reports = voters, make(map[uint64]Report)
	if c.Diverged == nil {
		c.Diverged = make(map[uint64]uint64)
	}
}

// Take takes in a node's answer, and judges. member tells who is one now. The same answer again, as after a restart,
// changes nothing; another one voids both.
func (c *Checks) Take(node, index uint64, r Report, member func(id uint64) bool) {
	if index != c.Index || index == 0 {
		return // it comes too late
	}
	if was, ok := c.Reports[node]; ok && was != r {
		r = Report{Void: true}
	}
	c.Reports[node] = r
	c.judge(member)
}

// judge draws the conclusions from the reports. A voter that is down does not
// keep the others from a majority, as long as that is one of all voters; and
// while it could make one, nothing is decided.
func (c *Checks) judge(member func(id uint64) bool) {
	best, count, missing := c.count()
	quorum := len(c.Voters)/2 + 1
	switch {
	case c.Checked == c.Index:
	case count >= quorum:
		c.Checked, c.Agreed, c.NoMajority = c.Index, best, 0
	case count+missing < quorum:
		c.NoMajority = c.Index
		return
	default:
		return
	}
	for node, r := range c.Reports {
		if member(node) && c.Diverged[node] == 0 && r != (Report{Hash: c.Agreed}) {
			c.Diverged[node] = c.Index
		}
	}
}

// count returns the hash that most voters have reported, how many that are, and
// how many have not reported yet.
func (c *Checks) count() (best uint64, count, missing int) {
	votes := make(map[uint64]int)
	for _, id := range c.Voters {
		r, ok := c.Reports[id]
		switch {
		case !ok:
			missing++
		case !r.Void:
			if votes[r.Hash]++; votes[r.Hash] > count {
				best, count = r.Hash, votes[r.Hash]
			}
		}
	}
	return best, count, missing
}

// contradicted reports whether two voters have answered the newest checkpoint
// differently, and no majority has settled who is right.
func (c *Checks) contradicted() bool {
	if c.Checked == c.Index {
		return false
	}
	seen := make(map[uint64]bool)
	for _, id := range c.Voters {
		if r, ok := c.Reports[id]; ok && !r.Void {
			seen[r.Hash] = true
		}
	}
	return len(seen) > 1
}

// Verdict returns what the checks have found of a node, nil if nothing.
func (c *Checks) Verdict(node uint64) error {
	switch {
	case c.Diverged[node] != 0:
		return problem.ErrDiverged
	case c.NoMajority != 0:
		return problem.ErrNoMajority
	}
	return nil
}

// Clone returns checks that later changes of c do not touch.
func (c *Checks) Clone() Checks {
	d := *c
	d.Reports, d.Diverged = maps.Clone(c.Reports), maps.Clone(c.Diverged)
	return d // the voters are never changed in place
}

// Write passes on the records of c; there are none before the first checkpoint.
func (c *Checks) Write(put func(kind byte, payload []byte) error) error {
	if c.Index == 0 {
		return nil
	}
	b := record.AppendUvarints(nil, c.Index, c.Full, c.Checked, c.Agreed, c.NoMajority)
	if err := put(CheckRecord, record.AppendUvarints(b, c.Voters...)); err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(c.Reports)) {
		r := c.Reports[node]
		if err := put(ReportRecord, record.AppendUvarints(b[:0], node, uint64(record.BoolByte(r.Void)), r.Hash)); err != nil {
			return err
		}
	}
	for _, node := range slices.Sorted(maps.Keys(c.Diverged)) {
		if err := put(DivergedRecord, record.AppendUvarints(b[:0], node, c.Diverged[node])); err != nil {
			return err
		}
	}
	return nil
}

// Restore takes over one record that Write wrote.
func (c *Checks) Restore(kind byte, f *record.Reader) {
	switch kind {
	case CheckRecord:
		c.Index, c.Full, c.Checked, c.Agreed, c.NoMajority = f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint()
		for len(f.B) > 0 && !f.Bad {
			c.Voters = append(c.Voters, f.Uvarint())
		}
		c.Reports, c.Diverged = make(map[uint64]Report), make(map[uint64]uint64)
	case ReportRecord:
		node, void := f.Uvarint(), f.Uvarint() == 1
		if r := (Report{Hash: f.Uvarint(), Void: void}); c.Reports != nil {
			c.Reports[node] = r
		} else {
			f.Bad = true
		}
	case DivergedRecord:
		if node, at := f.Uvarint(), f.Uvarint(); c.Diverged != nil {
			c.Diverged[node] = at
		} else {
			f.Bad = true
		}
	}
}

// Undecided reports whether the newest checkpoint still waits for its verdict.
func (c *Checks) Undecided() bool { return c.Checked != c.Index }

// Answered reports whether a node need not, or can no longer, answer the
// checkpoint at index.
func (c *Checks) Answered(node, index uint64) bool {
	_, ok := c.Reports[node]
	return ok || c.Index != index
}
