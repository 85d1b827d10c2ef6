package audit

import (
	"path/filepath"
	"raftkv/internal/config"
	"testing"
	"time"

	"go.uber.org/zap"
)

// What a line costs the request of which it is, and how many are lost if they come as fast as
// one goroutine makes them.
func BenchmarkRequest(b *testing.B) {
	l, err := Open(config.Config{ID: 1, DataDir: b.TempDir(), Doors: config.Doors{AuditLog: filepath.Join(b.TempDir(), "audit")}}, nil, zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if l.Wants("PUT", 204) {
			l.Request(Record{Name: "deployer", From: "10.0.0.7:51234", Method: "PUT", Route: "kv", Keys: []string{"app/some-key"}, Revision: 123456, Took: time.Millisecond}, 204, nil)
		}
	}
	b.ReportMetric(float64(l.queue.Dropped())/float64(b.N), "lost/op")
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}
