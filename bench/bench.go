package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench is one run.
type bench struct {
	options
	temp   string // its files, removed at the end
	raftkv raftkv
	etcd   etcd
	nats   nats
	redis  redis
	bare   bare
}

// The rows that have no lanes.
const (
	fsyncName      = "append and fdatasync, the ceiling of one write after the other"
	removalName    = "PUT at half of etcd's maximum, open loop, while large state files are removed"
	idleConnName   = "10,000 idle connections, and 64 busy ones beside them"
	fanOutName     = "1,000 watchers of one key, which changes 1,000 times a second"
	fanOutSlowName = "1,000 watchers of one key, which changes 100 times a second"
	idleWatchName  = "10,000 idle watches, and 64 connections that write beside them"
	idleName       = "three idle nodes, 30 s"
	failoverName   = "leader killed under load"
	memoryName     = "memory, a million keys of 16 + 128 bytes"
	snapshotName   = "PUT while a snapshot of a million keys is taken"
	restartName    = "restart of one node with a million keys"
	joinName       = "join of a node with a million keys"
)

// runBench measures what the options ask for, and prints it. What fails, fails for
// its own row: the others are printed and written, and the error comes last.
func runBench(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if err := b.setUp(); err != nil {
		return err
	}
	began, r := time.Now(), report{Machine: b.describe()}
	fmt.Println(r.Machine)
	measure := b.table
	if o.growth != "" {
		measure = b.growthCharts
	}
	outcomes, failed := measure(ctx)
	if len(outcomes) == 0 && failed == nil {
		return errors.New("no row has such a name")
	}
	r.add(outcomes)
	r.Seconds = time.Since(began).Round(time.Second).Seconds()
	printTargets(os.Stdout, r.Targets)
	fmt.Printf("\nIt took %v.\n", time.Since(began).Round(time.Second))
	return errors.Join(failed, b.keep(r))
}

// keep writes the report as JSON and draws the picture of it, if that is wanted.
func (b *bench) keep(r report) error {
	if b.json != "" {
		if err := r.write(b.json); err != nil {
			return err
		}
	}
	if b.picture == "" {
		return nil
	}
	return r.draw(b.picture)
}

// scenario measures one row or some that share their clusters.
type scenario struct {
	measure func(context.Context) ([]outcome, error)
	rows    []string // that it measures; nil: it chooses, names and prints them itself
}

// table measures the rows of the whole table, or of the short one.
func (b *bench) table(ctx context.Context) ([]outcome, error) {
	all := []scenario{{b.rateTable, nil}}
	if !b.quick {
		all = append(all,
			scenario{b.removalRow, []string{removalName}},
			scenario{b.idleConnsRow, []string{idleConnName}},
			scenario{b.fanOut, []string{fanOutName, fanOutSlowName}},
			scenario{b.idleWatchesRow, []string{idleWatchName}},
			scenario{b.fsyncRow, []string{fsyncName}},
			scenario{b.idleRow, []string{idleName}},
			scenario{b.failoverRow, []string{failoverName}},
			scenario{b.millionRows, []string{memoryName, snapshotName, restartName, joinName}})
	}
	return b.measureAll(ctx, all)
}

// measureAll measures one scenario after the other, and prints each when it is
// done. One that fails ends nothing but itself.
func (b *bench) measureAll(ctx context.Context, scenarios []scenario) (all []outcome, failed error) {
	for _, s := range scenarios {
		if s.rows != nil && !slices.ContainsFunc(s.rows, b.wanted) {
			continue
		}
		if ctx.Err() != nil {
			return all, errors.Join(failed, ctx.Err())
		}
		if s.rows != nil {
			b.logf("%s ...", strings.Join(s.rows, "; "))
		}
		began := time.Now()
		out, err := s.measure(ctx)
		if err != nil {
			failed = errors.Join(failed, err)
			b.logf("FAILED: %v", err)
		}
		if s.rows != nil {
			for _, o := range out {
				o.print(os.Stdout)
			}
			b.detailf("  took %v", time.Since(began).Round(time.Second))
		}
		all = append(all, out...)
	}
	return all, failed
}

// wanted tells whether a row was asked for.
func (b *bench) wanted(row string) bool { return b.rows.MatchString(row) }

