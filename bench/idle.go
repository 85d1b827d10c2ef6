package main

import (
	"context"
	"errors"
	"time"
)

const (
	idleSettle = 10 * time.Second // after the start, before the measuring
	idleLength = 30 * time.Second
)

// idleRow measures what three nodes use that nobody asks anything.
func (b *bench) idleRow(ctx context.Context) (_ []outcome, err error) {
	var clusters []*cluster
	defer func() {
		for _, c := range clusters {
			err = errors.Join(err, c.stop())
		}
	}()
	for name, s := range map[string]system{"raftkv": b.raftkv, "etcd": b.etcd} {
		c, err := newCluster(ctx, s, name, b.temp, 3)
		clusters = append(clusters, c)
		if err != nil {
			return nil, err
		}
	}
	if clusters[0].name != "raftkv" {
		clusters[0], clusters[1] = clusters[1], clusters[0]
	}
	if err := sleep(ctx, idleSettle); err != nil {
		return nil, err
	}
	before, err := nodesCPU(clusters)
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, idleLength); err != nil {
		return nil, err
	}
	after, err := nodesCPU(clusters)
	if err != nil {
		return nil, err
	}
	return idleOutcome(clusters, before, after)
}

// nodesCPU returns the CPU that each node of each cluster has used.
func nodesCPU(clusters []*cluster) (map[*node]time.Duration, error) {
	used := map[*node]time.Duration{}
	for _, c := range clusters {
		for _, n := range c.nodes {
			var err error
			if used[n], err = cpuTime(n.pid()); err != nil {
				return nil, err
			}
		}
	}
	return used, nil
}

func idleOutcome(clusters []*cluster, before, after map[*node]time.Duration) ([]outcome, error) {
	o := outcome{Row: idleName, Notes: []string{"the busiest and the largest of three nodes"}}
	for _, c := range clusters {
		cpu := 0.0
		for _, n := range c.nodes {
			cpu = max(cpu, 100*(after[n]-before[n]).Seconds()/idleLength.Seconds())
		}
		sizes, err := c.resident()
		if err != nil {
			return nil, err
		}
		mib := float64(sizes.largest()) / (1 << 20)
		o.Lines = append(o.Lines, line{Name: c.name, Figures: []figure{
			{Name: "CPU % of a core", Value: cpu, decimals: 2}, {Name: "resident MiB", Value: mib, decimals: 1}}})
		if c.name == "raftkv" {
			o.Targets = []verdict{atMost("CPU of an idle node, % of a core", 1, cpu), atMost("resident MiB", 40, mib)}
		}
	}
	return []outcome{o}, nil
}

// memory is the resident memory of each node in bytes.
type memory []int64

func (c *cluster) resident() (memory, error) {
	var m memory
	for _, n := range c.nodes {
		size, err := resident(n.pid())
		if err != nil {
			return nil, err
		}
		m = append(m, size)
	}
	return m, nil
}

func (m memory) largest() int64 {
	most := int64(0)
	for _, size := range m {
		most = max(most, size)
	}
	return most
}
