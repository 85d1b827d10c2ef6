package audit

import (
	"context"
	"raftkv/internal/changelog"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Nobody asks for what expires: the leader's clock does. It is written by the node that led
// in the term of the log entry by which keys went. There is one such node at most (thesis
// §3.4), and every node can tell whether it is the one, whenever it comes to apply the entry:
// so nothing is written twice, whoever leads meanwhile. What can be missing: entries that
// this node did not apply in the life in which it led, because it ended before, or took a
// snapshot over them.

const (
	// expiriesAtOnce is how many revisions are looked at under the state's lock.
	expiriesAtOnce = 256
	// restBetween is for how long more expiries gather where there are many.
	restBetween = 10 * time.Millisecond
)

// Expiries is what a Log needs of its node to write what expires.
type Expiries struct {
	ID       uint64
	Leaders  *wait.Leadership
	Revision *wait.Level // of the store, as this node has applied it
	// Look lends the state, or returns an error where it is not to be read.
	Look func(look func(*state.State)) error
}

// FollowExpiries writes what expires while this node leads, until ctx ends.
func (l *Log) FollowExpiries(ctx context.Context, e Expiries) error {
	if l == nil {
		return nil
	}
	at := e.Revision.Get()
	for {
		come := make(chan bool, 1)
		giveUp := e.Revision.Await(at+1, func(ended bool) { come <- ended })
		select {
		case ended := <-come:
			if ended { // the node takes no more requests
				<-ctx.Done()
			}
		case <-ctx.Done():
			giveUp()
		}
		at = l.follow(e, at)
		select {
		case <-time.After(restBetween):
		case <-ctx.Done():
			l.follow(e, at) // what has gone by now is written, too
			return nil
		}
	}
}

// follow writes what has expired behind a revision, and returns up to where it has looked.
func (l *Log) follow(e Expiries, at uint64) uint64 {
	for {
		var entries []*state.ChangeEntry
		var now uint64
		whole := true
		if e.Look(func(s *state.State) {
			now = s.Revision
			entries, whole = s.Changes.After(at, expiriesAtOnce)
		}) != nil {
			return e.Revision.Get() // a snapshot comes: what it covers is not known one by one
		}
		switch {
		case !whole:
			if leader, _, _ := e.Leaders.Get(); leader == e.ID {
				l.put(eventGap, []zapcore.Field{zap.Uint64("revision", now)})
			}
			return now
		case len(entries) == 0:
			return max(at, now)
		}
		for _, entry := range entries {
			at = entry.Revision
			if e.Leaders.LeaderOf(entry.Term) == e.ID {
				l.expired(entry)
			}
		}
	}
}

// expired writes the keys that have expired at a revision, in as many lines as it takes.
func (l *Log) expired(entry *state.ChangeEntry) {
	var keys []string
	size := 0
	flush := func() {
		if len(keys) > 0 {
			l.put(eventExpire, []zapcore.Field{zap.Strings("keys", keys), zap.Uint64("revision", entry.Revision)})
		}
		keys, size = nil, 0
	}
	for i := range entry.Changes {
		c := &entry.Changes[i]
		if c.Kind != changelog.Expire {
			continue
		}
		if len(keys) == maxKeys || size+len(c.Key) > maxKeyBytes {
			flush()
		}
		keys, size = append(keys, c.Key), size+len(c.Key)
	}
	flush()
}
