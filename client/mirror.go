package client

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mirror is a copy of what is under a prefix, which follows the cluster. Its methods may be
// called from many goroutines. Whoever reads it sees what the store held at one revision, never half
// of a change; while no node can be reached it stays as it was, and Age grows.
type Mirror struct {
	prefix string
	end    context.CancelFunc
	done   chan struct{} // closed when nothing more comes

	mu       sync.RWMutex
	items    map[string]Item
	sorted   []Item // items in order, once All has needed them; never changed
	revision uint64
	heard    moment
	err      error
	changed  chan struct{} // closed with the next change of the items, and at the end
	moved    chan struct{} // closed with the next revision, and at the end
}

// errMirrorClosed is Mirror.Err after Close.
var errMirrorClosed = errors.New("the mirror was closed")

// Mirror makes a copy of all keys that begin with prefix, and returns it once it is whole. It is
// held in memory. ctx is for the wait alone: the copy is kept until Close, or until the client
// is closed or the nodes refuse to go on, as when a right was taken away.
func (c *Client) Mirror(ctx context.Context, prefix string) (*Mirror, error) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &Mirror{
		prefix: prefix, end: cancel, done: make(chan struct{}),
		items: map[string]Item{}, changed: make(chan struct{}), moved: make(chan struct{}),
	}
	whole := make(chan struct{})
	go m.run(inner, c, sync.OnceFunc(func() { close(whole) }))
	select {
	case <-whole:
		return m, nil
	case <-m.done:
		return nil, m.Err()
	case <-ctx.Done():
		m.Close()
		cause := context.Cause(ctx)
		return nil, &Error{Op: "mirror", Key: prefix, Detail: cause.Error(), cause: cause}
	}
}

// run follows the changes. Those of a state are kept until it is whole.
func (m *Mirror) run(ctx context.Context, c *Client, whole func()) {
	defer m.end()
	var waiting []Event
	w := newWatching(c, WatchConfig{Prefixes: []string{m.prefix}, State: true})
	w.tell = func(ch Change) bool {
		if ch.Revision == 0 {
			waiting = append(waiting, ch.Events...)
			return true
		}
		m.apply(ch.Events, ch.Revision)
		return true
	}
	w.whole = func(revision uint64) bool {
		m.apply(waiting, revision)
		waiting = nil
		whole()
		return true
	}
	w.moved = func(revision uint64) { m.apply(nil, revision) }
	w.heard = func() {
		m.mu.Lock()
		m.heard = thisMoment()
		m.mu.Unlock()
	}
	err := w.run(ctx)
	m.mu.Lock()
	if ctx.Err() != nil {
		err = errMirrorClosed
	}
	m.err = err
	close(m.changed)
	close(m.moved)
	m.mu.Unlock()
	close(m.done)
}

// apply changes the copy to what it is at a revision.
func (m *Mirror) apply(events []Event, revision uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(events) == 0 && revision == m.revision {
		return
	}
	for _, e := range events {
		if e.Type == Put {
			m.items[e.Key] = e.Item
		} else {
			delete(m.items, e.Key)
		}
	}
	m.revision = revision
	close(m.moved)
	m.moved = make(chan struct{})
	if len(events) > 0 {
		m.sorted = nil
		close(m.changed)
		m.changed = make(chan struct{})
	}
}

// Get returns a key of the copy. Its value must not be changed.
func (m *Mirror) Get(key string) (Item, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, ok := m.items[key]
	return i, ok
}

// Len returns how many keys the copy has.
func (m *Mirror) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.items)
}

// All tells the keys in their order, all as they were at one revision, however long that takes.
func (m *Mirror) All() iter.Seq2[string, Item] {
	return func(yield func(string, Item) bool) {
		for _, i := range m.list() {
			if !yield(i.Key, i) {
				return
			}
		}
	}
}

func (m *Mirror) list() []Item {
	m.mu.RLock()
	sorted := m.sorted
	m.mu.RUnlock()
	if sorted != nil {
		return sorted
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sorted == nil {
		m.sorted = slices.SortedFunc(maps.Values(m.items), func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
	}
	return m.sorted
}

// Revision returns up to which revision the copy has all changes.
func (m *Mirror) Revision() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.revision
}

// Age returns how long ago anything was heard from a node. On a quiet connection that is up to 15
// seconds.
func (m *Mirror) Age() time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.heard.ago()
}

// Changed returns a channel that is closed with the next change of the copy, and when it ends: get it,
// then read, then wait for it, and nothing is missed.
func (m *Mirror) Changed() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}

// Wait waits until the copy has all changes up to revision, as that of a write. Of a write
// under the prefix it has them as soon as the node that it follows; of another one within 15
// seconds, when a quiet node says how far it is.
func (m *Mirror) Wait(ctx context.Context, revision uint64) error {
	for {
		m.mu.RLock()
		at, moved, err := m.revision, m.moved, m.err
		m.mu.RUnlock()
		switch {
		case at >= revision:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			cause := context.Cause(ctx)
			return &Error{Op: "mirror", Key: m.prefix, Detail: cause.Error(), cause: cause}
		}
	}
}

// Err returns why the copy does not follow any more; nil while it does. Interruptions
// are none.
func (m *Mirror) Err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.err
}

// Close ends it. The copy can still be read, as it was.
func (m *Mirror) Close() {
	m.end()
	<-m.done
}
