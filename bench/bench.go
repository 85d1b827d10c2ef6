package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// bench is one run.
type bench struct {
	options
	temp   string // its files, removed at the end
	raftkv raftkv
	etcd   etcd
	bare   bare
}

// runBench measures what the options ask for, and prints it.
func runBench(ctx context.Context, o options) (err error) {
	b := &bench{options: o}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if err := b.setUp(); err != nil {
		return err
	}
	return b.rateTable(ctx)
}

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

// rateTable measures the rows whose lanes take turns.
func (b *bench) rateTable(ctx context.Context) (err error) {
	rows := chosen(rateRows(), b.rows, b.lanes, b.quick)
	if len(rows) == 0 {
		return nil
	}
	a := &arena{settings: b.settings, log: b.detailf}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.start(ctx, b); err != nil {
		return err
	}
	var verdicts []verdict
	for _, r := range rows {
		b.logf("%s", r.name)
		m, err := a.measure(ctx, r)
		if err != nil {
			return err
		}
		m.print(os.Stdout)
		verdicts = append(verdicts, m.judge()...)
	}
	printVerdicts(os.Stdout, verdicts)
	return nil
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
