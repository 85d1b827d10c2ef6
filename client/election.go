package client

import (
	"context"
	"iter"
	"time"
)

// Election chooses one of many: the leader is whoever holds a key, whose value says who that
// is. What Mutex says of locks holds for it.
type Election struct{ h *holding }

// Election returns the election of a name, whose key is LeaderPrefix + name. It asks nobody.
// Of the options LockTTL counts.
func (c *Client) Election(name string, options ...LockOption) *Election {
	return &Election{newHolding(c, LeaderPrefix+name, "campaign", "resign", options)}
}

// Key returns the key of the leader, which is there while there is one.
func (e *Election) Key() string { return e.h.key }

// Campaign waits until it leads, or ctx ends. value says to others who leads, such as an
// address. fence is the fencing token, which grows with each leader. leading ends when the
// leadership is lost, with the cause ErrLeaseLost, or was resigned; it does not end with ctx.
// Each Campaign that succeeded needs a Resign, also when the leadership was lost.
func (e *Election) Campaign(ctx context.Context, value []byte) (fence uint64, leading context.Context, err error) {
	return e.h.acquire(ctx, value, false)
}

// Proclaim changes the value while it leads. The fencing token stays as it is. The error matches
// ErrNotHeld if this Election does not lead, and ErrLeaseLost if it does not any more.
func (e *Election) Proclaim(ctx context.Context, value []byte) error {
	lease, fence := e.h.current()
	if lease == nil {
		return &Error{Op: "proclaim", Key: e.h.key, Detail: ErrNotHeld.Error(), cause: ErrNotHeld}
	}
	lost := &Error{Op: "proclaim", Key: e.h.key, Detail: ErrLeaseLost.Error(), cause: ErrLeaseLost}
	if lease.ctx.Err() != nil {
		return lost
	}
	res, err := e.h.client.Txn().If(e.Guard(fence)).Then(PutOp(e.h.key, value, WithLease(lease.id))).Commit(ctx)
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return lost
	}
	return nil
}

// Resign ends the leadership. Its errors are those of Mutex.Unlock.
func (e *Election) Resign(ctx context.Context) error { return e.h.release(ctx) }

// Until is Mutex.Until for the leadership.
func (e *Election) Until() time.Time { return e.h.until() }

// Guard returns the condition of a transaction that is to happen only under the leadership
// with the fencing token fence.
func (e *Election) Guard(fence uint64) Cond { return Key(e.h.key).CreateRevision(fence) }

// Leader returns the key of who leads: its value is what that one has proclaimed, and its
// CreateRevision the fencing token. The error matches NotFound if nobody does.
func (e *Election) Leader(ctx context.Context) (Item, error) { return e.h.client.Get(ctx, e.h.key) }

// Observe tells who leads, first as it is and then with each change: the key as Leader
// returns it, or one with a CreateRevision of 0 while nobody leads. It may leave out those who
// led for a moment while it was not connected. It ends with an error, as Watch does.
func (e *Election) Observe(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var now Item // as it was told by the watch
		told, any := uint64(0), false
		say := func() bool {
			if any && now.ModRevision == told {
				return true
			}
			told, any = now.ModRevision, true
			return yield(now, nil)
		}
		now.Key = e.h.key
		w := newWatching(e.h.client, WatchConfig{Keys: []string{e.h.key}, State: true})
		w.tell = func(ch Change) bool {
			for _, ev := range ch.Events {
				now = ev.Item
			}
			return say() // it is one key, of which there is no half
		}
		w.whole = func(uint64) bool { return say() }
		if err := w.run(ctx); err != nil {
			yield(Item{}, err)
		}
	}
}
