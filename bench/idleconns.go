package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	idleConnsBusy   = 64               // connections that work beside the idle ones, or idle watches
	idleConnsSettle = 5 * time.Second  // before memory and CPU are looked at
	idleConnsLength = 10 * time.Second // over which the CPU is counted
)

// enoughFiles returns an error unless processes may have so many connections open,
// client and server: raftkv keeps a quarter of its files for other purposes.
func enoughFiles(conns int) error {
	limit, err := fileLimit()
	if err != nil {
		return err
	}
	return checkFiles(conns, limit)
}

func checkFiles(conns int, limit uint64) error {
	if need := filesFor(conns); limit < need {
		return fmt.Errorf("%d connections need a limit of %d open files, and it is %d (ulimit -Hn)", conns, need, limit)
	}
	return nil
}

// filesFor returns the limit that so many connections need.
func filesFor(conns int) uint64 { return uint64(conns)*3/2 + 256 }

// idle is connections or watches that nobody uses.
type idle interface {
	// lost returns an error if they did not last.
	lost() error
	close()
}

// holder is a system that holds idle connections or watches.
type holder struct {
	name string
	dial dialer // of the busy connections
	busy row    // what these do
	open func(ctx context.Context, addr string, n int) (idle, error)
	*cluster
	node                *node
	perConn             float64 // bytes of memory, of a connection or a watch
	resident            int64   // bytes of the node, with all of them
	cpu                 float64 // % of a core, with all of them idle
	alone, beside, part []float64
	p99Alone, p99Beside []float64
	firstErr            error
}

// idleConnsRow measures what connections cost that nobody uses: memory, CPU, and
// what is left of the rate of some that are used.
func (b *bench) idleConnsRow(ctx context.Context) (_ []outcome, err error) {
	if err := enoughFiles(b.idleConns + idleConnsBusy); err != nil {
		return []outcome{skipped(idleConnName, err)}, nil
	}
	var all []*holder
	defer func() {
		for _, h := range all {
			err = errors.Join(err, h.stop())
		}
	}()
	for _, lane := range []string{raftkvLeader, gatewayLeader, bareHandlerLane} {
		if !b.lanes.MatchString(lane) {
			continue
		}
		l := b.lane(lane)
		system, nodes := b.system(l.system)
		c, err := newCluster(ctx, system, l.system, b.temp, nodes)
		h := &holder{name: lane, dial: l.dial, cluster: c, open: openConns(l.dial),
			busy: row{conns: idleConnsBusy, size: usualSize, keys: usualKeys, read: get}}
		all = append(all, h)
		if err == nil {
			err = h.hold(ctx, b.idleConns)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", lane, err)
		}
	}
	if err := b.holdInTurns(ctx, all, b.idleConns); err != nil {
		return nil, err
	}
	return []outcome{idleConnsOutcome(all, b.idleConns)}, nil
}

// holdInTurns gives each system its turns.
func (b *bench) holdInTurns(ctx context.Context, all []*holder, n int) error {
	m := &measurer{settings: b.settings}
	for range b.turns {
		for _, h := range all {
			if err := h.turn(ctx, m, n); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			b.detailf("  %-24s %8.0f/s alone, %.0f/s beside", h.name, h.alone[len(h.alone)-1], h.beside[len(h.beside)-1])
		}
	}
	return nil
}

// idleClients are connections that have made one request each.
type idleClients []client

func openConns(dial dialer) func(ctx context.Context, addr string, n int) (idle, error) {
	return func(ctx context.Context, addr string, n int) (idle, error) {
		clients, err := openIdle(ctx, addr, dial, n)
		return idleClients(clients), err
	}
}

// lost: a server drops the idle connection that fails first.
func (c idleClients) lost() error {
	return errors.Join(c[0].do(get, 0), c[len(c)-1].do(get, 0))
}

func (c idleClients) close() { closeAll(c) }

