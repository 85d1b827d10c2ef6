package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// The rows about one key that many watch.

const (
	fanOutWatchers = 1000
	fanOutWriters  = 64
	// fanOutStretch is how much longer a turn is than others: a change counts often.
	fanOutStretch = 2
	// fanOutDrain is how long the watchers of a turn may take to see its last changes.
	fanOutDrain = 10 * time.Second
	// grpcWatches are so many watches on a connection of etcd's client.
	grpcWatches = 50
)

// fanOutRow is one of these rows.
type fanOutRow struct {
	name  string
	rate  float64 // changes a second
	lanes []string
}

// The gateway does not keep up with the faster row, and what is then left of it would be the
// load of others. In the slower one it is the last of a turn.
var fanOutRows = []fanOutRow{
	{fanOutName, 1000, []string{raftkvLeader, raftkvFollower, grpcLeader, grpcFollower}},
	{fanOutSlowName, 100, []string{raftkvLeader, raftkvFollower, grpcLeader, grpcFollower, gatewayLeader}},
}

// watchLane is a system, the way to watch it, and through which node.
type watchLane struct {
	name     string
	system   string
	follower bool // the watchers are at a follower; all writes go to the leader
	watch    watchDialer
	write    hotDialer
}

// watchLane returns the lane of a name.
func (s settings) watchLane(name string) watchLane {
	l := watchLane{name: name, system: s.lane(name).system, follower: s.lane(name).follower}
	switch name {
	case gatewayLeader:
		l.watch, l.write = watchGateway, hotGateway
	case grpcLeader, grpcFollower:
		l.watch, l.write = watchGRPC(grpcWatches), hotGRPC(s.workersPer)
	default:
		l.watch, l.write = watchRaftkv, hotRaftkv
	}
	return l
}

// fanned is what a lane did in such a row, by turn.
type fanned struct {
	lane              watchLane
	on                *cluster
	watchers          int
	drain             time.Duration // how long the watchers may take to see the last changes
	changes, events   []float64     // a second
	seen              []float64     // %
	p50, p99          []float64     // ms, from a PUT to a watcher
	putP99            []float64     // ms
	serverCPU, client []float64     // us an event
	firstErr          error
}

// fanOut measures how soon many watchers of one key see its changes.
func (b *bench) fanOut(ctx context.Context) (out []outcome, err error) {
	if err := enoughFiles(fanOutWatchers + fanOutWriters); err != nil {
		for _, r := range fanOutRows {
			out = append(out, skipped(r.name, err))
		}
		return out, nil
	}
	clusters := map[string]*cluster{}
	defer func() {
		for _, c := range clusters {
			err = errors.Join(err, c.stop())
		}
	}()
	var failed error // of one row, which ends none of the others
	for _, r := range fanOutRows {
		if !b.wanted(r.name) {
			continue
		}
		o, err := b.fanOutOnce(ctx, r, clusters)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.name, err))
			continue
		}
		out = append(out, o)
	}
	return out, failed
}

// fanOutOnce measures one row, and starts what clusters it needs.
func (b *bench) fanOutOnce(ctx context.Context, r fanOutRow, clusters map[string]*cluster) (outcome, error) {
	var lanes []*fanned
	for _, name := range r.lanes {
		if !b.lanes.MatchString(name) {
			continue
		}
		l := b.watchLane(name)
		if clusters[l.system] == nil {
			system, nodes := b.system(l.system)
			c, err := newCluster(ctx, system, l.system, b.temp, nodes)
			clusters[l.system] = c
			if err != nil {
				return outcome{}, err
			}
		}
		lanes = append(lanes, &fanned{lane: l, on: clusters[l.system], watchers: fanOutWatchers, drain: fanOutDrain})
	}
	s := b.settings
	s.length *= fanOutStretch
	for range b.turns {
		for _, l := range lanes {
			if err := l.turn(ctx, s, r.rate); err != nil {
				return outcome{}, fmt.Errorf("%s: %w", l.lane.name, err)
			}
			last := len(l.changes) - 1
			b.detailf("  %-24s %8.0f changes/s, %.2f %% seen  p50 %.2f  p99 %.2f ms", l.lane.name, l.changes[last], l.seen[last], l.p50[last], l.p99[last])
		}
	}
	return fanOutOutcome(r, lanes), nil
}

