package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The row about the removal of large state files: turns so long, and values so
// large, that each node of raftkv writes a new state file in every turn, at half of
// etcd's rate, and removes the one before.

const (
	removalValue = 16 << 10
	removalQuota = 8 << 30 // etcd keeps all that was ever written
	quietLimit   = time.Minute
)

// removalRow measures writes while large state files are removed.
func (b *bench) removalRow(ctx context.Context) (_ []outcome, err error) {
	with := *b
	with.etcd.quota = removalQuota
	rows := chosen([]row{{name: removalName, writes: 1, conns: 64, size: removalValue, keys: keyRange{count: b.largeKeys},
		atHalf: true, lanes: []string{raftkvLeader, grpcLeader}, targets: []target{
			{lane: raftkvLeader, figure: figureP99, most: 0.5, rival: grpcLeader},
		}}}, b.rows, b.lanes, false)
	if len(rows[0].lanes) == 0 {
		return nil, nil
	}
	r := rows[0]
	a := &arena{measurer: measurer{settings: b.settings}, log: b.detailf}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.start(ctx, &with, rows); err != nil {
		return nil, err
	}
	if r.rate, err = a.halfOfEtcd(ctx, r); err != nil { // a short turn is enough for that
		return nil, err
	}
	a.length = removalTurn(b.largeTime, r.rate)
	r.keys.count = min(b.largeKeys, removalKeys(a.warm+a.length, r.rate))
	if err := a.prepare(ctx, r); err != nil {
		return nil, err
	}
	c := a.clusters[raftkvSystem]
	if c == nil {
		m, err := a.turnsOf(ctx, r)
		if err != nil {
			return nil, err
		}
		return []outcome{m.outcome()}, nil
	}
	// What a turn has left behind is not the next one's load.
	a.between = func(ctx context.Context) error {
		return waitFor(ctx, quietLimit, func() error { return quiet(c.nodes) })
	}
	stop := watchRemovals(c.nodes)
	m, err := a.turnsOf(ctx, r)
	seen := stop()
	if err != nil {
		return nil, err
	}
	o := m.outcome()
	reportRemovals(&o, r.keys.count, m.lane(raftkvLeader).turns, seen)
	return []outcome{o}, nil
}

// removalTurn returns how long a turn is to be: long enough to write half as much
// again as the log below which no node of raftkv writes a state file, but no more than
// three times as long as asked for.
func removalTurn(asked time.Duration, rate float64) time.Duration {
	const leastLog = 64 << 20
	need := time.Duration(1.5 * leastLog / (rate * removalValue) * float64(time.Second))
	return max(asked, min(need, 3*asked))
}

// removalKeys returns how many keys there may be for a turn to write a third more than
// all of them hold: a node of raftkv writes its next state file when its log has grown
// as large as its state.
func removalKeys(turn time.Duration, rate float64) uint64 {
	return max(1, uint64(0.75*rate*turn.Seconds()))
}

// quiet returns nil while no node writes a state file or removes one.
func quiet(nodes []*node) error {
	for _, n := range nodes {
		names, err := stateFiles(n, "*")
		if err != nil {
			return err
		}
		if whole, err := stateFiles(n, "*.state"); err != nil || len(names) > 1 || len(whole) < len(names) {
			return errors.Join(err, fmt.Errorf("node %d is at work on %v", n.id, names))
		}
	}
	return nil
}

// stateFiles returns the files in a node's directory of states.
func stateFiles(n *node, pattern string) ([]string, error) {
	return filepath.Glob(filepath.Join(n.dir, "snap", pattern))
}

// removal is a state file that a node has removed, or has begun to.
type removal struct {
	at   time.Time
	size int64
}

// removalWatch looks for state files that go.
type removalWatch struct {
	there map[string]int64 // sizes of the files by path
	gone  []removal
}

// watchRemovals looks at the nodes until the function that it returns is called.
func watchRemovals(nodes []*node) (stop func() []removal) {
	w := &removalWatch{there: map[string]int64{}}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			w.look(nodes, time.Now())
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	})
	return func() []removal { close(ended); running.Wait(); return w.gone }
}

// look notes which files have come and which have gone. One with another name is
// gone: it is on its way out. A file's size counts once it is no longer a
// temporary one.
func (w *removalWatch) look(nodes []*node, now time.Time) {
	next := map[string]int64{}
	for _, n := range nodes {
		names, _ := stateFiles(n, "*.state") // its only error is a bad pattern
		for _, name := range names {
			if info, err := os.Stat(name); err == nil { // else it has just gone
				next[name] = max(info.Size(), w.there[name])
			}
		}
	}
	for name, size := range w.there {
		if _, there := next[name]; !there {
			w.gone = append(w.gone, removal{now, size})
		}
	}
	w.there = next
}

// reportRemovals says how many files went in the turns, and how large they were. A
// turn without one says nothing about removals: the target is not met then.
func reportRemovals(o *outcome, keys uint64, turns []turnFigures, seen []removal) {
	var counts []string
	var bytes int64
	all, least := 0, -1
	for _, t := range turns {
		count := 0
		for _, r := range seen {
			if r.at.After(t.began) && r.at.Before(t.ended) {
				count++
				bytes += r.size
			}
		}
		counts = append(counts, fmt.Sprint(count))
		all += count
		if least < 0 || count < least {
			least = count
		}
	}
	o.Notes = append(o.Notes, fmt.Sprintf("%d keys", keys), fmt.Sprintf("in raftkv's turns %d state files of %.0f MB were removed, by turn: %s",
		all, float64(bytes)/1e6/float64(max(1, all)), strings.Join(counts, ", ")))
	if least < 1 {
		o.Notes = append(o.Notes, "NO REMOVAL IN A TURN: measure longer, with -large-time")
		for i := range o.Targets {
			o.Targets[i].Met = false
		}
	}
}