// openIdle opens connections that make one request each, at once: before that, a
// server has given them little, and soon closes them.
func openIdle(ctx context.Context, addr string, dial dialer, conns int) (all []client, err error) {
	const limit, together = 10 * time.Minute, 50
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	for len(all) < conns {
		some, err := dial(addr, min(together, conns-len(all)), valueMaker{size: usualSize}, limit)
		if err != nil {
			return all, err
		}
		for i, c := range some {
			all = append(all, c)
			if err := errors.Join(c.do(getStale, uint64(i)), ctx.Err()); err != nil {
				closeAll(some[i+1:])
				return all, fmt.Errorf("idle connection %d: %w", len(all), err)
			}
		}
	}
	return all, nil
}

// hold measures the memory and the CPU that idle connections or watches take on a node
// that has had no others.
func (h *holder) hold(ctx context.Context, conns int) error {
	if err := fillCluster(ctx, h.cluster, h.dial, usualSize, usualKeys); err != nil {
		return err
	}
	leader, err := h.leader(ctx)
	if err != nil {
		return err
	}
	h.node = leader
	if err := sleep(ctx, idleConnsSettle); err != nil {
		return err
	}
	before, err := resident(leader.pid())
	if err != nil {
		return err
	}
	idle, err := h.open(ctx, leader.client, conns)
	if err != nil {
		return err
	}
	defer idle.close()
	if err := sleep(ctx, idleConnsSettle); err != nil {
		return err
	}
	if h.resident, err = resident(leader.pid()); err != nil {
		return err
	}
	began, err := cpuTime(leader.pid())
	if err != nil {
		return err
	}
	if err := sleep(ctx, idleConnsLength); err != nil {
		return err
	}
	ended, err := cpuTime(leader.pid())
	h.perConn = float64(h.resident-before) / float64(conns)
	h.cpu = 100 * (ended - began).Seconds() / idleConnsLength.Seconds()
	return err
}

// turn measures the busy connections alone, and beside the idle ones.
func (h *holder) turn(ctx context.Context, m *measurer, conns int) error {
	alone, err := m.once(ctx, h.cluster, h.node, h.dial, h.busy, 0)
	if err != nil {
		return err
	}
	idle, err := h.open(ctx, h.node.client, conns)
	if err != nil {
		return err
	}
	defer idle.close()
	beside, err := m.once(ctx, h.cluster, h.node, h.dial, h.busy, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(alone.firstErr, beside.firstErr); err != nil {
		h.firstErr = err
	}
	h.alone, h.p99Alone = append(h.alone, alone.rate()), append(h.p99Alone, alone.ms(99))
	h.beside, h.p99Beside = append(h.beside, beside.rate()), append(h.p99Beside, beside.ms(99))
	h.part = append(h.part, ratio(beside.rate(), alone.rate()))
	if err := idle.lost(); err != nil {
		return fmt.Errorf("what was idle did not last: %w", err)
	}
	return nil
}

const heldNote = "memory of the node above that without them; medians of the turns, each first without and then with them"

func idleConnsOutcome(all []*holder, conns int) outcome {
	return outcome{Row: idleConnName, Lines: heldLines(all, "KiB a conn"), Notes: []string{
		fmt.Sprintf("%d connections to the leader, which have made one request each; %d busy ones send linearizable GETs", conns, idleConnsBusy),
		heldNote}}
}

// heldLines are the figures of each system; each is what the memory of one is called.
func heldLines(all []*holder, each string) (lines []line) {
	for _, h := range all {
		l := line{Name: h.name, Turns: h.beside, P99: h.p99Beside, Figures: []figure{
			{Name: each, Value: h.perConn / 1024, decimals: 1},
			{Name: "MiB in all", Value: float64(h.resident) / (1 << 20)},
			{Name: "idle CPU %", Value: h.cpu, decimals: 1},
			{Name: "alone/s", Value: quantile(h.alone, 0.5)},
			{Name: "beside/s", Value: quantile(h.beside, 0.5)},
			{Name: "+- %", Value: 100 * spread(h.beside)},
			{Name: "beside / alone", Value: quantile(h.part, 0.5), decimals: 2},
			{Name: "alone p99 ms", Value: quantile(h.p99Alone, 0.5), decimals: 2},
			{Name: "beside p99 ms", Value: quantile(h.p99Beside, 0.5), decimals: 2},
		}}
		if h.firstErr != nil {
			l.Remarks = append(l.Remarks, "INVALID: "+h.firstErr.Error())
		}
		lines = append(lines, l)
	}
	return lines
}
