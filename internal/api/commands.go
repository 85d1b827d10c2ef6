package api

import (
	"context"
	"fmt"
	"net/url"
	"raftkv/internal/limits"
	"raftkv/internal/problem"
	"raftkv/internal/room"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/web"
	"strconv"
	"time"
)

// Admission decides what is let into the log at all, for all commands of clients. None
// of it is decided when a command is applied: nodes may see it differently.
type Admission struct {
	Applied  *wait.Index  // up to where this node has applied the log
	MayWrite func() error // of the log's disk
	Room     *room.Keeper
	Quota    *limits.Quota
	Outcomes *limits.Outcomes
	Level    func() uint64 // of the cluster, as applied here
}

// Admit lets a command pass that makes the store grow by so many bytes beside a key, or
// with -1 makes it smaller, and that may be in the log from a level on. The error is
// problem.ErrDiskFull, problem.ErrQuota, problem.ErrUpgrading or problem.ErrNotReady.
// What it holds of the quota it holds until release is called.
func (a *Admission) Admit(key string, growth int, level uint64) (release func(), err error) {
	if at := a.Level(); at < level {
		return nil, fmt.Errorf("%w: it takes level %d, and the cluster is at %d; it rises once every member runs, with a program that knows it",
			problem.ErrUpgrading, level, at)
	}
	if err := a.Room.Admit(key, growth); err != nil {
		return nil, err
	}
	if a.Applied.Get() == 0 {
		// It joins. The snapshot that it gets could cover the write, and
		// then nobody could tell what became of it.
		return nil, problem.ErrNotReady
	}
	if growth < 0 {
		return func() {}, nil
	}
	return a.Quota.Reserve(key, growth)
}

// Commands takes commands of clients that are no plain write of a key to the cluster.
type Commands struct {
	Admission
	Propose func(ctx context.Context, cmd []byte) state.Result
	Fault   func() error // why this node must not serve
}

// NoGrowth is the growth of a command that makes nothing larger.
const NoGrowth = -1

// Do has the cluster apply a command, and returns what came of it. growth and level are
// as Admit has them.
func (c *Commands) Do(ctx context.Context, cmd []byte, growth int, level uint64) (state.Result, error) {
	return c.do(ctx, cmd, growth, func() (func(), error) { return c.Admit("", growth, level) })
}

// do is Do of a command that admit lets pass.
func (c *Commands) do(ctx context.Context, cmd []byte, growth int, admit func() (release func(), err error)) (state.Result, error) {
	if growth >= 0 {
		if err := c.MayWrite(); err != nil {
			return state.Result{}, err
		}
	}
	release, err := admit()
	if err != nil {
		return state.Result{}, err
	}
	defer release()
	res := c.Propose(ctx, cmd)
	if fault := c.Fault(); fault != nil {
		return state.Result{}, problem.PerhapsDone(fault) // what this node says of it is not to be trusted
	}
	return res, res.Err
}

// MaxMemberBytes bounds the body of a request that has no value in it.
const MaxMemberBytes = 4096

// Bounds of a time to live.
const (
	minTTL = 100 * time.Millisecond
	MaxTTL = 365 * 24 * time.Hour
)

// ParseLeaseID reads the ID of a lease, a positive decimal number without ornaments.
func ParseLeaseID(text string) (uint64, bool) {
	id, err := strconv.ParseUint(text, 10, 64)
	return id, err == nil && id > 0 && strconv.FormatUint(id, 10) == text
}

// lifetimeOf reads what the query of a PUT says of when the key goes away.
func lifetimeOf(query string) (life state.Lifetime, err error) {
	q, err := web.Query(query, "ttl", "lease")
	if err != nil {
		return life, err
	}
	return LifetimeIn(q)
}

// LifetimeIn reads the parameters ttl and lease, of which there may be one.
func LifetimeIn(q url.Values) (life state.Lifetime, err error) {
	ttl, timed := q["ttl"]
	lease, leased := q["lease"]
	switch {
	case timed && leased:
		return life, fmt.Errorf("%w: a key has a ttl or a lease, not both", problem.ErrBadRequest)
	case timed:
		d, err := web.Duration("ttl", ttl[0], minTTL, MaxTTL)
		return state.Lifetime{Kind: state.ForTTL, Value: InMillis(d)}, err
	case leased:
		id, ok := ParseLeaseID(lease[0])
		if !ok {
			return life, fmt.Errorf("%w: lease is %q; expected the ID of a lease, a positive decimal number", problem.ErrBadRequest, web.Clip(lease[0]))
		}
		return state.Lifetime{Kind: state.WithLease, Value: id}, nil
	}
	return life, nil
}

// InMillis rounds up: nothing may end early.
func InMillis(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}
