package api

import (
	"context"
	"raftkv/internal/rights"
	"raftkv/internal/state"
)

// Owners finds by whose name a command has to name a lease.
type Owners struct {
	// Look lends the state; the error says why it is not to be read.
	Look  func(look func(*state.State)) error
	Fresh *Freshness
}

// Of returns the owner by whom the request of a context names a lease. A lease that this
// node does not know of may have been made at another one a moment ago, so it looks again
// once it has caught up.
func (o *Owners) Of(ctx context.Context, id uint64) (owner string, err error) {
	caller := rights.CallerOf(ctx)
	owner, known := o.find(caller, id)
	if known {
		return owner, nil
	}
	if err := o.Fresh.Now(ctx); err != nil {
		return "", err
	}
	owner, _ = o.find(caller, id)
	return owner, nil
}

// find returns the owner by whom a caller names a lease, as far as this node has applied
// the log. That is the caller: to them the leases of others are none, which is decided
// where the command is applied. Who may do everything names the lease's own owner, which
// never changes; known is false if there is no such lease here.
func (o *Owners) find(caller *rights.Caller, id uint64) (owner string, known bool) {
	if !caller.Admin() {
		return caller.Owner(), true
	}
	_ = o.Look(func(s *state.State) { // what is not to be read is not known
		if l := s.Leases.Get(id); l != nil {
			owner, known = l.Owner, true
		}
	})
	if !known {
		owner = caller.Owner()
	}
	return owner, known
}

// SeenBy returns who may see a lease, by its owner.
func SeenBy(caller *rights.Caller) (sees func(owner string) bool) {
	return func(owner string) bool { return caller.Admin() || owner == caller.Owner() }
}
