package audit

import (
	"context"
	"fmt"
	"maps"
	"raftkv/internal/changelog"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
)

// replica is a node as far as expiries are concerned.
type replica struct {
	id       uint64
	state    *state.State
	revision *wait.Level
	leaders  *wait.Leadership
	paper    *paper
	log      *Log
}

func newReplica(t *testing.T, id uint64) *replica {
	r := &replica{id: id, state: state.New(nil), revision: wait.NewLevel(0), leaders: wait.NewLeadership(), paper: newPaper()}
	r.state.Changes.Keep(1<<20, 0)
	r.log = begin(t, r.paper, false, zap.NewNop())
	return r
}

func (r *replica) needs() Expiries {
	return Expiries{ID: r.id, Leaders: r.leaders, Revision: r.revision, Look: func(look func(*state.State)) error {
		look(r.state)
		return nil
	}}
}

// change applies a revision of a term.
func (r *replica) change(term uint64, kind changelog.Kind, keys ...string) {
	r.state.Revision++
	for _, key := range keys {
		r.state.Changes.Note(state.Change{Revision: r.state.Revision, Kind: kind, Key: key, Size: len(key)})
	}
	r.state.Changes.Tell(term)
}

// expired returns what a replica has written: keys, with their revision.
func (r *replica) expired(t *testing.T) (all []string) {
	for _, line := range r.paper.lines(t) {
		if line["event"] == eventExpire {
			for _, key := range line["keys"].([]any) {
				all = append(all, fmt.Sprint(key, "@", line["revision"]))
			}
		}
	}
	return all
}

// follow lets l see expiries that it has to tell, and a gap, if asked for.
func follow(t *testing.T, l *Log, gap bool) {
	r := newReplica(t, 7)
	r.leaders.Set(7, 1)
	r.change(1, changelog.Expire, "k")
	at := l.follow(r.needs(), 0)
	if gap {
		r.state.Changes.Keep(1<<20, 5)
		r.state.Revision = 5
		if at = l.follow(r.needs(), at); at != 5 {
			t.Errorf("behind a gap it is at %d", at)
		}
	}
	if err := r.log.Close(); err != nil {
		t.Error(err)
	}
}

// Guarantee: what expires is written by the node that led in the term of its entry, once in the
// whole cluster, also if that node has lost its leadership before it comes to apply the
// entry; what was written or deleted is not called expired.
func TestExpiriesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		one, two, three := newReplica(t, 1), newReplica(t, 2), newReplica(t, 3)
		all := []*replica{one, two, three}
		for _, r := range all {
			go func() { _ = r.log.FollowExpiries(ctx, r.needs()) }()
		}
		// Each hears of the leaders, two of them in a moment, before anything of their terms is
		// applied; the third node misses the first one.
		for _, r := range all[:2] {
			r.leaders.Set(1, 4)
		}
		for _, r := range all {
			r.leaders.Set(0, 5)
			r.leaders.Set(2, 5)
		}
		synctest.Wait()
		for _, r := range all {
			r.change(4, changelog.Put, "a", "b")
			r.change(4, changelog.Expire, "a", "b")
			r.change(4, changelog.Delete, "d")
			r.change(5, changelog.Expire, "c")
			r.change(6, changelog.Expire, "nobody known")
			r.revision.Advance(r.state.Revision)
			synctest.Wait()
		}
		end()
		synctest.Wait()
		for _, r := range all {
			if err := r.log.Close(); err != nil {
				t.Error(err)
			}
		}
		for i, want := range [][]string{{"a@2", "b@2"}, {"c@4"}, nil} {
			if got := all[i].expired(t); !slices.Equal(got, want) {
				t.Errorf("node %d has written %v, want %v", i+1, got, want)
			}
		}
	})
}

// Guarantee: many expiries are all written, in lines that are bounded, also those that come
// while the node ends; what this node led and does not know any more is told as a gap.
func TestExpiriesAreWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		r := newReplica(t, 1)
		r.leaders.Set(1, 1)
		ended := make(chan error, 1)
		go func() { ended <- r.log.FollowExpiries(ctx, r.needs()) }()
		synctest.Wait()
		var keys []string
		for i := range 3*maxKeys + 1 {
			keys = append(keys, fmt.Sprintf("%04d", i))
		}
		long := []string{strings.Repeat("x", maxKeyBytes), strings.Repeat("y", maxKeyBytes), "z"}
		r.change(1, changelog.Expire, keys...)
		r.change(1, changelog.Expire, long...)
		for range 2 * expiriesAtOnce {
			r.change(1, changelog.Expire, "many")
		}
		r.revision.Advance(r.state.Revision)
		synctest.Wait()
		r.change(1, changelog.Expire, "last")
		r.revision.Advance(r.state.Revision)
		r.revision.End()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := r.log.Close(); err != nil {
			t.Error(err)
		}
		got := r.expired(t)
		if want := len(keys) + len(long) + 2*expiriesAtOnce + 1; len(got) != want || !strings.HasPrefix(got[want-1], "last@") {
			t.Errorf("%d are written, want %d", len(got), want)
		}
		lines := make(map[int]int)
		for _, line := range r.paper.lines(t) {
			lines[len(line["keys"].([]any))]++
		}
		if want := map[int]int{maxKeys: 3, 1: 1 + 2 + 1 + 2*expiriesAtOnce + 1}; !maps.Equal(lines, want) {
			t.Errorf("lines by their keys: %v, want %v", lines, want)
		}
	})
	for _, leads := range []bool{false, true} {
		r := newReplica(t, 1)
		if leads {
			r.leaders.Set(1, 3)
		}
		r.state.Changes.Keep(1<<20, 9)
		r.state.Revision = 9
		if at := r.log.follow(r.needs(), 4); at != 9 {
			t.Errorf("at %d", at)
		}
		if err := r.log.Close(); err != nil {
			t.Error(err)
		}
		if lines := r.paper.lines(t); (len(lines) == 1 && lines[0]["event"] == eventGap && lines[0]["revision"] == 9.0) != leads {
			t.Errorf("leads %t: %v", leads, lines)
		}
	}
}
