//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"strings"
	"testing"
	"time"
)

func fixturePath(name string) string { return filepath.Join("internal/storage/testdata", name) }

func TestWriteFixture(t *testing.T) {
	name := os.Getenv("RAFTKV_WRITE_FIXTURE")
	if name == "" {
		t.Skip("RAFTKV_WRITE_FIXTURE=NAME writes a fixture")
	}
	if old, err := filepath.Glob(fixturePath(name + ".*")); err != nil || len(old) > 0 {
		t.Fatalf("there is a fixture of that name, and it stays as it is: %v (%v)", old, err)
	}
	many := func(cfg *config.Config) {
		cfg.SnapshotCount = 1 << 30                                 // a snapshot only where it is asked for
		cfg.Doors.CertFile, cfg.Doors.ClientTLS = "any", "optional" // what nodes publish of their doors
	}
	simulateWith(t, 3, many, func(c *simCluster) {
		srv, dir := fixtureNode(c)
		st := srv.kv.state
		if err := os.MkdirAll(fixturePath(""), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFixture(t, name+".txt", func(w io.Writer) error {
			_, err := io.WriteString(w, statetest.Describe(st))
			return err
		})
		writeFixture(t, name+".backup", func(w io.Writer) error { return state.Write(w, st) })
		writeFixture(t, name+".dir.tar.gz", func(w io.Writer) error { return testkit.PackDir(w, dir) })
	})
}

func writeFixture(t *testing.T, name string, write func(io.Writer) error) {
	t.Helper()
	f, err := os.OpenFile(fixturePath(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err == nil {
		err = errors.Join(write(f), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fixtureNode leads a cluster through what a fixture should hold: several
// terms, a removed member, a learner, a snapshot, and a log behind it that has
// all of this once more. It returns a follower that was stopped, and its
// directory.
func fixtureNode(c *simCluster) (*server, string) {
	c.T.Helper()
	c.Await("a check", func() bool {
		srv := c.Nodes[1].Life
		srv.kv.mu.RLock()
		defer srv.kv.mu.RUnlock()
		return srv.kv.state.Checks.Checked > 0
	})
	fixtureWrites(c, "old/")
	fixtureLeases(c, "old/")
	fixtureRequests(c, "old/")
	fixtureTerm(c)
	c.fixtureChange(reconfig.Request{Op: membership.OpRemove, ID: 3, Force: true})
	if err := c.Ended(3); !errors.Is(err, problem.ErrRemoved) {
		c.T.Fatalf("the removed node ended with: %v", err)
	}
	c.fixtureChange(reconfig.Request{Op: membership.OpAddLearner, ID: 4, PeerURL: sim.URL(4)}) // it never comes up
	fixtureWrites(c, "kept/")

	for _, id := range c.Up() {
		srv := c.Nodes[id].Life
		before := srv.storage.SnapIndex.Load()
		srv.kv.AskForSnapshot(srv.kv.applied.Get())
		c.Await("a snapshot", func() bool { return srv.storage.SnapIndex.Load() > before })
	}
	fixtureWrites(c, "tail/")
	fixtureLeases(c, "tail/")
	fixtureRequests(c, "tail/")
	c.fixtureChange(addRequest(5))
	fixtureTerm(c)
	c.fixtureChange(reconfig.Request{Op: membership.OpRemove, ID: 5, Force: true})
	c.fixturePut("last", []byte("the last write"))
	c.Await("rest", func() bool {
		one, at1 := c.Nodes[1].Life.Hash()
		two, at2 := c.Nodes[2].Life.Hash()
		return at1 == at2 && one == two
	})
	time.Sleep(time.Minute)

	follower := c.Followers()[0]
	srv, dir := c.Nodes[follower].Life, c.Nodes[follower].Dir
	c.Stop(follower)
	if srv.storage.Last != srv.kv.state.Index {
		c.T.Fatalf("the log reaches entry %d, the state entry %d: write the fixture again", srv.storage.Last, srv.kv.state.Index)
	}
	return srv, dir
}

// fixtureTerm ends a term: its leader crashes, and comes back.
func fixtureTerm(c *simCluster) {
	c.T.Helper()
	leader := c.Leader()
	c.Crash(leader)
	if len(c.Nodes) > 2 && len(c.Up()) > 1 {
		c.Leader()
	}
	c.Start(leader)
	c.Leader()
}

func (c *simCluster) fixtureChange(r reconfig.Request) {
	c.T.Helper()
	if err := c.change(c.Leader(), r); err != nil {
		c.T.Fatalf("%+v: %v", r, err)
	}
}

func (c *simCluster) fixturePut(key string, value []byte) {
	c.T.Helper()
	c.fixtureWrite(state.EncodeWrite(state.KindPut, state.Condition{}, key, value), nil)
}

func (c *simCluster) fixtureWrite(cmd []byte, want error) {
	c.T.Helper()
	srv := c.Nodes[c.Leader()].Life
	if res := srv.proposals.Propose(context.Background(), cmd); !errors.Is(res.Err, want) {
		c.T.Fatalf("a write ended with %v, want %v", res.Err, want)
	}
}

// fixtureWrites makes keys and values of all kinds under a prefix.
func fixtureWrites(c *simCluster, prefix string) {
	c.T.Helper()
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	random := make([]byte, 2000)
	rng := rand.NewChaCha8(sha256.Sum256([]byte(prefix)))
	if _, err := rng.Read(random); err != nil {
		c.T.Fatal(err)
	}
	c.fixturePut(prefix+"empty", nil)
	c.fixturePut(prefix+"bytes", every)
	c.fixturePut(prefix+"random", random)
	c.fixturePut("large", append([]byte(prefix), bytes.Repeat(every, 300)...)) // a block of its own
	c.fixturePut(prefix+"twice", []byte("once"))
	c.fixturePut(prefix+"twice", []byte("twice"))
	c.fixturePut(prefix+"gone", []byte("x"))
	c.fixtureWrite(state.EncodeWrite(state.KindDelete, state.Condition{}, prefix+"gone", nil), nil)
	c.fixtureWrite(state.EncodeWrite(state.KindPut, state.Condition{Kind: state.IfExists}, prefix+"gone", nil), problem.ErrPrecondition)
	c.fixturePut(prefix+"€/../\x01//?", []byte("a key is taken literally"))
	c.fixturePut(prefix+strings.Repeat("k", config.MaxKeyBytes-len(prefix)), []byte("the longest key"))
	c.fixturePut("every", []byte(prefix)) // once a round
	for i := range 30 {
		c.fixturePut(fmt.Sprintf("%smany/%02d", prefix, i), fmt.Append(nil, i))
	}
}

// fixtureLeases makes leases and keys that go away by themselves, and some of all that is
// no plain write.
func fixtureLeases(c *simCluster, prefix string) {
	c.T.Helper()
	const day = 24 * 60 * 60 * 1000
	srv := c.Nodes[c.Leader()].Life
	id := srv.proposals.Propose(context.Background(), state.EncodeGrant(day, "")).Lease
	with := func(key string, life state.Lifetime, want error) {
		c.fixtureWrite(append(state.AppendLeasedPutHead(nil, state.Condition{}, life, prefix+key), "value"...), want)
	}
	with("leased/1", state.Lifetime{Kind: state.WithLease, Value: id}, nil)
	with("leased/2", state.Lifetime{Kind: state.WithLease, Value: id}, nil)
	with("timed", state.Lifetime{Kind: state.ForTTL, Value: 2 * day}, nil)
	with("soon", state.Lifetime{Kind: state.ForTTL, Value: 100}, nil)
	with("unleased", state.Lifetime{Kind: state.WithLease, Value: id + 99}, problem.ErrNoSuchLease)
	c.fixtureWrite(state.EncodeGrant(day, "owner"), nil)
	c.fixtureWrite(state.EncodeKeep(id, ""), nil)
	c.Await("a key to go", func() bool { it, _ := srv.kv.Get(prefix + "soon"); return it == nil })
	revoked := srv.proposals.Propose(context.Background(), state.EncodeGrant(day, "")).Lease
	with("revoked", state.Lifetime{Kind: state.WithLease, Value: revoked}, nil)
	c.fixtureWrite(state.EncodeRevoke(revoked, ""), nil)
	c.fixturePut(prefix+"range/1", nil)
	c.fixtureWrite(state.EncodeAdd(state.Condition{}, state.Lifetime{}, prefix+"sum", -42), nil)
	c.fixtureWrite(append(state.AppendAppendHead([]byte{}, state.Lifetime{}, prefix+"queue/"), "job"...), nil)
	c.fixtureWrite(state.EncodeDeletePrefix(prefix+"range/", 0, ""), nil)
}

// fixtureRequests makes requests under an Idempotency-Key, with all kinds of outcomes.
func fixtureRequests(c *simCluster, prefix string) {
	c.T.Helper()
	request := func(name, owner string, class once.Class, cmd []byte, want error) {
		b := state.EncodeOnce(once.Key{Owner: owner, Name: name}, class, cmd, cmd)
		for range 2 {
			c.fixtureWrite(b, want)
		}
	}
	put := state.EncodeWrite(state.KindPut, state.Condition{}, prefix+"asked", []byte("once"))
	request(prefix+"put", "", once.TenMinutes, put, nil)
	request(prefix+"put", "owner", once.TenMinutes, put, nil)
	request(prefix+"gone", "", once.TenSeconds, put, nil)
	request(prefix+"condition", "", once.TenMinutes, state.EncodeWrite(state.KindPut, state.Condition{Kind: state.IfMissing}, prefix+"asked", nil), problem.ErrPrecondition)
	request(prefix+"missing", "", once.TenMinutes, state.EncodeWrite(state.KindDelete, state.Condition{}, prefix+"no", nil), problem.ErrNotFound)
	request(prefix+"grant", "", once.TenMinutes, state.EncodeGrant(1<<40, ""), nil)
	request(prefix+"sum", "", once.TenMinutes, state.EncodeAdd(state.Condition{}, state.Lifetime{}, prefix+"asked sum", 7), nil)
	request(prefix+"txn", "", once.TenMinutes, state.EncodeTxn(&txn.Txn{MaxBytes: 100, Then: []txn.Op{{Kind: txn.Append, Key: prefix + "asked/", Value: []byte("x")}, {Kind: txn.Delete, Key: prefix + "no"}}}), nil)
}

// What is packed comes out again.
func TestPackDir(t *testing.T) {
	from, to := storagetest.New(t), t.TempDir()
	var b bytes.Buffer
	testkit.Must(t, testkit.PackDir(&b, from))
	testkit.Must(t, testkit.UnpackDir(&b, to))
	if was, is := testkit.Tree(t, from), testkit.Tree(t, to); !maps.Equal(was, is) {
		t.Errorf("%d files were packed, %d other ones came out", len(was), len(is))
	}
}
