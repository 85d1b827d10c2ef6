package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

var (
	// ErrHeld: TryLock found the lock taken.
	ErrHeld = errors.New("somebody else holds it")
	// ErrNotHeld: Unlock, Resign or Proclaim of what is not held.
	ErrNotHeld = errors.New("it is not held")
)

// The keys of locks and leaderships begin with these, so that a shell and a program that use
// the same name mean the same. docs/api.md has the lines for curl.
const (
	LockPrefix   = "lock/"
	LeaderPrefix = "leader/"
)

// DefaultLockTTL is how long after a holder has died, at least, others get what it held.
const DefaultLockTTL = 10 * time.Second

const (
	// wakeJitter spreads those who wait for a lock once it is free. Who sees in that time that
	// another one has got it does not try.
	wakeJitter = 30 * time.Millisecond
	// mostLook bounds for how long a waiter relies on its watch: the node that tells it may hang,
	// which a watch notices late.
	mostLook = 10 * time.Second
	// tidyLimit bounds giving back what a Lock that failed may have got.
	tidyLimit = time.Second
)

// LockOption changes how a Mutex or an Election holds its key.
type LockOption func(*holding)

// LockTTL sets the time to live of the lease: DefaultLockTTL if it is left out.
func LockTTL(ttl time.Duration) LockOption { return func(h *holding) { h.ttl = ttl } }

// LockValue sets the value that a Mutex gives its key, for people who look who holds it: the
// host's name and the process's ID if it is left out.
func LockValue(value []byte) LockOption { return func(h *holding) { h.value = value } }

// Mutex is a lock of the cluster. One process at a time holds it, and one call of Lock in
// that process. It is a key that only one can create, with a lease:
// whoever holds it and dies has lost it once the lease has ended.
//
// A process that was stopped for a while may believe in its lock for longer than that, if it
// does not look at the context it was given. So what the lock protects should take the
// fencing token that Lock returns, which grows with each holder, and refuse one that
// is smaller than one that it has seen. If that is in raftkv itself, Guard does so.
//
// Those who wait are not served in an order.
type Mutex struct{ h *holding }

// Mutex returns the lock of a name, whose key is LockPrefix + name. It asks nobody.
func (c *Client) Mutex(name string, options ...LockOption) *Mutex {
	h := newHolding(c, LockPrefix+name, "lock", "unlock", options)
	if h.value == nil {
		host, _ := os.Hostname() // for people alone
		h.value = []byte(host + ":" + strconv.Itoa(os.Getpid()))
	}
	return &Mutex{h}
}

// Key returns the key of the lock, which is there while somebody holds it.
func (m *Mutex) Key() string { return m.h.key }

// Lock waits until it has the lock, or ctx ends. It goes on through failures of nodes and of
// the whole cluster; an error that waiting does not mend ends it. fence is the fencing token.
// held ends when the lock is lost, with the cause ErrLeaseLost, or was unlocked: no work that
// the lock protects may begin after that. It does not end with ctx, which bounds the waiting
// alone. Each Lock that succeeded needs an Unlock, also when the lock was lost.
func (m *Mutex) Lock(ctx context.Context) (fence uint64, held context.Context, err error) {
	return m.h.acquire(ctx, m.h.value, false)
}

// TryLock is Lock without waiting: if the lock is taken its error is ErrHeld.
func (m *Mutex) TryLock(ctx context.Context) (fence uint64, held context.Context, err error) {
	return m.h.acquire(ctx, m.h.value, true)
}

// Unlock gives the lock back. An error that matches ErrLeaseLost says that it was lost before, and
// that others may have had it since. After another error the lock is free once its time to live
// has passed. In each case this Mutex can be locked again.
func (m *Mutex) Unlock(ctx context.Context) error { return m.h.release(ctx) }

// Until returns up to when the lock is held if nothing keeps it alive from now on, as
// Lease.Until does; the present while it is not held.
func (m *Mutex) Until() time.Time { return m.h.until() }

// Guard returns the condition of a transaction that is to happen only while the lock is
// held under the fencing token fence.
func (m *Mutex) Guard(fence uint64) Cond { return Key(m.h.key).CreateRevision(fence) }

// holding is one key that is held by one at a time.
type holding struct {
	client *Client
	key    string
	take   string // what acquire is called, in errors
	give   string // and release
	ttl    time.Duration
	value  []byte
	turn   chan struct{} // has room for who holds it, or tries to, in this process

	mu    sync.Mutex
	lease *Lease // nil while it is not held
	fence uint64
}

func newHolding(c *Client, key, take, give string, options []LockOption) *holding {
	h := &holding{client: c, key: key, take: take, give: give, ttl: DefaultLockTTL, turn: make(chan struct{}, 1)}
	for _, o := range options {
		o(h)
	}
	return h
}

