package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// The rows with a million keys share the clusters that hold them.

const (
	emptySettle  = 5 * time.Second  // before the memory of an empty node is looked at
	filledSettle = 30 * time.Second // before that of a full one is
)

// millionTable are these rows, as they fill.
type millionTable struct{ memory, snapshot, restart, join outcome }

// full is a cluster that holds a million keys, and what it took without.
type full struct {
	*bench
	*cluster
	dial  dialer
	keys  keyRange
	empty memory
}

// millionRows measures memory, writes beside snapshots, restart and join.
func (b *bench) millionRows(ctx context.Context) (_ []outcome, err error) {
	t := &millionTable{
		memory: outcome{Row: memoryName, Notes: []string{fmt.Sprintf("%d keys", b.keys),
			fmt.Sprintf("resident memory above that of an empty node, by key, %v after the last write; the largest of three nodes", filledSettle)}},
		snapshot: outcome{Row: snapshotName},
		restart: outcome{Row: restartName, Notes: []string{
			"a follower, killed and started; until it says that it is ready and has applied what its leader had",
			"the systems in turns; before each turn but the first a tenth of the keys is written again, in both"}},
		join: outcome{Row: joinName, Notes: []string{"a fourth node, from its start until it votes, is ready and has applied what the leader had"}},
	}
	var all []*full
	defer func() {
		for _, f := range all {
			err = errors.Join(err, f.stop())
		}
	}()
	var failed error // of one system, which ends nothing for the other
	for _, who := range []struct {
		name, lane string
		system     system
		dial       dialer
	}{
		{"raftkv", "raftkv", b.raftkv, dialRaftkv},
		{"etcd", "etcd gRPC", b.etcd, dialGRPC(b.workersPer)},
	} {
		if !b.lanes.MatchString(who.lane) {
			continue
		}
		c, err := newCluster(ctx, who.system, who.name, b.temp, 3)
		f := &full{bench: b, cluster: c, dial: who.dial, keys: keyRange{count: b.keys}}
		if err == nil {
			err = f.fill(ctx, t)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s with %d keys: %w", who.name, b.keys, err), f.stop())
			continue
		}
		all = append(all, f)
	}
	if b.wanted(restartName) { // while both systems have had the same writes
		failed = errors.Join(failed, b.restartInTurns(ctx, t, all))
	}
	for _, f := range slices.Backward(all) { // raftkv is alone at last
		if err := f.alone(ctx, t); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s with %d keys: %w", f.name, b.keys, err))
		}
	}
	slices.Reverse(t.join.Lines)
	return t.outcomes(b), failed
}