// turn has the watchers of a lane see the changes of a turn.
func (l *fanned) turn(ctx context.Context, s settings, rate float64) (err error) {
	leader, err := l.on.leader(ctx)
	if err != nil {
		return err
	}
	at := leader
	if l.lane.follower {
		at = l.on.other(leader)
	}
	c := newChanges(int(rate*(s.warm+s.length).Seconds()) + fanOutWriters + 1)
	a := newAudience(c, s.warm, s.length)
	w, err := l.lane.watch(ctx, at.client, l.watchers, func(int) uint64 { return hotKey }, a)
	if err != nil {
		return err
	}
	defer w.close()
	clients, err := l.lane.write(leader.client, fanOutWriters, c, s.timeLimit())
	if err != nil {
		return err
	}
	defer closeAll(clients)
	a.from = time.Now().Add(s.warm) // the watchers wait meanwhile, and see nothing
	a.until = a.from.Add(s.length)
	res, err := load{keys: keyRange{count: 1}, writes: 1, rate: rate, warm: s.warm, length: s.length}.run(ctx, clients, l.on.pids())
	if err != nil {
		return err
	}
	made := int64(c.next.Load())
	l.firstErr = cmp.Or(l.firstErr, res.firstErr, a.wait(ctx, w, made*int64(l.watchers), l.drain))
	l.add(res, a, made)
	return ctx.Err()
}

// wait waits until the watchers have seen so much, but no longer than limit.
func (a *audience) wait(ctx context.Context, w watching, all int64, limit time.Duration) error {
	seen := int64(0)
	err := waitFor(ctx, limit, func() error {
		seen, _, _ = a.sum()
		if w.lost() == nil && seen != all {
			return errNotSeen
		}
		return nil
	})
	if errors.Is(err, errNotSeen) {
		err = fmt.Errorf("%w: %d of %d within %v of the last", errNotSeen, seen, all, limit)
	}
	return cmp.Or(w.lost(), err)
}

var errNotSeen = errors.New("not all changes were seen")

// add adds the figures of a turn in which so many changes were made.
func (l *fanned) add(res *result, a *audience, made int64) {
	seen, inTime, delay := a.sum()
	perEvent := func(cpu time.Duration) float64 { return float64(cpu.Microseconds()) / float64(max(1, inTime)) }
	l.changes = append(l.changes, res.rate())
	l.events = append(l.events, float64(inTime)/res.seconds)
	l.seen = append(l.seen, 100*ratio(float64(seen), float64(made*int64(l.watchers))))
	l.p50 = append(l.p50, float64(delay.ValueAtQuantile(50))/1000)
	l.p99 = append(l.p99, float64(delay.ValueAtQuantile(99))/1000)
	l.putP99 = append(l.putP99, res.ms(99))
	l.serverCPU, l.client = append(l.serverCPU, perEvent(res.serverCPU)), append(l.client, perEvent(res.clientCPU))
}

func fanOutOutcome(r fanOutRow, lanes []*fanned) outcome {
	o := outcome{Row: r.name, Notes: []string{
		fmt.Sprintf("%d watchers at one node; %.0f PUTs/s of %s, open loop, %d connections to the leader", fanOutWatchers, r.rate, bytesText(watchSize), fanOutWriters),
		"delay of each change at each watcher, from when its PUT was sent; medians of the turns",
		fmt.Sprintf("seen: of all changes at all watchers, within %v of the last", fanOutDrain)}}
	var own, rival *fanned
	for _, l := range lanes {
		first := lanes[0]
		line := line{Name: l.lane.name, Turns: l.events, P99: l.p99, Figures: []figure{
			{Name: "changes/s", Value: quantile(l.changes, 0.5)},
			{Name: "events/s", Value: quantile(l.events, 0.5)},
			{Name: "seen %", Value: quantile(l.seen, 0.5), decimals: 2},
			{Name: "p50 ms", Value: quantile(l.p50, 0.5), decimals: 2},
			{Name: "p99 ms", Value: quantile(l.p99, 0.5), decimals: 2},
			{Name: "PUT p99 ms", Value: quantile(l.putP99, 0.5), decimals: 2},
			{Name: "server us/event", Value: quantile(l.serverCPU, 0.5), decimals: 2},
			{Name: "client us/event", Value: quantile(l.client, 0.5), decimals: 2},
			{Name: "first's p99 is x", Value: quantile(turnRatios(first.p99, l.p99), 0.5), decimals: 2},
		}}
		if l.firstErr != nil {
			line.Remarks = append(line.Remarks, "INVALID: "+l.firstErr.Error())
		}
		o.Lines = append(o.Lines, line)
		switch l.lane.name {
		case raftkvLeader:
			own = l
		case grpcLeader:
			rival = l
		}
	}
	if own == nil {
		return o
	}
	o.Targets = append(o.Targets, atLeast("% of the changes seen through "+own.lane.name, 100, own.seen...), atMost("p99 ms of "+own.lane.name, 100, own.p99...))
	if rival != nil {
		o.Targets = append(o.Targets, atMost(fmt.Sprintf("p99 of %s / %s", own.lane.name, rival.lane.name), 0.5, turnRatios(own.p99, rival.p99)...))
	}
	for i := range o.Targets {
		o.Targets[i].Met = o.Targets[i].Met && own.firstErr == nil
	}
	return o
}

// turnRatios returns a / b, turn by turn.
func turnRatios(a, b []float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		out = append(out, ratio(a[i], b[i]))
	}
	return out
}
