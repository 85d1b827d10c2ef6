package state

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/testkit"
	"strings"
	"testing"
)

// What the parts of a request cost, each by itself:
//
//	go test -run '^$' -bench . -benchmem -count 10 | tee new.txt
//	benchstat old.txt new.txt
//
// hash_test.go has the share of a put that its hash is, and the checks.

func BenchmarkEncodeWrite(b *testing.B) {
	value := bytes.Repeat([]byte("v"), 128)
	b.ReportAllocs()
	for b.Loop() {
		EncodeWrite(KindPut, Condition{}, "key-00000001", value)
	}
}

// What a snapshot of 100,000 keys costs to write, with its fsync and without the rests that the snapshot writer takes,
// and to load, which is most of what a start takes.
func BenchmarkSnapshot(b *testing.B) {
	s, _ := benchState(100_000)
	path := filepath.Join(b.TempDir(), "state")
	write := func(w io.Writer) error { return Write(w, s) }
	testkit.Must(b, durable.WriteFile(path, write))
	info, err := os.Stat(path)
	testkit.Must(b, err)
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(info.Size())
		for b.Loop() {
			testkit.Must(b, durable.WriteFile(path, write))
		}
	})
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(info.Size())
		for b.Loop() {
			got, _, err := ReadFile(path)
			if testkit.Must(b, err); got.Sum != s.Sum {
				b.Fatal("another state")
			}
		}
	})
}

func BenchmarkItemHash(b *testing.B) {
	for _, size := range []int{128, 64 << 10} {
		b.Run(fmt.Sprintf("value=%d", size), func(b *testing.B) {
			it := &Item{Value: strings.Repeat("v", size), CreateRevision: 1, ModRevision: 2, Version: 2}
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				itemHash("key-00000001", it)
			}
		})
	}
}
