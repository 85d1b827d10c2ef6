package reconfig

import (
	"context"
	"fmt"
	"raftkv/internal/problem"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// How leadership goes from one voter to another (thesis §3.10).

// maxTransfers is how often a request for another leader is tried: while one
// try lasts, up to an election timeout, raft takes no proposals.
const maxTransfers = 3

// MoveLeader hands leadership to a voter, or with id 0 to the best one.
func (ms *Members) MoveLeader(ctx context.Context, id uint64) (Reply, error) {
	m, _, err := ms.freshMembership(ctx)
	if err != nil {
		return Reply{}, err
	}
	mem, isMember := m.Members[id]
	switch {
	case id == ms.ID:
		return Reply{ID: id}, nil
	case id == 0 && len(m.Voters()) == 1:
		return Reply{}, fmt.Errorf("%w, and there is no other", problem.ErrNotVoter)
	case id != 0 && !isMember:
		return Reply{}, problem.ErrMemberUnknown
	case mem.Learner:
		return Reply{}, fmt.Errorf("%w: member %d is a learner", problem.ErrNotVoter, id)
	}
	for try := 1; ; try++ {
		if ok, err := ms.canTakeOver(ctx, id); err != nil {
			return Reply{}, fmt.Errorf("%w: %w", problem.ErrNotHandedOver, err)
		} else if !ok {
			return Reply{}, fmt.Errorf("%w: the leader has not heard from who is to take over of late", problem.ErrNotHandedOver)
		}
		// A voter that has not applied the latest membership change yet
		// does not stand for election, so one failure is no verdict.
		leader, err := ms.Transfer(ctx, id)
		switch {
		case err == nil && (id == 0 || leader == id):
			return Reply{ID: leader}, nil
		case err == nil:
			return Reply{}, problem.ErrElsewhere
		case try == maxTransfers || ctx.Err() != nil:
			return Reply{}, err
		}
	}
}

// canTakeOver reports whether a voter, or with id 0 any, was heard from within
// one election timeout: to hand over to one that is down would only stop the
// writes. A leader that has only just come to lead has not heard from all yet,
// so it waits a little before it says no.
func (ms *Members) canTakeOver(ctx context.Context, id uint64) (ok bool, err error) {
	tick := time.NewTicker(ms.ElectionTimeout / 10)
	defer tick.Stop()
	for began := time.Now(); ; {
		err = ms.Call(ctx, func(rn *raft.RawNode) {
			since := time.Now().Add(-ms.ElectionTimeout)
			ok = !ms.Contacts.Last(id).Before(since) || (id == 0 && ms.Contacts.BestFollower(rn.Status(), since) != 0)
		})
		if err != nil || ok || time.Since(began) >= ms.ElectionTimeout {
			return ok, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// StepDown hands leadership, if this node has it, to a voter that is up and not
// among those named. It does not wait for what comes of it.
func (ms *Members) StepDown(ctx context.Context, except []uint64) error {
	return ms.Call(ctx, func(rn *raft.RawNode) {
		st := rn.Status()
		for _, id := range except {
			delete(st.Progress, id)
		}
		if to := ms.Contacts.BestFollower(st, time.Now().Add(-ms.ElectionTimeout)); to != 0 {
			rn.TransferLeader(to)
		}
	})
}

// knowsLeader waits until this node knows that id leads.
func (ms *Members) knowsLeader(ctx context.Context, id uint64) error {
	for {
		leader, _, changed := ms.Leaders.Get()
		if leader == id {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return problem.ErrOutcomeUnknown
		case <-ms.Life.Done():
			return problem.ErrOutcomeUnknown
		}
	}
}

// HandOver passes leadership on, because the leader is to be removed, to become
// a learner or to move: its successor then carries that out.
func (ms *Members) HandOver(ctx context.Context) error {
	if _, err := ms.Transfer(ctx, 0); err != nil {
		ms.Log.Info("a membership change waits for another leader", zap.Error(err))
		return problem.ErrNoLeader
	}
	return problem.ErrElsewhere
}

// Transfer hands leadership to a voter, with to 0 to the one that is furthest
// along, and returns who leads when another node does. After one election
// timeout, when raft gives up, it is problem.ErrNotHandedOver.
func (ms *Members) Transfer(ctx context.Context, to uint64) (leader uint64, err error) {
	leader, _, changed := ms.Leaders.Get()
	if leader != ms.ID {
		return leader, nil
	}
	err = ms.Call(ctx, func(rn *raft.RawNode) {
		if to == 0 {
			to = ms.Contacts.BestFollower(rn.Status(), time.Now().Add(-ms.ElectionTimeout))
		}
		// A follower would pass the request on, which its receiver refuses.
		if to != 0 && rn.BasicStatus().RaftState == raft.StateLeader {
			rn.TransferLeader(to)
		}
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", problem.ErrNotHandedOver, err)
	}
	limit := time.NewTimer(ms.ElectionTimeout)
	defer limit.Stop()
	for leader == ms.ID || leader == 0 {
		select {
		case <-changed:
			leader, _, changed = ms.Leaders.Get()
		case <-limit.C:
			return 0, fmt.Errorf("%w within one election timeout", problem.ErrNotHandedOver)
		case <-ctx.Done():
			return 0, fmt.Errorf("%w in time", problem.ErrNotHandedOver)
		}
	}
	return leader, nil
}
