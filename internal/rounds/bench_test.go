package rounds

import (
	"context"
	"raftkv/internal/config"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"runtime"
	"testing"

	"go.uber.org/zap"
)

// benchProposer is a proposer before a raft that applies each batch as soon as it gets it.
func benchProposer(b *testing.B) *Proposer {
	proposeC := make(chan Proposal)
	leaders := wait.NewLeadership()
	leaders.Set(1, 1)
	p := NewProposer(zap.NewNop(), config.DefaultConfig(), NewLife(1, 1), proposeC, leaders)
	p.life.node = 1
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- p.Run(ctx) }()
	go func() { done <- applyAll(ctx, p, proposeC) }()
	b.Cleanup(func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
	})
	return p
}

func applyAll(ctx context.Context, p *Proposer, proposeC <-chan Proposal) error {
	results := make([]state.Result, state.MaxBatchWork)
	for {
		select {
		case offered := <-proposeC:
			offered.Done(true, 1, true)
			r := record.Reader{B: offered.Data[1:]} // behind the format
			p.Applied(state.BatchID{Node: r.Uvarint(), Boot: r.Uvarint(), Seq: r.Uvarint()}, results)
		case <-ctx.Done():
			return nil
		}
	}
}

// What the way through the proposer and back costs, for a client alone and for many. Most of it is waking goroutines;
// the many also wait for one another, as gather.go says.
func BenchmarkPropose(b *testing.B) {
	cmd := state.EncodeWrite(state.KindPut, state.Condition{}, "key-00000001", make([]byte, 128))
	b.Run("clients=1", func(b *testing.B) {
		p := benchProposer(b)
		b.ReportAllocs()
		for b.Loop() {
			if r := p.Propose(b.Context(), cmd); r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	})
	b.Run("clients=64", func(b *testing.B) {
		p := benchProposer(b)
		b.ReportAllocs()
		b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if r := p.Propose(b.Context(), cmd); r.Err != nil {
					b.Error(r.Err)
					return
				}
			}
		})
	})
}
