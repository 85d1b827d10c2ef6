package state

import (
	"encoding/binary"
	"raftkv/internal/lease"
	"raftkv/internal/once"
	"raftkv/internal/record"
	"raftkv/internal/verdict"

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

// Report is verdict.Report.
type Report = verdict.Report

// Checks is what the replicas found of one another.
type Checks struct {
	verdict.Checks

	// Own is what this replica makes of its state at the newest checkpoint,
	// until the apply loop takes it. It is not part of the state.
	Own *OwnCheck
}

// OwnCheck is a replica's state at a checkpoint, as far as its hash goes.
type OwnCheck struct {
	Index           uint64                    // of the checkpoint
	rest, Sum, keys uint64                    // as stateHash takes them: Sum is that of the items
	Items           *btree.Map[string, *Item] // a copy, for a full check; else nil
	leases          lease.Table               // likewise
	once            once.Table                // likewise
}

// Sound computes anew, for a full check, what Hash takes for granted, and reports
// whether it was right.
func (o *OwnCheck) Sound() bool {
	return HashItems(o.Items) == o.Sum && o.leases.Sound() && o.once.Sound()
}

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
	if full {
		own.Items, own.leases, own.once = s.Items.Copy(), s.Leases.Copy(), s.Once.Copy()
	}
	s.Checks.Begin(s.Index, full, s.Membership.Voters())
	s.Checks.Own = own
}

// report takes in a node's answer to a checkpoint.
func (s *State) report(node, checkpoint uint64, r Report) {
	s.Checks.Take(node, checkpoint, r, func(id uint64) bool {
		_, member := s.Membership.Members[id]
		return member
	})
}

// checkPart is what the replicas found of one another.
var checkPart = part{
	records: []byte{checkRecord, reportRecord, divergedRecord},
	write:   func(s *State, put func(kind byte, payload []byte) error) error { return s.Checks.Write(put) },
	restore: func(s *State, kind byte, f *record.Reader) error {
		s.Checks.Restore(kind, f)
		return nil
	},
	clone: func(from, to *State) { to.Checks = Checks{Checks: from.Checks.Clone()} },
	reset: func(s *State) { s.Checks = Checks{} },
}
