package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// How cost grows, along four axes. Each point is one turn of two seconds: the
// curves are for their shape, the table is for numbers.

const (
	growthTurn   = 2 * time.Second
	growthConns  = 64
	growthRest   = 10 * time.Second // before memory is looked at
	growthQuota  = 8 << 30
	raftkvSeries = "raftkv"
	etcdSeries   = "etcd gRPC"
)

// growth is one run along the axes.
type growth struct {
	*bench
	measurer
}

// contestant is a system with the client that suits it best.
type contestant struct {
	name string
	system
	dial dialer
}

func (g *growth) contestants() []contestant {
	own := g.bench.raftkv
	own.flags = append([]string{"--quota", fmt.Sprintf("%dGiB", growthQuota>>30)}, own.flags...)
	rival := g.bench.etcd
	rival.quota = growthQuota
	return []contestant{
		{raftkvSeries, own, dialRaftkv},
		{etcdSeries, rival, dialGRPC(g.bench.workersPer)},
	}
}

// growthCharts measures along the axes that are wanted, and draws the charts.
func (b *bench) growthCharts(ctx context.Context) ([]outcome, error) {
	g := &growth{bench: b, measurer: measurer{settings: b.settings}}
	g.measurer.length = growthTurn
	var out []outcome
	for _, axis := range []struct {
		name    string
		measure func(context.Context) ([]*chart, error)
	}{
		{"growth by nodes", g.byNodes},
		{"growth by connections", g.byConnections},
		{"growth by size", g.bySize},
		{"growth by keys", g.byKeys},
	} {
		if !b.wanted(axis.name) {
			continue
		}
		b.logf("%s ...", axis.name)
		charts, err := axis.measure(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", axis.name, err)
		}
		for _, c := range charts {
			if err := c.draw(b.growth); err != nil {
				return nil, err
			}
			o := c.outcome()
			o.print(os.Stdout)
			out = append(out, o)
		}
	}
	return out, nil
}

// with runs f with a cluster of a contestant.
func (g *growth) with(ctx context.Context, who contestant, nodes int, f func(c *cluster) error) (err error) {
	if !g.lanes.MatchString(who.name) {
		return nil
	}
	c, err := newCluster(ctx, who.system, who.name, g.temp, nodes)
	defer func() { err = errors.Join(err, c.stop()) }()
	if err != nil {
		return err
	}
	return f(c)
}

// point measures one turn through the leader, and adds its rate to a chart
// unless there were errors, and its p99 to another if there is one.
func (g *growth) point(ctx context.Context, c *cluster, who contestant, r row, x float64, rates, p99 *chart) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	res, err := g.once(ctx, c, leader, who.dial, r, 0)
	if err != nil {
		return err
	}
	name := who.name + map[bool]string{true: ", PUT", false: ", GET"}[r.writes > 0]
	if res.errors > 0 {
		g.logf("  %s at %v: left out, %d errors, the first: %v", name, x, res.errors, res.firstErr)
		return nil
	}
	g.detailf("  %-24s %8.0f: %8.0f/s, p99 %.2f ms", name, x, res.rate(), res.ms(99))
	rates.add(name, x, res.rate())
	if p99 != nil {
		p99.add(name, x, res.ms(99))
	}
	return nil
}

// both measures a point of PUT and one of GET.
func (g *growth) both(ctx context.Context, c *cluster, who contestant, conns int, keys keyRange, x float64, rates, p99 *chart) error {
	r := row{conns: conns, size: usualSize, keys: keys, read: get}
	for _, r.writes = range []float64{1, 0} {
		if err := g.point(ctx, c, who, r, x, rates, p99); err != nil {
			return err
		}
	}
	return nil
}

