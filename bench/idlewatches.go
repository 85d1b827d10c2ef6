package main

import (
	"context"
	"errors"
	"fmt"
)

// idleGRPCWatches are so many idle watches on a connection of etcd's client.
const idleGRPCWatches = 100

// idleWatchesRow measures what watches cost of keys that nobody changes: memory, CPU, and
// what is left of the rate of writes to other keys.
func (b *bench) idleWatchesRow(ctx context.Context) (_ []outcome, err error) {
	if err := enoughFiles(b.idleWatches + idleConnsBusy); err != nil {
		return []outcome{skipped(idleWatchName, err)}, nil
	}
	var all []*holder
	defer func() {
		for _, h := range all {
			err = errors.Join(err, h.stop())
		}
	}()
	for _, l := range []watchLane{
		{name: raftkvLeader, system: raftkvSystem, watch: watchRaftkv},
		{name: gatewayLeader, system: etcdSystem, watch: watchGateway},
		{name: grpcLeader, system: etcdSystem, watch: watchGRPC(idleGRPCWatches)},
	} {
		if !b.lanes.MatchString(l.name) {
			continue
		}
		system, nodes := b.system(l.system)
		c, err := newCluster(ctx, system, fmt.Sprintf("%s-%d", l.system, len(all)), b.temp, nodes)
		h := &holder{name: l.name, dial: b.lane(l.name).dial, cluster: c, open: openWatches(l.watch),
			busy: row{conns: idleConnsBusy, size: usualSize, keys: usualKeys, writes: 1}}
		all = append(all, h)
		if err == nil {
			err = h.hold(ctx, b.idleWatches)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if err := b.holdInTurns(ctx, all, b.idleWatches); err != nil {
		return nil, err
	}
	return []outcome{idleWatchesOutcome(all, b.idleWatches)}, nil
}

// openWatches opens watches, each of a key of its own, which nobody changes.
func openWatches(watch watchDialer) func(ctx context.Context, addr string, n int) (idle, error) {
	return func(ctx context.Context, addr string, n int) (idle, error) {
		return watch(ctx, addr, n, func(i int) uint64 { return firstIdle + uint64(i) }, newAudience(newChanges(0), 0, 0))
	}
}

func idleWatchesOutcome(all []*holder, watches int) outcome {
	o := outcome{Row: idleWatchName, Lines: heldLines(all, "KiB a watch"), Notes: []string{
		fmt.Sprintf("%d watches at the leader, each of a key of its own that nobody changes; %d connections send PUTs to other keys", watches, idleConnsBusy),
		fmt.Sprintf("raftkv's and the gateway's watches have a connection each; etcd's client has %d on one", idleGRPCWatches),
		heldNote}}
	for _, h := range all {
		if h.name != raftkvLeader {
			continue
		}
		o.Targets = []verdict{
			atMost("MiB of the node with all watches", 1024, float64(h.resident)/(1<<20)),
			atLeast("rate of PUTs beside them / alone", 0.9, h.part...)}
		for i := range o.Targets {
			o.Targets[i].Met = o.Targets[i].Met && h.firstErr == nil
		}
	}
	return o
}