// setUp finds or builds the programs, and makes a directory for all files.
func (b *bench) setUp() (err error) {
	if err := checkOnDisk(b.dir); err != nil {
		return err
	}
	if b.temp, err = os.MkdirTemp(b.dir, "raftkv-bench-"); err != nil {
		return err
	}
	path, err := self()
	if err != nil {
		return err
	}
	b.etcd.self, b.nats.self, b.bare.self = path, path, path
	if b.binary == "" {
		b.binary, err = buildRaftkv(b.source, b.temp)
	}
	if err != nil {
		return err
	}
	b.raftkv.flags = strings.Fields(b.flags)
	if b.raftkv.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	b.secured = &secured{filepath.Join(b.temp, "tls")}
	return nil
}

func (b *bench) cleanUp() error {
	if b.temp == "" {
		return nil
	}
	return removeDir(b.temp)
}

// logf tells of progress, apart from the results.
func (b *bench) logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// detailf tells of what few want to know.
func (b *bench) detailf(format string, args ...any) {
	if b.verbose {
		b.logf(format, args...)
	}
}

// rateTable measures the rows whose lanes take turns, and prints each.
func (b *bench) rateTable(ctx context.Context) (out []outcome, failed error) {
	rows := chosen(rateRows(), b.rows, b.lanes, b.quick)
	if err := b.redis.installed(); err != nil {
		rows = without(rows, b.settings, redisSystem, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	a := &arena{measurer: measurer{settings: b.settings}, log: b.detailf}
	defer func() { failed = errors.Join(failed, a.stop()) }()
	if err := a.start(ctx, b, rows); err != nil {
		return nil, err
	}
	for _, r := range rows {
		b.logf("%s ...", r.name)
		if err := enoughFiles(r.conns); err != nil {
			out = append(out, skipped(r.name, err))
			out[len(out)-1].print(os.Stdout)
			continue
		}
		began := time.Now()
		m, err := a.measure(ctx, r)
		if ctx.Err() != nil {
			return out, errors.Join(failed, ctx.Err())
		}
		if err != nil {
			failed = errors.Join(failed, err)
			b.logf("FAILED: %v", err)
			continue
		}
		b.detailf("  took %v", time.Since(began).Round(time.Second))
		o := m.outcome()
		o.print(os.Stdout)
		out = append(out, o)
	}
	return out, failed
}

// skipped is a row that cannot be measured here, and why.
func skipped(row string, why error) outcome {
	return outcome{Row: row, Notes: []string{"skipped: " + why.Error()}}
}

// start starts the systems that the lanes of some rows need.
func (a *arena) start(ctx context.Context, b *bench, rows []row) error {
	a.clusters = map[string]*cluster{}
	for _, r := range rows {
		lanes := r.lanes
		if r.atHalf { // of what etcd reaches
			lanes = append(slices.Clone(lanes), grpcLeader)
		}
		for _, name := range lanes {
			on := a.lane(name).system
			if a.clusters[on] != nil {
				continue
			}
			system, nodes := b.system(on)
			if on == raftkvTLSSystem || on == etcdTLSSystem {
				if err := b.secured.make(b.raftkv.binary, nodes); err != nil {
					return err
				}
			}
			c, err := newCluster(ctx, system, on, b.temp, nodes)
			a.clusters[on] = c
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// system returns a system by its name, and how many nodes of it there are.
func (b *bench) system(name string) (s system, nodes int) {
	switch name {
	case raftkvSystem:
		return b.raftkv, 3
	case etcdSystem:
		return b.etcd, 3
	case raftkvTLSSystem:
		s := b.raftkv
		s.tls = b.secured
		return s, 3
	case etcdTLSSystem:
		s := b.etcd
		s.tls = b.secured
		return s, 3
	case natsSystem:
		return b.nats, 3
	case redisSystem:
		return b.redis, 1
	default:
		return b.bare, 1
	}
}

func (a *arena) stop() error {
	var err error
	for _, c := range a.clusters {
		err = errors.Join(err, c.stop())
	}
	return err
}

func makeDir(path string) error { return os.MkdirAll(path, 0o700) }

func removeDir(path string) error { return os.RemoveAll(path) }