func (g *growth) byNodes(ctx context.Context) ([]*chart, error) {
	rates := &chart{file: "growth-nodes.svg", title: "More nodes", x: "nodes", y: "requests/s"}
	for _, who := range g.contestants() {
		for _, nodes := range []int{1, 3, 5, 7} {
			err := g.with(ctx, who, nodes, func(c *cluster) error {
				if err := fillCluster(ctx, c, who.dial, usualSize, usualKeys); err != nil {
					return err
				}
				return g.both(ctx, c, who, growthConns, usualKeys, float64(nodes), rates, nil)
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return []*chart{rates}, nil
}

func (g *growth) byConnections(ctx context.Context) ([]*chart, error) {
	rates := &chart{file: "growth-connections.svg", title: "More connections", x: "connections", y: "requests/s"}
	p99 := &chart{file: "growth-latency.svg", title: "Latency with more connections", x: "connections", y: "p99, ms", logY: true}
	for _, who := range g.contestants() {
		err := g.with(ctx, who, 3, func(c *cluster) error {
			if err := fillCluster(ctx, c, who.dial, usualSize, usualKeys); err != nil {
				return err
			}
			for conns := 1; conns <= 4096; conns *= 4 {
				if err := g.both(ctx, c, who, conns, usualKeys, float64(conns), rates, p99); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return []*chart{rates, p99}, nil
}

func (g *growth) bySize(ctx context.Context) ([]*chart, error) {
	rates := &chart{file: "growth-values.svg", title: "Larger values", x: "bytes of a value", y: "requests/s", logY: true, binary: true}
	const most = 64 << 20 // bytes of all values
	for _, who := range g.contestants() {
		err := g.with(ctx, who, 3, func(c *cluster) error {
			for _, size := range []int{16, 128, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20} {
				r := row{writes: 1, conns: growthConns, size: size, keys: keyRange{count: min(10_000, most/uint64(size))}}
				if err := g.point(ctx, c, who, r, float64(size), rates, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return []*chart{rates}, nil
}

// byKeys measures one node: three with ten million keys would not all fit into
// the memory of a small machine. etcd stops at a million.
func (g *growth) byKeys(ctx context.Context) ([]*chart, error) {
	k := &keyCharts{
		rates:   &chart{file: "growth-keys.svg", title: "More keys, one node", x: "keys", y: "requests/s"},
		memory:  &chart{file: "growth-memory.svg", title: "Memory with more keys, one node", x: "keys", y: "resident bytes a key", logY: true},
		restart: &chart{file: "growth-restart.svg", title: "Restart with more keys, one node", x: "keys", y: "seconds until ready", logY: true},
	}
	most := map[string]uint64{raftkvSeries: g.mostKeys, etcdSeries: min(g.mostKeys, 1_000_000)}
	for _, who := range g.contestants() {
		err := g.with(ctx, who, 1, func(c *cluster) error {
			f := &full{bench: g.bench, cluster: c, dial: who.dial}
			for count := uint64(10_000); count <= most[who.name]; count *= 10 {
				if err := g.grow(ctx, f, who, count, k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return []*chart{k.rates, k.memory, k.restart}, nil
}

type keyCharts struct{ rates, memory, restart *chart }

// grow fills a node up to so many keys, and measures it.
func (g *growth) grow(ctx context.Context, f *full, who contestant, count uint64, k *keyCharts) (err error) {
	if f.empty == nil {
		if f.empty, err = f.resident(); err != nil {
			return err
		}
	}
	began, had := time.Now(), f.keys.count
	if err := fillCluster(ctx, f.cluster, who.dial, usualSize, keyRange{first: had, count: count - had}); err != nil {
		return err
	}
	g.detailf("  %-24s %8d keys, filled in %.0f s", who.name, count, time.Since(began).Seconds())
	f.keys.count = count
	if err := sleep(ctx, growthRest); err != nil {
		return err
	}
	size, err := f.resident()
	if err != nil {
		return err
	}
	x := float64(count)
	k.memory.add(who.name, x, f.perKey(size))
	if err := g.both(ctx, f.cluster, who, growthConns, f.keys, x, k.rates, nil); err != nil {
		return err
	}
	seconds, err := f.restartNode(ctx, f.nodes[0])
	k.restart.add(who.name, x, seconds)
	return err
}
