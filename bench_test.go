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
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

const (
	benchBatch     = 64
	benchValueSize = 128
)

func benchValue() []byte { return bytes.Repeat([]byte("v"), benchValueSize) }

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
				batches[i] = statetest.Puts(keys, benchBatch, rnd)
			}
			var data []byte
			first := kv.state.Index
			index := first
			b.ReportAllocs()
			for b.Loop() {
				index++
				data = entry.AppendHeader(data[:0], state.BatchID{Node: 2, Boot: 1, Seq: index, Low: index})
				data = append(data, batches[index%uint64(len(batches))]...)
				if _, err := kv.applyEntries([]*raftpb.Entry{entryAt(index, data)}); err != nil {
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
func (w *nowhere) serveOnce(a *httpKVAPI, r *http.Request) {
	clear(w.header)
	w.status = http.StatusOK
	a.ServeHTTP(w, r)
}

// benchAPI is the HTTP interface of a node whose cluster agrees to everything at once.
func benchAPI(b *testing.B, keys int) (*httpKVAPI, []string) {
	st, names := statetest.Filled(b, keys)
	st.Index, st.Term = 1, 1
	s := newServer(config.DefaultConfig(), zap.NewNop(), &storage.Opened{Storage: &storage.Storage{}, State: st, Boot: 1}, 9121)
	s.api.keys.Fresh.Confirm = func(context.Context) error { return nil }
	s.api.keys.Writes = proposeFunc(func(context.Context, []byte) state.Result { return state.Result{Revision: 12345} })
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