// acquire gets the key. With try it does not wait for another holder.
func (h *holding) acquire(ctx context.Context, value []byte, try bool) (uint64, context.Context, error) {
	if err := h.begin(ctx, try); err != nil {
		return 0, nil, err
	}
	p := &pursuit{holding: h, value: value, try: try}
	fence, err := p.run(ctx)
	if err != nil {
		p.giveUp(ctx)
		<-h.turn
		return 0, nil, p.outcome(err)
	}
	h.mu.Lock()
	h.lease, h.fence = p.lease, fence
	h.mu.Unlock()
	return fence, p.lease.Context(), nil
}

// begin waits for those of this process.
func (h *holding) begin(ctx context.Context, try bool) error {
	if err := context.Cause(ctx); err != nil {
		return h.failed(err)
	}
	select {
	case h.turn <- struct{}{}:
		return nil
	default:
	}
	if try {
		return h.failed(fmt.Errorf("%w, in this process", ErrHeld))
	}
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return h.failed(context.Cause(ctx))
	}
}

func (h *holding) failed(cause error) error {
	return &Error{Op: h.take, Key: h.key, Detail: cause.Error(), cause: cause}
}

// current returns the lease under which the key is held, and the fencing token.
func (h *holding) current() (*Lease, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lease, h.fence
}

// until is Mutex.Until.
func (h *holding) until() time.Time {
	if lease, _ := h.current(); lease != nil {
		return lease.Until()
	}
	return time.Now()
}

// release gives the key back: it goes away with its lease.
func (h *holding) release(ctx context.Context) error {
	h.mu.Lock()
	lease := h.lease
	h.lease, h.fence = nil, 0
	h.mu.Unlock()
	if lease == nil {
		return &Error{Op: h.give, Key: h.key, Detail: ErrNotHeld.Error(), cause: ErrNotHeld}
	}
	defer func() { <-h.turn }()
	lost := lease.ctx.Err() != nil
	err := lease.Close(ctx)
	if lost {
		cause := context.Cause(lease.ctx)
		return &Error{Op: h.give, Key: h.key, Detail: cause.Error(), cause: cause}
	}
	return err
}

// pursuit is one attempt of acquire to get the key.
type pursuit struct {
	*holding
	value []byte
	try   bool
	lease *Lease  // with which the key is written; nil if there is none
	watch *sentry // who looks whether the key is there; nil until it was found taken
	fails int
	doubt bool // the key may be there with the lease, or come to be
	left  bool // a lease of which that is so could not be revoked
}

// run returns the fencing token once the key is there under p.lease.
func (p *pursuit) run(ctx context.Context) (fence uint64, err error) {
	defer func() {
		if p.watch != nil {
			p.watch.end()
		}
	}()
	if p.try { // so that a lock that is taken costs no entry in the log
		if item, err := p.client.Get(ctx, p.key); err == nil {
			return 0, p.taken(item)
		} else if !errors.Is(err, NotFound) {
			return 0, err
		}
	}
	for {
		fence, err := p.step(ctx)
		switch {
		case err == nil && fence != 0:
			return fence, nil
		case err == nil:
			continue
		case context.Cause(ctx) != nil || p.try || final(err):
			return 0, err
		}
		p.fails++
		if err := sleep(ctx, jitter(leastPause, min(mostPause, leastPause<<min(p.fails, 10)))); err != nil {
			return 0, p.failed(err)
		}
	}
}

func (p *pursuit) taken(item Item) error {
	return p.failed(fmt.Errorf("%w: %s", ErrHeld, clip(strconv.Quote(string(item.Value)), 100)))
}

// step writes the key if it is not there. Without an error a fence of 0 means: once more.
func (p *pursuit) step(ctx context.Context) (fence uint64, err error) {
	if p.lease != nil && p.lease.ctx.Err() != nil {
		p.giveUp(ctx)
	}
	if p.lease == nil {
		if p.lease, err = p.client.Lease(ctx, p.ttl); err != nil {
			return 0, err
		}
	}
	before := p.doubt
	p.doubt = true
	if fence, err = p.write(ctx); err == nil {
		if p.lease.ctx.Err() != nil {
			return 0, nil // it came too late
		}
		return fence, nil
	}
	// A write of unknown outcome is none of another: it is of this lease alone, and goes with it.
	p.doubt = before || errors.Is(err, ErrOutcomeUnknown)
	e := new(Error)
	switch {
	case errors.Is(err, PreconditionFailed) && errors.As(err, &e):
		return p.wait(ctx, e.Revision)
	case errors.Is(err, NoSuchLease) || p.lease.ctx.Err() != nil && context.Cause(ctx) == nil:
		p.giveUp(ctx)
		return 0, nil
	}
	return 0, err
}

