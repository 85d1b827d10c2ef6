package rounds

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"testing"
	"time"
)

// Guarantee: a batch dropped once and passed on once is unknown, though the
// last attempt was dropped: the first may still be applied.
func TestProposeTakenThenDropped(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		res := pt.write("w")
		pt.next().Done(true, 1, false)
		go func() {
			for {
				select {
				case p := <-pt.proposeC:
					p.Done(false, 1, false)
				case <-pt.Context().Done():
					return
				}
			}
		}()
		time.Sleep(testTimeout + testSlack)
		pt.want(res, state.Result{Err: problem.ErrOutcomeUnknown})
	})
}

// Guarantee: what raft drops is proposed again under the same identity: the
// very same bytes, or it could be applied twice, or differently.
func TestProposeDropped(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		res := pt.write("w")
		p := pt.next()
		first := bytes.Clone(p.Data)
		for range 10 {
			p.Done(false, 1, false)
			pt.quiet() // not at once: that would be a busy loop
			time.Sleep(2 * dropRetry)
			if p = pt.next(); !bytes.Equal(p.Data, first) {
				pt.Fatalf("%x was offered again as %x", first, p.Data)
			}
		}
		p.Done(true, 1, false)
		pt.apply(0, 1)
		pt.want(res, state.Result{})
		time.Sleep(testTimeout)
		pt.quiet()
	})
}

// Guarantee: a batch that was on its way when leadership changed is proposed
// to the new leader at once and under the same identity: a change of leader
// costs latency, as little as can be, and no error.
func TestProposeLeaderChange(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("led=%v", leads), func(t *testing.T) {
			testProposer(t, func(pt *proposeTest) {
				pt.leaders.Set(1, 1)
				res := pt.write("w")
				p := pt.next()
				p.Done(true, 1, leads)
				time.Sleep(30 * time.Millisecond)
				pt.quiet()
				pt.leaders.Set(0, 2)
				pt.quiet()
				pt.leaders.Set(2, 2)
				again := pt.next()
				if !bytes.Equal(again.Data, p.Data) {
					pt.Fatalf("%x was offered again as %x", p.Data, again.Data)
				}
				if pt.p.retried() != 1 {
					pt.Fatalf("counted %d retries", pt.p.retried())
				}
				again.Done(true, 2, false)
				pt.apply(0, 1)
				pt.want(res, state.Result{})
			})
		})
	}
}

// Guarantee: what is in the leader's own log is not proposed a second time
// while the term lasts; what was passed on can get lost, and is.
func TestProposeAgainInTheSameTerm(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		own := pt.write("own")
		pt.next().Done(true, 1, true)
		time.Sleep(testTimeout - 1)
		pt.quiet()
		pt.apply(0, 1)
		pt.want(own, state.Result{})

		pt.leaders.Set(2, 2)
		passed := pt.write("passed")
		p := pt.next()
		p.Done(true, 2, false)
		time.Sleep(testElection/2 - 1)
		pt.quiet()
		time.Sleep(1 + testSlack)
		if again := pt.next(); !bytes.Equal(again.Data, p.Data) {
			pt.Fatalf("%x was offered again as %x", p.Data, again.Data)
		}
		pt.apply(1, 1) // while the second attempt is at the raft loop
		pt.want(passed, state.Result{Revision: 100})
		pt.apply(1, 1) // the other copy
		time.Sleep(testTimeout)
		pt.quiet()
	})
}

// Guarantee: with a raft that drops, loses, repeats and reorders, and with
// changes of leader, every write that is acknowledged happened exactly once,
// and none fails that had the time to be tried again.
func TestProposeThroughLossyRaft(t *testing.T) {
	for seed := range uint64(5) {
		testProposer(t, func(pt *proposeTest) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			s := state.New(testkit.Peers())
			apply := func(data []byte) {
				id, cmds, err := state.DecodeBatch(data)
				if err != nil {
					pt.Error(err)
				}
				if results, first := s.ApplyBatch(id, cmds); first {
					pt.p.Applied(id, results)
				}
			}
			ctx, cancel := context.WithCancel(pt.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				var late [][]byte // copies that come later
				for term := uint64(1); ; {
					select {
					case p := <-pt.proposeC:
						leads := rnd.IntN(2) == 0
						switch rnd.IntN(6) {
						case 0:
							p.Done(false, term, leads)
						case 1: // lost: by a follower, or with the term
							p.Done(true, term, leads)
							term++
							pt.leaders.Set(1+term%3, term)
						case 2:
							p.Done(true, term, false)
							late = append(late, p.Data)
						default:
							p.Done(true, term, leads)
							apply(p.Data)
						}
						if len(late) > 0 && rnd.IntN(2) == 0 {
							i := rnd.IntN(len(late))
							apply(late[i]) // and perhaps again
							if rnd.IntN(2) == 0 {
								late = slices.Delete(late, i, i+1)
							}
						}
					case <-ctx.Done():
						return
					}
				}
			}()
			pt.leaders.Set(1, 1)
			const writers, each = 20, 10
			results := make(chan state.Result)
			for w := range writers {
				go func() {
					for i := range each {
						results <- pt.p.Propose(ctx, state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("key", w), fmt.Append(nil, i)))
					}
				}()
			}
			seen := make(map[uint64]bool)
			for range writers * each {
				r := <-results
				if r.Err != nil || seen[r.Revision] {
					pt.Errorf("seed %d: %+v", seed, r)
				}
				seen[r.Revision] = true
			}
			cancel()
			<-done
			if s.Revision != writers*each {
				pt.Errorf("seed %d: %d writes made %d changes", seed, writers*each, s.Revision)
			}
			s.Scan(func(key string, it *state.Item) bool {
				if it.Version != each || string(it.Value) != fmt.Sprint(each-1) {
					pt.Errorf("seed %d: %s is %+v", seed, key, it)
				}
				return true
			})
		})
	}
}
