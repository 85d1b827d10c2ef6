package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"raftkv/internal/config"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"runtime"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

const (
	benchBatch     = 64
	benchValueSize = 128
)

func benchValue() []byte { return bytes.Repeat([]byte("v"), benchValueSize) }

// benchPuts are the commands of a batch, without its header: puts of some of the keys.
func benchPuts(keys []string, rnd *rand.Rand) (commands []byte) {
	for range benchBatch {
		cmd := state.EncodeWrite(state.KindPut, state.Condition{}, keys[rnd.IntN(len(keys))], benchValue())
		commands = state.AppendCommand(commands, cmd)
	}
	return commands
}

// What the apply loop does with an entry of 64 puts: decode it, apply it, wake who waits.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			kv := newTestStore()
			var keys []string
			kv.state, keys = statetest.Filled(b, n)
			rnd := rand.New(rand.NewPCG(1, 1))
			batches := make([][]byte, 1000) // enough that the processor's caches do not keep their keys
			for i := range batches {
				batches[i] = benchPuts(keys, rnd)
			}
			var data []byte
			first := kv.state.Index
			index := first
			b.ReportAllocs()
			for b.Loop() {
				index++
				data = state.AppendBatchHeader(data[:0], state.BatchID{Node: 2, Boot: 1, Seq: index, Low: index})
				data = append(data, batches[index%uint64(len(batches))]...)
				if err := kv.applyEntries([]*raftpb.Entry{entryAt(index, data)}); err != nil {
					b.Fatal(err)
				}
			}
			if got := kv.state.Revision; got != uint64(n)+benchBatch*(index-first) {
				b.Fatalf("revision %d after %d batches: they were not applied", got, index-first)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(benchBatch*b.N), "ns/put")
		})
	}
}

// nowhere is a client that takes any answer.
type nowhere struct {
	header http.Header
	status int
	size   int
}

func (w *nowhere) Header() http.Header { return w.header }

func (w *nowhere) WriteHeader(status int) { w.status = status }

func (w *nowhere) Write(b []byte) (int, error) {
	w.size += len(b)
	return len(b), nil
}

// serveOnce has a serve r, with nothing left of the answer before.
func (w *nowhere) serveOnce(a *api, r *http.Request) {
	clear(w.header)
	w.status = http.StatusOK
	a.ServeHTTP(w, r)
}

// benchAPI is the HTTP interface of a node whose cluster agrees to everything at once.
func benchAPI(b *testing.B, keys int) (*api, []string) {
	st, names := statetest.Filled(b, keys)
	st.Index, st.Term = 1, 1
	s := newServer(config.DefaultConfig(), zap.NewNop(), &openedStorage{storage: &storage{}, state: st, boot: 1}, 9121)
	s.api.fresh.confirm = func(context.Context) error { return nil }
	s.api.propose = func(context.Context, []byte) state.Result { return state.Result{Revision: 12345} }
	return s.api, names
}

func benchRequest(method, key string) *http.Request {
	return &http.Request{
		Method: method, Host: "127.0.0.1:9121", URL: &url.URL{Path: "/" + key},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody,
	}
}

// What the handler does for a request, without the network before it and the cluster behind it.
func BenchmarkHandler(b *testing.B) {
	a, keys := benchAPI(b, 10_000)
	b.Run("PUT", func(b *testing.B) {
		value := benchValue()
		body := bytes.NewReader(nil)
		r := benchRequest(http.MethodPut, keys[0])
		r.Body, r.ContentLength = io.NopCloser(body), int64(len(value))
		w := &nowhere{header: http.Header{}}
		b.ReportAllocs()
		for b.Loop() {
			body.Reset(value)
			if w.serveOnce(a, r); w.status != http.StatusNoContent {
				b.Fatalf("status %d", w.status)
			}
		}
	})
	b.Run("GET", func(b *testing.B) {
		r := benchRequest(http.MethodGet, keys[0])
		w := &nowhere{header: http.Header{}}
		b.ReportAllocs()
		for b.Loop() {
			if w.serveOnce(a, r); w.status != http.StatusOK {
				b.Fatalf("status %d", w.status)
			}
		}
		if w.size != b.N*benchValueSize {
			b.Fatalf("%d bytes in %d answers", w.size, b.N)
		}
	})
}

// benchProposer is a proposer before a raft that applies each batch as soon as it gets it.
func benchProposer(b *testing.B) *proposer {
	proposeC := make(chan proposal)
	leaders := wait.NewLeadership()
	leaders.Set(1, 1)
	p := newProposer(zap.NewNop(), config.DefaultConfig(), newLife(1, 1), proposeC, leaders)
	p.life.node = 1
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- p.run(ctx) }()
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

func applyAll(ctx context.Context, p *proposer, proposeC <-chan proposal) error {
	results := make([]state.Result, maxBatchCommands)
	for {
		select {
		case offered := <-proposeC:
			offered.done(true, 1, true)
			r := record.Reader{B: offered.data[1:]} // behind the format
			p.applied(state.BatchID{Node: r.Uvarint(), Boot: r.Uvarint(), Seq: r.Uvarint()}, results)
		case <-ctx.Done():
			return nil
		}
	}
}

// What the way through the proposer and back costs, for a client alone and for many. Most of it is waking goroutines;
// the many also wait for one another, as gather.go says.
func BenchmarkPropose(b *testing.B) {
	cmd := state.EncodeWrite(state.KindPut, state.Condition{}, "key-00000001", benchValue())
	b.Run("clients=1", func(b *testing.B) {
		p := benchProposer(b)
		b.ReportAllocs()
		for b.Loop() {
			if r := p.propose(b.Context(), cmd); r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	})
	b.Run("clients=64", func(b *testing.B) {
		p := benchProposer(b)
		b.ReportAllocs()
		b.SetParallelism(max(1, benchBatch/runtime.GOMAXPROCS(0)))
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if r := p.propose(b.Context(), cmd); r.Err != nil {
					b.Error(r.Err)
					return
				}
			}
		})
	})
}

// What it costs to make an entry of 64 puts durable: mostly the disk's fsync.
func BenchmarkAppend(b *testing.B) {
	defer func(size int64) { wal.SegmentSizeBytes = size }(wal.SegmentSizeBytes)
	wal.SegmentSizeBytes = segmentSize // a rotation is to be as rare as it is
	o := openDisk(b, newDisk(b))
	_, keys := statetest.Filled(b, 10_000)
	commands := benchPuts(keys, rand.New(rand.NewPCG(1, 1)))
	index := o.last
	b.ReportAllocs()
	b.SetBytes(int64(len(commands)))
	for b.Loop() {
		index++
		id := state.BatchID{Node: 1, Boot: 1, Seq: index, Low: index}
		data := append(state.AppendBatchHeader(make([]byte, 0, len(commands)+64), id), commands...)
		e := &raftpb.Entry{Term: new(uint64(1)), Index: new(index), Data: data}
		testkit.Must(b, o.append([]*raftpb.Message{testkit.AppendMessage(1, 1, index-1, e)}))
		testkit.Must(b, o.trim())
	}
}
