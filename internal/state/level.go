package state

import (
	"fmt"
	"raftkv/internal/durable"
)

// A command that one node writes into the log is applied by all, and a node
// that does not know its kind has to stop. So a new kind is proposed only once
// every member has said that it knows it (command.go, KindAnnounce).
//
// A level is a set of kinds that came together; each level has those of the
// ones below it. A program knows all levels up to its own, ProgramLevel. The
// cluster's level is the lowest that its members have published, once all
// have; it is replicated state, and never sinks: what it allowed may be in the
// log already. A program below it refuses to start or to join.
//
//	level 0  the first version, which knew no announce: a cluster is not upgraded
//	         from it node by node
//	level 1  writes, publish, announce, all changes of the membership
//	level 2  checkpoints and reports (checks.go)
//	level 3  batches that name the life that sent them (package rounds)
//	level 4  the replicated clock, times to live and leases (lease.go)
//	level 5  deletions by prefix, additions, appends and transactions (txn.go)
//	level 6  commands under an Idempotency-Key (once.go)
//	level 7  what nodes publish of their doors (announce.go); peer URLs with https
//
// What a level adds to the state must leave no trace, in the state file and in
// the hash of the state, until the level is reached: below it, programs of both
// kinds run side by side, and must find that they agree.
const (
	firstLevel = 1
	CheckLevel = 2 // checkpoints and reports
	LifeLevel  = 3 // batches that name the life that sent them
	LeaseLevel = 4 // the replicated clock, times to live, leases
	TxnLevel   = 5 // deletions by prefix, additions, appends, transactions
	OnceLevel  = 6 // commands under an Idempotency-Key
	DoorsLevel = 7 // what nodes publish of their doors; peer URLs with https

	// ProgramLevel is the highest level of commands that this program knows.
	ProgramLevel = DoorsLevel
)

// raiseLevel follows a change of what the members have published, or of who
// they are.
func (s *State) raiseLevel() {
	if len(s.Membership.Members) == 0 {
		return
	}
	lowest := ^uint64(0)
	for _, m := range s.Membership.Members {
		lowest = min(lowest, m.Level)
	}
	s.Level = max(s.Level, lowest)
}

// ErrLevel: the cluster uses commands that this program does not know.
func ErrLevel(level uint64) error {
	return fmt.Errorf("%w: the cluster uses commands of level %d, this program knows level %d: upgrade this node",
		durable.ErrNewer, level, ProgramLevel)
}
