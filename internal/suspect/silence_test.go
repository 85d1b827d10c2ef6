package suspect

import (
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Guarantee: a leader that cannot be asked is given up after three election timeouts, not
// before, and the next ones after ever longer, until one vouches.
func TestSilenceGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{Say: zap.NewNop(), ID: 1, ElectionTimeout: time.Second, URLOf: func(uint64) string { return "" }})
		d.vouched = leaderInTerm{9, 1}
		for i, want := range []time.Duration{3, 6, 12, 24, 48, 48} {
			leader := leaderInTerm{2, uint64(10 + i)}
			d.silent = silence{leader: leader, since: time.Now(), asks: silentAsks}
			m := &raftpb.Message{From: &leader.id, Term: &leader.term}
			began := time.Now()
			for !d.givesUp(m) {
				time.Sleep(100 * time.Millisecond)
			}
			if took := time.Since(began); took != want*time.Second {
				t.Errorf("leader %d was given up after %v, want %v", i, took, want*time.Second)
			}
			if !d.givesUp(m) {
				t.Error("it is followed again")
			}
		}
		d.vouch(leaderInTerm{2, 30})
		if d.givenUp != 0 {
			t.Error("a leader that vouches does not begin it anew")
		}
	})
}
