package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// The rows with a million keys share the clusters that hold them.

const (
	emptySettle  = 5 * time.Second  // before the memory of an empty node is looked at
	filledSettle = 30 * time.Second // before that of a full one is
	restarts     = 5
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
func (b *bench) millionRows(ctx context.Context) ([]outcome, error) {
	t := &millionTable{
		memory: outcome{Row: memoryName, Notes: []string{fmt.Sprintf("%d keys", b.keys),
			fmt.Sprintf("resident memory above that of an empty node, by key, %v after the last write; the largest of three nodes", filledSettle)}},
		snapshot: outcome{Row: snapshotName},
		restart: outcome{Row: restartName, Notes: []string{
			"a follower, killed and started; until it says that it is ready and has applied what its leader had"}},
		join: outcome{Row: joinName, Notes: []string{"a fourth node, from its start until it votes, is ready and has applied what the leader had"}},
	}
	if b.lanes.MatchString("raftkv") {
		if err := b.fullCluster(ctx, t, "raftkv", b.raftkv, dialRaftkv); err != nil {
			return nil, err
		}
	}
	if b.lanes.MatchString("etcd gRPC") {
		if err := b.fullCluster(ctx, t, "etcd", b.etcd, dialGRPC(b.workersPer)); err != nil {
			return nil, err
		}
	}
	t.judgeRestart()
	var out []outcome
	for _, o := range []outcome{t.memory, t.snapshot, t.restart, t.join} {
		if b.wanted(o.Row) && len(o.Lines) > 0 {
			out = append(out, o)
		}
	}
	return out, nil
}

// judgeRestart compares the two systems.
func (t *millionTable) judgeRestart() {
	if len(t.restart.Lines) == 2 {
		own, rival := t.restart.Lines[0].Figures[0].Value, t.restart.Lines[1].Figures[0].Value
		t.restart.Targets = append(t.restart.Targets, atMost("median of raftkv / etcd", own/rival, 0.5))
	}
}

// fullCluster starts a cluster, fills it, and measures the rows that are wanted.
func (b *bench) fullCluster(ctx context.Context, t *millionTable, name string, s system, dial dialer) (err error) {
	c, err := newCluster(ctx, s, name, b.temp, 3)
	defer func() { err = errors.Join(err, c.stop()) }()
	if err != nil {
		return err
	}
	f := &full{bench: b, cluster: c, dial: dial, keys: keyRange{count: b.keys}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s with %d keys: %w", name, b.keys, err)
		}
	}()
	if err := f.fill(ctx, t); err != nil {
		return err
	}
	if b.wanted(restartName) { // while both systems have had the same writes
		if err := f.restart(ctx, t); err != nil {
			return err
		}
	}
	if name == "raftkv" && b.wanted(snapshotName) { // etcd has no such moments: its backend is a database on disk
		if err := f.besideSnapshots(ctx, t); err != nil {
			return err
		}
	}
	if b.wanted(joinName) {
		return f.join(ctx, t)
	}
	return nil
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
		t.memory.Targets = append(t.memory.Targets, atMost("bytes a key at rest", perKey, 500))
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

// restart kills a follower and starts it again, some times.
func (f *full) restart(ctx context.Context, t *millionTable) error {
	var seconds []float64
	for range restarts {
		n, err := f.follower(ctx)
		if err != nil {
			return err
		}
		took, err := f.restartNode(ctx, n)
		if err != nil {
			return err
		}
		seconds = append(seconds, took)
		f.detailf("  %-24s restarted in %.2f s", f.name, took)
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	t.restart.Lines = append(t.restart.Lines, line{Name: f.name, Turns: seconds, Figures: []figure{
		{Name: "median s", Value: quantile(seconds, 0.5), decimals: 2},
		{Name: "min s", Value: quantile(seconds, 0), decimals: 2},
		{Name: "max s", Value: quantile(seconds, 1), decimals: 2}}})
	return nil
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
