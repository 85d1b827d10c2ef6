package state

import (
	"encoding/binary"
	"maps"
	"raftkv/internal/lease"
	"raftkv/internal/membership"
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

	// Own is what this replica makes of its state at the newest checkpoint,
	// until the apply loop takes it. It is not part of the state.
	Own *OwnCheck
}

// Report is what one node says of its state.
type Report struct {
	Hash uint64
	// Void: the node does not trust its own state, or has said two things. It
	// speaks for no hash.
	Void bool
}

// OwnCheck is a replica's state at a checkpoint, as far as its hash goes.
type OwnCheck struct {
	Index           uint64                    // of the checkpoint
	rest, Sum, keys uint64                    // as stateHash takes them: Sum is that of the items
	Items           *btree.Map[string, *Item] // a copy, for a full check; else nil
	leases          lease.Table               // likewise
}

// Sound computes anew, for a full check, what Hash takes for granted, and reports
// whether it was right.
func (o *OwnCheck) Sound() bool { return HashItems(o.Items) == o.Sum && o.leases.Sound() }

// Hash is what this replica reports of its state at the checkpoint. It takes the sum
// of the items' hashes from Sum, and does not look at Items.
func (o *OwnCheck) Hash() uint64 { return stateHash(o.rest, o.Sum, o.keys) }

// EncodeCheckpoint encodes the wish that every node reports the hash of its state;
// full says that the hash is to be computed anew.
func EncodeCheckpoint(full bool) []byte {
	return []byte{byte(kindCheckpoint), record.BoolByte(full)}
}

// EncodeReport encodes a node's answer to the checkpoint at an index.
func EncodeReport(member, checkpoint uint64, r Report) []byte {
	b := record.AppendUvarints([]byte{byte(kindReport)}, member, checkpoint)
	b = append(b, record.BoolByte(r.Void))
	return binary.LittleEndian.AppendUint64(b, r.Hash)
}

func decodeCheckpoint(r *record.Reader, c *Command) error {
	c.full = r.Bool()
	r.End()
	return nil
}

func decodeReport(r *record.Reader, c *Command) error {
	c.Member, c.checkpoint = r.Uvarint(), r.Uvarint()
	c.report = Report{Void: r.Bool(), Hash: r.Uint64()}
	r.End()
	return nil
}

// checkpoint begins a check. The hash is of the state as the commands before
// this one have left it, also those in the same entry.
func (s *State) checkpoint(full bool) {
	own := &OwnCheck{Index: s.Index, rest: s.hashRest(), Sum: s.Sum, keys: s.Keys()}
	c := &s.Checks
	if c.contradicted() {
		c.NoMajority = c.Index // whoever could have settled it was not heard in time
	}
	c.Index = s.Index
	if full {
		c.Full = s.Index
		own.Items, own.leases = s.Items.Copy(), s.Leases.Copy()
	}
	c.Voters, c.Reports = s.Membership.Voters(), make(map[uint64]Report)
	if c.Diverged == nil {
		c.Diverged = make(map[uint64]uint64)
	}
	c.Own = own
}

// report takes in a node's answer. The same answer again, as after a restart,
// changes nothing; another one voids both.
func (s *State) report(node, index uint64, r Report) {
	c := &s.Checks
	if index != c.Index || index == 0 {
		return // it comes too late
	}
	if was, ok := c.Reports[node]; ok && was != r {
		r = Report{Void: true}
	}
	c.Reports[node] = r
	s.judge()
}

// judge draws the conclusions from the reports. A voter that is down does not
// keep the others from a majority, as long as that is one of all voters; and
// while it could make one, nothing is decided.
func (s *State) judge() {
	c := &s.Checks
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
		_, member := s.Membership.Members[node]
		if member && c.Diverged[node] == 0 && r != (Report{Hash: c.Agreed}) {
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

func (c *Checks) clone() Checks {
	d := *c
	d.Reports, d.Diverged, d.Own = maps.Clone(c.Reports), maps.Clone(c.Diverged), nil
	return d // the voters are never changed in place
}

// write passes on the records of c; there are none before the first checkpoint.
func (c *Checks) write(put func(kind byte, payload []byte) error) error {
	if c.Index == 0 {
		return nil
	}
	b := record.AppendUvarints(nil, c.Index, c.Full, c.Checked, c.Agreed, c.NoMajority)
	if err := put(checkRecord, record.AppendUvarints(b, c.Voters...)); err != nil {
		return err
	}
	for _, node := range membership.SortedKeys(c.Reports) {
		r := c.Reports[node]
		if err := put(reportRecord, record.AppendUvarints(b[:0], node, uint64(record.BoolByte(r.Void)), r.Hash)); err != nil {
			return err
		}
	}
	for _, node := range membership.SortedKeys(c.Diverged) {
		if err := put(divergedRecord, record.AppendUvarints(b[:0], node, c.Diverged[node])); err != nil {
			return err
		}
	}
	return nil
}

// restore takes over one record that write wrote.
func (c *Checks) restore(kind byte, f *record.Reader) {
	switch kind {
	case checkRecord:
		c.Index, c.Full, c.Checked, c.Agreed, c.NoMajority = f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint()
		for len(f.B) > 0 && !f.Bad {
			c.Voters = append(c.Voters, f.Uvarint())
		}
		c.Reports, c.Diverged = make(map[uint64]Report), make(map[uint64]uint64)
	case reportRecord:
		node, void := f.Uvarint(), f.Uvarint() == 1
		if r := (Report{Hash: f.Uvarint(), Void: void}); c.Reports != nil {
			c.Reports[node] = r
		} else {
			f.Bad = true
		}
	case divergedRecord:
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

// checkPart is what the replicas found of one another.
var checkPart = part{
	records: []byte{checkRecord, reportRecord, divergedRecord},
	write:   func(s *State, put func(kind byte, payload []byte) error) error { return s.Checks.write(put) },
	restore: func(s *State, kind byte, f *record.Reader) error {
		s.Checks.restore(kind, f)
		return nil
	},
	clone: func(from, to *State) { to.Checks = from.Checks.clone() },
	reset: func(s *State) { s.Checks = Checks{} },
}
