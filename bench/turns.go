package main

import (
	"context"
	"fmt"
	"time"
)

// arena is what the rows with lanes need: the three systems, all running. One
// at a time is under load; what the others use while idle is a row of its own.
type arena struct {
	raftkv, etcd, bare *cluster
	measurer
	log func(format string, args ...any)
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
}

// measured is a row with its figures.
type measured struct {
	row   row
	rate  float64 // of the open loop
	lanes []*laneResult
}

// laneResult is what a lane did in a row.
type laneResult struct {
	name string
	*result
	turnRates   []float64
	leaderMoves uint64
}

// lane says which cluster a lane loads, and how.
func (a *arena) lane(name string) (c *cluster, dial dialer, follower bool) {
	switch name {
	case raftkvLeader, raftkvFollower:
		return a.raftkv, dialRaftkv, name == raftkvFollower
	case gatewayLeader, gatewayFollower:
		return a.etcd, dialGateway, name == gatewayFollower
	case grpcLeader, grpcFollower:
		return a.etcd, dialGRPC(a.workersPer), name == grpcFollower
	default:
		return a.bare, dialRaftkv, false
	}
}

// measure measures a row: every lane has a turn, then every lane the next, so
// that a machine that becomes slower does so for all.
func (a *arena) measure(ctx context.Context, r row) (*measured, error) {
	m := &measured{row: r}
	for _, name := range r.lanes {
		m.lanes = append(m.lanes, &laneResult{name: name, result: newResult()})
	}
	if err := a.prepare(ctx, r); err != nil {
		return nil, err
	}
	if r.atHalf {
		most := &laneResult{name: grpcLeader, result: newResult()}
		if err := a.turn(ctx, r, 0, most); err != nil {
			return nil, err
		}
		m.rate = most.rate() / 2
	}
	for range a.turns {
		for _, lane := range m.lanes {
			if err := a.turn(ctx, r, m.rate, lane); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", r.name, lane.name, err)
			}
		}
	}
	return m, nil
}

// timeLimit is for a turn and what belongs to it, if a server hangs.
func (s settings) timeLimit() time.Duration { return 2*(s.warm+s.length) + time.Minute }

// prepare writes the keys that a row reads or overwrites.
func (a *arena) prepare(ctx context.Context, r row) error {
	filled := map[*cluster]bool{}
	for _, name := range r.lanes {
		c, dial, _ := a.lane(name)
		if filled[c] {
			continue
		}
		filled[c] = true
		if err := fillCluster(ctx, c, dial, r.size, r.keys); err != nil {
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
func (a *arena) turn(ctx context.Context, r row, rate float64, lane *laneResult) error {
	c, dial, follower := a.lane(lane.name)
	find := c.leader
	if follower {
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
	res, err := a.once(ctx, c, n, dial, r, rate)
	if err != nil {
		return err
	}
	after, err := c.term(ctx)
	if err != nil {
		return err
	}
	lane.add(res)
	lane.turnRates = append(lane.turnRates, res.rate())
	lane.leaderMoves += after - before
	a.log("  %-24s %8.0f/s  p50 %.2f  p99 %.2f ms", lane.name, res.rate(), res.ms(50), res.ms(99))
	return nil
}

// once puts a node under a row's load, and checks that what it says was written
// is there.
func (m *measurer) once(ctx context.Context, c *cluster, n *node, dial dialer, r row, rate float64) (*result, error) {
	m.nonce++
	v := valueMaker{size: r.size, nonce: m.nonce}
	clients, err := dial(n.client, r.conns, v, m.timeLimit())
	if err != nil {
		return nil, err
	}
	defer closeAll(clients)
	l := load{keys: r.keys, writes: r.writes, read: r.read, rate: rate, warm: m.warm, length: m.length}
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