// write writes the key on condition that it is not there, in the time of the lease.
func (p *pursuit) write(ctx context.Context) (revision uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lease := p.lease.ctx
	defer context.AfterFunc(lease, func() { cancel(context.Cause(lease)) })()
	return p.client.Put(ctx, p.key, p.value, IfAbsent(), WithLease(p.lease.id))
}

// wait waits until the key has gone, or may have: 0. If it is there with this lease it returns
// the revision that made it. revision is that of the key when it was found taken.
func (p *pursuit) wait(ctx context.Context, revision uint64) (fence uint64, err error) {
	if p.try {
		return p.whose(ctx)
	}
	if p.watch == nil {
		p.watch = newSentry(ctx, p.client, p.key)
	}
	most := min(mostLook, p.ttl)
	look := time.NewTimer(jitter(most/2, most))
	defer look.Stop()
	for {
		seen := p.watch.look()
		switch {
		case seen.err != nil:
			p.watch.end() // the next wait has a watch that may do better
			p.watch = nil
			return 0, seen.err
		case seen.there && seen.item.Lease == p.lease.id:
			return seen.item.CreateRevision, nil
		case seen.known && !seen.there && seen.revision >= revision:
			if p.watch.changes(ctx, seen, jitter(0, wakeJitter)) {
				continue // somebody was quicker
			}
			return 0, p.ended(ctx)
		}
		select {
		case <-seen.next:
		case <-look.C:
			if fence, err := p.whose(ctx); !errors.Is(err, ErrHeld) {
				return fence, err
			}
			look.Reset(jitter(most/2, most))
		case <-ctx.Done():
			return 0, p.ended(ctx)
		case <-p.lease.ctx.Done():
			return 0, nil
		}
	}
}

// whose reads the key: 0 if it is not there, the revision that made it if it is with this
// lease, else ErrHeld.
func (p *pursuit) whose(ctx context.Context) (fence uint64, err error) {
	item, err := p.client.Get(ctx, p.key)
	switch {
	case errors.Is(err, NotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case item.Lease == p.lease.id:
		return item.CreateRevision, nil
	}
	return 0, p.taken(item)
}

// ended returns the error of a context that has ended.
func (p *pursuit) ended(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return p.failed(err)
	}
	return nil
}

// giveUp revokes the lease that the key may have. If that fails the key goes with the lease
// when its time has passed, since nobody keeps it alive any more.
func (p *pursuit) giveUp(ctx context.Context) {
	if p.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	err := p.lease.Close(ctx)
	p.left = p.left || p.doubt && err != nil
	p.lease, p.doubt = nil, false
}

// outcome says of the error of a pursuit that was given up whether the key may be there: not
// if the lease was revoked with which it was written.
func (p *pursuit) outcome(err error) error {
	if e := new(Error); errors.As(err, &e) {
		o := *e
		o.Op, o.Key, o.Unknown = p.take, p.key, p.left
		return &o
	}
	return p.failed(err)
}

// sentry looks whether a key is there, by a watch.
type sentry struct {
	end context.CancelFunc

	mu  sync.Mutex
	now sighting
}

// sighting is what is known of the key.
type sighting struct {
	known    bool // it was looked at
	there    bool
	item     Item
	revision uint64        // of what it was seen at
	err      error         // nothing more will be seen
	next     chan struct{} // closed once there is a newer one
}

func newSentry(ctx context.Context, c *Client, key string) *sentry {
	ctx, cancel := context.WithCancel(ctx)
	s := &sentry{end: cancel, now: sighting{next: make(chan struct{})}}
	var at sighting // of the state that is being told
	cfg := WatchConfig{Keys: []string{key}, State: true, KeysOnly: true, Synced: func(revision uint64) {
		at.known, at.revision = true, max(at.revision, revision)
		s.set(at)
	}}
	go func() {
		for ch, err := range c.Watch(ctx, cfg) {
			if err != nil {
				at.err = err
				s.set(at)
				return
			}
			for _, e := range ch.Events {
				at.there, at.item = e.Type == Put, e.Item
			}
			if ch.Revision > 0 {
				at.revision = ch.Revision
				s.set(at)
			}
		}
	}()
	return s
}

func (s *sentry) set(at sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.now.next
	s.now, s.now.next = at, make(chan struct{})
	close(old)
}

func (s *sentry) look() sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// changes waits a while, and reports whether there is something newer before that.
func (s *sentry) changes(ctx context.Context, than sighting, long time.Duration) bool {
	wait := time.NewTimer(long)
	defer wait.Stop()
	select {
	case <-than.next:
		return true
	case <-wait.C:
	case <-ctx.Done():
	}
	return false
}
