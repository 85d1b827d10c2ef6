package main

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// recordSize is what a PUT of 128 bytes under a key of 16, alone in its batch,
// takes in raftkv's log.
const recordSize = 200

// fsyncRow measures the other ceiling: how often one record after the other can
// be made durable. What is above it is won by records that share a sync.
func (b *bench) fsyncRow(ctx context.Context) ([]outcome, error) {
	res, err := syncRecords(ctx, filepath.Join(b.temp, "log"), 3*b.length)
	if err != nil {
		return nil, err
	}
	return []outcome{{Row: fsyncName, Notes: []string{"records of " + bytesText(recordSize) + ", one at a time"},
		Lines: []line{{Name: "append, fdatasync", Figures: []figure{
			{Name: "rate/s", Value: res.rate()},
			{Name: "p50 ms", Value: res.ms(50), decimals: 2},
			{Name: "p99 ms", Value: res.ms(99), decimals: 2},
			{Name: "p99.9 ms", Value: res.ms(99.9), decimals: 2},
		}}}}}, nil
}

// syncRecords appends and syncs for so long, in a file with room as a
// write-ahead log has it.
func syncRecords(ctx context.Context, path string, length time.Duration) (*result, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the file goes anyway
	if err := reserve(f, 64<<20); err != nil {
		return nil, err
	}
	record, res, begin := make([]byte, recordSize), newResult(), time.Now()
	for time.Since(begin) < length && ctx.Err() == nil {
		start := time.Now()
		if _, err := f.Write(record); err != nil {
			return nil, err
		}
		if err := syncData(f); err != nil {
			return nil, err
		}
		res.record(time.Since(start))
	}
	res.seconds = time.Since(begin).Seconds()
	return res, ctx.Err()
}
