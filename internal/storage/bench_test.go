package storage

import (
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// What it costs to make an entry of 64 puts durable: mostly the disk's fsync.
func BenchmarkAppend(b *testing.B) {
	defer func(size int64) { wal.SegmentSizeBytes = size }(wal.SegmentSizeBytes)
	wal.SegmentSizeBytes = segmentSize // a rotation is to be as rare as it is
	o := openDisk(b, newDisk(b))
	_, keys := statetest.Filled(b, 10_000)
	commands := statetest.Puts(keys, 64, rand.New(rand.NewPCG(1, 1)))
	index := o.Last
	b.ReportAllocs()
	b.SetBytes(int64(len(commands)))
	for b.Loop() {
		index++
		id := state.BatchID{Node: 1, Boot: 1, Seq: index, Low: index}
		data := append(entry.AppendHeader(make([]byte, 0, len(commands)+64), id), commands...)
		e := &raftpb.Entry{Term: new(uint64(1)), Index: new(index), Data: data}
		testkit.Must(b, o.Append([]*raftpb.Message{testkit.AppendMessage(1, 1, index-1, e)}))
		testkit.Must(b, o.Trim())
	}
}
