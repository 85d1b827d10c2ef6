// Package sim answers: does a cluster keep its promises, whatever the network, the
// disks and crashes do to it? It runs a cluster in virtual time, in one process, with
// faults that are drawn from a seed, and judges in the end what clients were told.
//
// It knows a node by the methods of Node alone. Which parts a node has, and what its
// configuration is, the test knows that opens it.
package sim

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"raftkv/internal/address"
	"raftkv/internal/history"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strconv"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Node is one life of a node: from a start on its directory to its end. The zero
// value is no life.
type Node interface {
	comparable

	// ID is the node's, and never 0.
	ID() uint64
	// PeerURL is where other nodes reach it.
	PeerURL() string
	// String tells what a failed test should show of it.
	String() string

	// Start starts its goroutines. After an error none runs once End was called.
	Start() error
	// Wait waits until its goroutines have ended, and returns why.
	Wait() error
	// End ends its goroutines at whatever they do. It does not wait for them.
	End()
	// HandOver gives leadership away, if it leads and can, before a graceful stop.
	HandOver()
	// Close closes its files. A log that buffers is flushed by that.
	Close() error
	// CloseInOrder is Close in a graceful stop: what waits for the disk goes there
	// first. It is told what Wait returned.
	CloseInOrder(ended error) error

	// Receive takes a message from the network.
	Receive(ctx context.Context, m *raftpb.Message) error
	// ReceiveSnapshot takes a message with the file that belongs to it.
	ReceiveSnapshot(ctx context.Context, file io.Reader, m *raftpb.Message) error
	// Unreachable tells it that a message to a node did not arrive.
	Unreachable(id uint64)
	// Refuse tells it that a peer lets it in no more. It does not block.
	Refuse(err error)
	// Claim tells it where the sender of a message says that it is.
	Claim(from uint64, url string)
	// MeetAgain tells it that a node which has just started opens its streams to it.
	MeetAgain()

	// Do carries out one operation of a client.
	Do(ctx context.Context, in history.Input) (state.Result, *state.Item)
	// Leader is who leads, as far as it knows, and 0 if nobody does.
	Leader() uint64
	// IsRemoved reports whether it knows that a node was removed from the cluster.
	IsRemoved(id uint64) bool
	// Hash is that of its whole replicated state, with the index it is of.
	Hash() (hash string, index uint64)
	// Fault returns nil, or why it must not serve.
	Fault() error
	// Refused is how many messages it has refused for one reason.
	Refused(kind refusal.Kind) uint64
}

// Place is a node's place in the cluster: its directory and its disk, and its
// current life if it is up.
type Place[N Node] struct {
	ID   uint64
	Join bool   // it comes to a cluster that is there
	URL  string // where it is, if not at URL(ID)
	Dir  string
	Disk Disk
	Life N // the zero value: it is down

	lives int
	ended chan struct{} // closed when the life has ended by itself or was ended
	err   error         // why it ended; read after ended is closed
}

// Up reports whether the node has a life.
func (p *Place[N]) Up() bool {
	var none N
	return p.Life != none
}

// Run runs a test in a bubble of virtual time, on a cluster that has no nodes yet,
// and ends it with the global check, Cluster.Check.
func Run[N Node](t *testing.T, test func(c *Cluster[N])) {
	t.Helper()
	seed := Seed(t)
	dir := t.TempDir()
	testkit.InBubble(t, func(t *testing.T) {
		c := New[N](t, dir, seed)
		defer c.Close()
		test(c)
		c.Check()
	})
	testkit.Must(t, os.RemoveAll(dir)) // a soak runs a thousand of these in one test
}

// Seed draws the seed of a test and logs it. RAFTKV_SIM_SEED gives it, to replay
// faults.
func Seed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("RAFTKV_SIM_SEED"); s != "" {
		given, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("RAFTKV_SIM_SEED=%s: %v", s, err)
		}
		seed = given
	}
	t.Logf("RAFTKV_SIM_SEED=%d", seed)
	return seed
}

// URL is where a node is that was not moved.
func URL(id uint64) string { return fmt.Sprintf("http://10.0.0.%d:2380", id) }

// Peers are the nodes 1 to n, as the members of a first start.
func Peers(n int) (peers []address.Peer) {
	for id := range uint64(n) {
		peers = append(peers, address.Peer{ID: id + 1, URL: URL(id + 1)})
	}
	return peers
}