// outcomes returns the rows that are wanted and have figures.
func (t *millionTable) outcomes(b *bench) []outcome {
	var out []outcome
	for _, o := range []outcome{t.memory, t.snapshot, t.restart, t.join} {
		if b.wanted(o.Row) && len(o.Lines) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// alone measures what needs no rival, and stops the cluster.
func (f *full) alone(ctx context.Context, t *millionTable) error {
	if f.name == "raftkv" && f.wanted(snapshotName) { // etcd has no such moments: its backend is a database on disk
		if err := f.besideSnapshots(ctx, t); err != nil {
			return err
		}
	}
	if f.wanted(joinName) {
		if err := f.join(ctx, t); err != nil {
			return err
		}
	}
	return f.stop()
}

// fill writes the keys, and notes what memory they take.
func (f *full) fill(ctx context.Context, t *millionTable) (err error) {
	if err := sleep(ctx, emptySettle); err != nil {
		return err
	}
	if f.empty, err = f.resident(); err != nil {
		return err
	}
	began := time.Now()
	if err := fillCluster(ctx, f.cluster, f.dial, usualSize, f.keys); err != nil {
		return err
	}
	f.detailf("  %-24s filled in %.0f s", f.name, time.Since(began).Seconds())
	if err := sleep(ctx, filledSettle); err != nil {
		return err
	}
	size, err := f.resident()
	if err != nil {
		return err
	}
	perKey := f.perKey(size)
	t.memory.Lines = append(t.memory.Lines, line{Name: f.name + ", at rest", Figures: []figure{
		{Name: "bytes a key", Value: perKey}, {Name: "MiB in all", Value: float64(size.largest()) / (1 << 20)},
		{Name: "MiB empty", Value: float64(f.empty.largest()) / (1 << 20), decimals: 1}}})
	if f.name == "raftkv" {
		t.memory.Targets = append(t.memory.Targets, atMost("bytes a key at rest", 500, perKey))
	}
	return nil
}

// perKey returns what a key takes on the node where it takes the most.
func (f *full) perKey(size memory) float64 {
	most := int64(0)
	for i := range size {
		most = max(most, size[i]-f.empty[i])
	}
	return float64(most) / float64(f.keys.count)
}

// restartInTurns restarts a follower of each system, then of each again. How long
// it takes depends on how much log there is behind the last snapshot, so there is
// more of it each time.
func (b *bench) restartInTurns(ctx context.Context, t *millionTable, all []*full) error {
	seconds := make([][]float64, len(all))
	for turn := range b.turns {
		for i, f := range all {
			took, err := f.restartOnce(ctx, turn)
			if err != nil {
				return fmt.Errorf("%s, restart %d: %w", f.name, turn+1, err)
			}
			f.detailf("  %-24s restarted in %.2f s", f.name, took)
			seconds[i] = append(seconds[i], took)
		}
	}
	for i, f := range all {
		s := seconds[i]
		t.restart.Lines = append(t.restart.Lines, line{Name: f.name, Turns: s, Figures: []figure{
			{Name: "median s", Value: quantile(s, 0.5), decimals: 2},
			{Name: "min s", Value: quantile(s, 0), decimals: 2},
			{Name: "max s", Value: quantile(s, 1), decimals: 2}}})
	}
	if len(all) == 2 {
		var parts []float64
		for turn, own := range seconds[0] {
			parts = append(parts, ratio(own, seconds[1][turn]))
		}
		t.restart.Targets = append(t.restart.Targets, atMost("raftkv / etcd", 0.4, parts...))
	}
	return nil
}

// restartOnce kills a follower and starts it again, after some more writes.
func (f *full) restartOnce(ctx context.Context, turn int) (float64, error) {
	if again := f.keys.count / 10; turn > 0 && again > 0 {
		keys := keyRange{first: uint64(turn%10) * again, count: again}
		if err := fillCluster(ctx, f.cluster, f.dial, usualSize, keys); err != nil {
			return 0, err
		}
	}
	n, err := f.follower(ctx)
	if err != nil {
		return 0, err
	}
	took, err := f.restartNode(ctx, n)
	if err != nil {
		return 0, err
	}
	return took, sleep(ctx, time.Second)
}

// restartNode kills a node and starts it, and returns how many seconds it took
// until it was ready and had applied what the cluster had.
func (f *full) restartNode(ctx context.Context, n *node) (float64, error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return 0, err
	}
	goal, err := f.state(leader)
	if err != nil {
		return 0, err
	}
	n.kill()
	began := time.Now()
	if err := f.start(n); err != nil {
		return 0, err
	}
	if err := f.caughtUp(ctx, n, goal.applied); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}

// caughtUp waits until a node is ready and has applied so much of the log.
func (f *full) caughtUp(ctx context.Context, n *node, index uint64) error {
	if err := f.waitNode(ctx, n); err != nil {
		return err
	}
	return waitFor(ctx, startLimit, func() error {
		st, err := f.state(n)
		if err == nil && st.applied < index {
			err = fmt.Errorf("node %d has applied %d of %d", n.id, st.applied, index)
		}
		return err
	})
}

// join adds a fourth node.
func (f *full) join(ctx context.Context, t *millionTable) error {
	leader, err := f.leader(ctx)
	if err != nil {
		return err
	}
	if err := f.addNode(); err != nil {
		return err
	}
	n := f.nodes[len(f.nodes)-1]
	n.joined = true
	join := f.joinRaftkv
	if f.name == "etcd" {
		if join, err = f.addLearner(ctx, leader, n); err != nil {
			return err
		}
	}
	goal, err := f.state(leader)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := f.start(n); err != nil {
		return err
	}
	if err := join(ctx, leader, n); err != nil {
		return err
	}
	if err := f.caughtUp(ctx, n, goal.applied); err != nil {
		return err
	}
	t.join.Lines = append(t.join.Lines, line{Name: f.name, Figures: []figure{
		{Name: "s", Value: time.Since(began).Seconds(), decimals: 2}}})
	return nil
}

// joinRaftkv waits until a node, which adds itself, votes.
func (f *full) joinRaftkv(ctx context.Context, leader, n *node) error {
	if err := f.waitNode(ctx, n); err != nil {
		return err
	}
	return waitFor(ctx, startLimit, func() error {
		var m struct{ Role string }
		err := ask("GET", "http://"+leader.client+"/v1/members/"+strconv.Itoa(n.id), "", &m)
		if err == nil && m.Role != "voter" {
			err = fmt.Errorf("node %d is a %s", n.id, m.Role)
		}
		return err
	})
}

// addLearner tells etcd of a node, and returns what promotes it once it runs,
// as soon as etcd lets it.
func (f *full) addLearner(ctx context.Context, leader, n *node) (join func(ctx context.Context, leader, n *node) error, err error) {
	var added struct{ Member struct{ ID string } }
	body := fmt.Sprintf(`{"peerURLs":["http://%s"],"isLearner":true}`, n.peer)
	err = waitFor(ctx, startLimit, func() error { // it refuses for a while after a node was away
		return ask("POST", "http://"+leader.client+"/v3/cluster/member/add", body, &added)
	})
	return func(ctx context.Context, leader, n *node) error {
		return waitFor(ctx, startLimit, func() error {
			body := fmt.Sprintf(`{"ID":%q}`, added.Member.ID)
			return ask("POST", "http://"+leader.client+"/v3/cluster/member/promote", body, nil)
		})
	}, err
}
