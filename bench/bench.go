package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bench is one run.
type bench struct {
	options
	temp   string // its files, removed at the end
	raftkv raftkv
	etcd   etcd
	bare   bare
}

// The rows that have no lanes.
const (
	fsyncName    = "append and fdatasync, the ceiling of one write after the other"
	idleName     = "three idle nodes, 30 s"
	failoverName = "leader killed under load"
	memoryName   = "memory, a million keys of 16 + 128 bytes"
	snapshotName = "PUT while a snapshot of a million keys is taken"
	restartName  = "restart of one node with a million keys"
	joinName     = "join of a node with a million keys"
)

// runBench measures what the options ask for, and prints it.
func runBench(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if err := b.setUp(); err != nil {
		return err
	}
	machine := b.describe()
	fmt.Println(machine)
	measure := b.table
	if o.growth != "" {
		measure = b.growthCharts
	}
	outcomes, err := measure(ctx)
	if err != nil {
		return err
	}
	if len(outcomes) == 0 {
		return errors.New("no row has such a name")
	}
	printTargets(os.Stdout, outcomes)
	if o.json == "" {
		return nil
	}
	return writeJSON(o.json, machine, outcomes)
}

// table measures the rows, one scenario after the other, and prints each when
// it is done.
func (b *bench) table(ctx context.Context) ([]outcome, error) {
	var all []outcome
	for _, s := range []struct {
		measure func(context.Context) ([]outcome, error)
		rows    []string // that it measures; for the first, rateRows says which
	}{
		{b.rateTable, nil},
		{b.fsyncRow, []string{fsyncName}},
		{b.idleRow, []string{idleName}},
		{b.failoverRow, []string{failoverName}},
		{b.millionRows, []string{memoryName, snapshotName, restartName, joinName}},
	} {
		if s.rows != nil && (b.quick || !slices.ContainsFunc(s.rows, b.wanted)) {
			continue
		}
		if s.rows != nil {
			b.logf("%s ...", strings.Join(s.rows, "; "))
		}
		out, err := s.measure(ctx)
		if err != nil {
			return nil, err
		}
		if s.rows != nil { // rateTable has printed its own
			for _, o := range out {
				o.print(os.Stdout)
			}
		}
		all = append(all, out...)
	}
	return all, nil
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
	b.etcd.self, err = self()
	if err != nil {
		return err
	}
	b.bare.self = b.etcd.self
	if b.binary == "" {
		b.binary, err = buildRaftkv(b.source, b.temp)
	}
	if err != nil {
		return err
	}
	b.raftkv.flags = strings.Fields(b.flags)
	b.raftkv.binary, err = filepath.Abs(b.binary)
	return err
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
func (b *bench) rateTable(ctx context.Context) (_ []outcome, err error) {
	rows := chosen(rateRows(), b.rows, b.lanes, b.quick)
	if len(rows) == 0 {
		return nil, nil
	}
	a := &arena{measurer: measurer{settings: b.settings}, log: b.detailf}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.start(ctx, b); err != nil {
		return nil, err
	}
	var out []outcome
	for _, r := range rows {
		b.logf("%s ...", r.name)
		m, err := a.measure(ctx, r)
		if err != nil {
			return nil, err
		}
		o := m.outcome()
		o.print(os.Stdout)
		out = append(out, o)
	}
	return out, nil
}

func (a *arena) start(ctx context.Context, b *bench) (err error) {
	if a.raftkv, err = newCluster(ctx, b.raftkv, "raftkv", b.temp, 3); err != nil {
		return err
	}
	if a.etcd, err = newCluster(ctx, b.etcd, "etcd", b.temp, 3); err != nil {
		return err
	}
	a.bare, err = newCluster(ctx, b.bare, "bare", b.temp, 1)
	return err
}

func (a *arena) stop() error {
	return errors.Join(a.raftkv.stop(), a.etcd.stop(), a.bare.stop())
}

func makeDir(path string) error { return os.MkdirAll(path, 0o700) }

func removeDir(path string) error { return os.RemoveAll(path) }
