package main

import (
	"context"
	"fmt"
	"time"
)

// arena is what the rows with lanes need: the systems, all running. One at a
// time is under load; what the others use while idle is a row of its own.
type arena struct {
	clusters map[string]*cluster // by system
	measurer
	between func(ctx context.Context) error // before each turn; may be nil
	log     func(format string, args ...any)
}

// measurer runs turns.
type measurer struct {
	settings
	nonce uint32 // of the last turn's values
}

// settings are how the rows are measured.
type settings struct {
	turns      int           // of each lane
	warm       time.Duration // at the beginning of a turn, not counted
	length     time.Duration // of a turn, counted
	workersPer int           // workers on one gRPC connection
	secured    *secured      // for the lanes over TLS
}

// measured is a row with its figures.
type measured struct {
	row   row
	lanes []*laneResult
}

// laneResult is what a lane did in a row: all its turns together, and each.
type laneResult struct {
	name string
	*result
	turns       []turnFigures
	leaderMoves uint64
}

// turnFigures are the figures of one turn of a lane.
type turnFigures struct {
	began, ended   time.Time
	rate, p50, p99 float64 // a second, ms
	cpu            float64 // of the servers, microseconds an operation
}

// measure fills the systems with what a row needs, and measures it.
func (a *arena) measure(ctx context.Context, r row) (*measured, error) {
	if err := a.prepare(ctx, r); err != nil {
		return nil, err
	}
	if r.atHalf {
		var err error
		if r.rate, err = a.halfOfEtcd(ctx, r); err != nil {
			return nil, err
		}
	}
	return a.turnsOf(ctx, r)
}

// turnsOf measures a row: every lane has a turn, then every lane the next, so
// that a machine that becomes slower does so for all.
func (a *arena) turnsOf(ctx context.Context, r row) (*measured, error) {
	m := &measured{row: r}
	for _, name := range r.lanes {
		m.lanes = append(m.lanes, &laneResult{name: name, result: newResult()})
	}
	for range a.turns {
		for _, lane := range m.lanes {
			if err := a.turn(ctx, r, r.rate, lane); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", r.name, lane.name, err)
			}
		}
	}
	return m, nil
}

// halfOfEtcd returns half of the rate that etcd's gRPC reaches with a row's load.
func (a *arena) halfOfEtcd(ctx context.Context, r row) (float64, error) {
	most := &laneResult{name: grpcLeader, result: newResult()}
	if err := a.turn(ctx, r, 0, most); err != nil {
		return 0, err
	}
	if most.errors > 0 {
		return 0, fmt.Errorf("etcd's maximum: %w", most.firstErr)
	}
	return most.rate() / 2, nil
}

// timeLimit is for a turn and what belongs to it, if a server hangs.
func (s settings) timeLimit() time.Duration { return 2*(s.warm+s.length) + time.Minute }

// prepare writes the keys that a row reads or overwrites.
func (a *arena) prepare(ctx context.Context, r row) error {
	filled := map[*cluster]bool{}
	for _, name := range r.lanes {
		l := a.lane(name)
		c := a.clusters[l.system]
		if filled[c] {
			continue
		}
		filled[c] = true
		if err := fillCluster(ctx, c, l.dial, r.size, r.keys); err != nil {
			return fmt.Errorf("%s: filling %s: %w", r.name, c.name, err)
		}
	}
	return nil
}

// fillCluster writes keys through the leader.
func fillCluster(ctx context.Context, c *cluster, dial dialer, size int, keys keyRange) error {
	const workers, limit = 256, 20 * time.Minute
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	v := valueMaker{size: size}
	clients, err := dial(leader.client, workers, v, limit)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	if err := fill(ctx, clients, keys); err != nil {
		return err
	}
	return v.check(clients[0], keys.first+keys.count-1)
}

// turn gives a lane one turn of a row's load.
func (a *arena) turn(ctx context.Context, r row, rate float64, into *laneResult) error {
	if a.between != nil {
		if err := a.between(ctx); err != nil {
			return err
		}
	}
	l := a.lane(into.name)
	if l.conns > 0 {
		r.conns = l.conns
	}
	c := a.clusters[l.system]
	find := c.leader
	if l.follower {
		find = c.follower
	}
	n, err := find(ctx)
	if err != nil {
		return err
	}
	before, err := c.term(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	res, err := a.once(ctx, c, n, l.dial, r, rate)
	if err != nil {
		return err
	}
	ended := time.Now()
	after, err := c.term(ctx)
	if err != nil {
		return err
	}
	into.addTurn(res, began, ended)
	into.leaderMoves += after - before
	a.log("  %-24s %8.0f/s  p50 %.2f  p99 %.2f ms", into.name, res.rate(), res.ms(50), res.ms(99))
	return nil
}

// addTurn adds what came of a turn, with its figures.
func (l *laneResult) addTurn(res *result, began, ended time.Time) {
	l.add(res)
	l.turns = append(l.turns, turnFigures{began, ended, res.rate(), res.ms(50), res.ms(99), res.perOp(res.serverCPU)})
}

// once puts a node under a row's load, and checks that what it says was written
// is there.
func (m *measurer) once(ctx context.Context, c *cluster, n *node, dial dialer, r row, rate float64) (*result, error) {
	m.nonce++
	v := valueMaker{size: r.size, nonce: m.nonce}
	s := r.turnSettings(m.settings)
	clients, err := dial(n.client, r.conns, v, s.timeLimit())
	if err != nil {
		return nil, err
	}
	defer closeAll(clients)
	l := load{keys: r.keys, writes: r.writes, read: r.read, rate: rate, warm: s.warm, length: s.length}
	res, err := l.run(ctx, clients, c.pids())
	if err != nil {
		return nil, err
	}
	return res, checkWritten(c, n, dial, v, res.written)
}

// checkWritten reads some of the keys that were written, through another node.
func checkWritten(c *cluster, n *node, dial dialer, v valueMaker, written []uint64) error {
	const most = 32
	clients, err := dial(c.other(n).client, 1, v, time.Minute)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	for _, key := range written[:min(most, len(written))] {
		if err := v.check(clients[0], key); err != nil {
			return err
		}
	}
	return nil
}
