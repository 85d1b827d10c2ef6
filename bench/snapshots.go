package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

const (
	snapshotConns = 64
	watchInterval = 20 * time.Millisecond
)

// besideSnapshots writes at a fixed rate for so long that nodes write their
// snapshots meanwhile, and compares the requests that met one with the rest.
func (f *full) besideSnapshots(ctx context.Context, t *millionTable) error {
	leader, err := f.leader(ctx)
	if err != nil {
		return err
	}
	before, err := f.term(ctx)
	if err != nil {
		return err
	}
	clients, err := f.dial(leader.client, snapshotConns, valueMaker{size: usualSize}, f.snapshotTime+time.Minute)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	stop := f.watch()
	l := load{keys: f.keys, writes: 1, rate: f.snapshotRate, length: f.snapshotTime, keep: true}
	res, err := l.run(ctx, clients, f.pids())
	seen := stop()
	if err != nil {
		return err
	}
	after, err := f.term(ctx)
	if err != nil {
		return err
	}
	f.reportSnapshots(t, res, seen, after-before)
	return nil
}

// window is a time in which a node wrote a snapshot.
type window struct{ from, until time.Time }

// watched is what was seen of the nodes.
type watched struct {
	windows []window
	peak    memory // of each node, while it wrote one
}

// watch looks at the nodes until the function that it returns is called. A node
// writes a snapshot while there is a temporary file for it.
func (f *full) watch() (stop func() watched) {
	seen := watched{peak: make(memory, len(f.nodes))}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		open := make([]time.Time, len(f.nodes))
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			for i, n := range f.nodes {
				seen.look(i, n, &open[i])
			}
			select {
			case <-tick.C:
			case <-ended:
				seen.closeAll(open)
				return
			}
		}
	})
	return func() watched { close(ended); running.Wait(); return seen }
}

// look notes whether a node writes a snapshot, and since when.
func (s *watched) look(i int, n *node, since *time.Time) {
	names, _ := filepath.Glob(filepath.Join(n.dir, "snap", "*.tmp*")) // its only error is a bad pattern
	switch {
	case len(names) > 0:
		if since.IsZero() {
			*since = time.Now()
		}
		if size, err := resident(n.pid()); err == nil { // else it has ended, which others notice
			s.peak[i] = max(s.peak[i], size)
		}
	case !since.IsZero():
		s.windows = append(s.windows, window{*since, time.Now()})
		*since = time.Time{}
	}
}

func (s *watched) closeAll(open []time.Time) {
	for _, since := range open {
		if !since.IsZero() {
			s.windows = append(s.windows, window{since, time.Now()})
		}
	}
}

// split parts samples into those that were under way during a window, and others.
func split(samples []sample, windows []window) (during, without *result) {
	during, without = newResult(), newResult()
	for _, s := range samples {
		in := without
		for _, w := range windows {
			if s.at.Before(w.until) && s.at.Add(s.took).After(w.from) {
				in = during
			}
		}
		in.record(s.took)
	}
	return during, without
}

func (f *full) reportSnapshots(t *millionTable, res *result, seen watched, moves uint64) {
	during, without := split(res.samples, seen.windows)
	t.snapshot.Notes = append(t.snapshot.Notes,
		fmt.Sprintf("%.0f PUTs/s for %v, open loop; %d snapshots were written, %d errors, the leader changed %d times",
			f.snapshotRate, f.snapshotTime, len(seen.windows), res.errors, moves))
	for _, part := range []struct {
		name string
		*result
	}{{"without a snapshot", without}, {"during snapshots", during}} {
		t.snapshot.Lines = append(t.snapshot.Lines, line{Name: part.name, Figures: []figure{
			{Name: "requests", Value: float64(part.ops)},
			{Name: "p50 ms", Value: part.ms(50), decimals: 2},
			{Name: "p99 ms", Value: part.ms(99), decimals: 2},
			{Name: "p99.9 ms", Value: part.ms(99.9), decimals: 2}}})
	}
	if during.ops == 0 {
		t.snapshot.Notes = append(t.snapshot.Notes, "NO SNAPSHOT WAS SEEN: measure longer, with -snapshot-time")
		t.snapshot.Targets = []verdict{atMost("p99 during / without", 2)}
		return
	}
	p99 := atMost("p99 during / without", 2, ratio(during.ms(99), without.ms(99)))
	p99.Met = p99.Met && res.errors == 0
	t.snapshot.Targets = []verdict{p99, atMost("leader changes", 0, float64(moves))}

	perKey := f.perKey(seen.peak)
	t.memory.Lines = append(t.memory.Lines, line{Name: "raftkv, in a snapshot", Figures: []figure{
		{Name: "bytes a key", Value: perKey}, {Name: "MiB in all", Value: float64(seen.peak.largest()) / (1 << 20)},
		{Name: "MiB empty", Value: float64(f.empty.largest()) / (1 << 20), decimals: 1}}})
	t.memory.Targets = append(t.memory.Targets, atMost("bytes a key in a snapshot", 650, perKey))
}
