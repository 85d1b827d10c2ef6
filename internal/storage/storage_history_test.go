package storage

import (
	"math/rand/v2"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Without this entries that were overwritten come back once the log, or a
// snapshot, has passed the place where the overwriting ended, but not the end
// of what was overwritten: wal.ReadAll skips everything up to the snapshot, and
// with it whatever had cut the old log off.
func TestStorageOverwrittenLogFarBehindSnapshot(t *testing.T) {
	for name, pass := range map[string]func(o *Opened){
		"own snapshot": func(o *Opened) {
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 84, testkit.Entries(3, 71, 84, 10)...)}))
			takeSnapshot(t, o, someState(t, 3, 84))
		},
		"received snapshot": func(o *Opened) {
			testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 3, 84), 3, 2)}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDisk(t)
			o := openDisk(t, dir)
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, testkit.Entries(2, 2, 101, 10)...)}))
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 5, testkit.Entries(3, 50, 70, 10)...)}))
			pass(o)
			o = openDisk(t, testkit.Crashed(t, dir))
			wantState(t, o, 84)
			if term, err := o.Mem.Term(o.Last); err != nil || o.Last != 84 || term != 3 {
				t.Errorf("the log ends at %d in term %d (%v), not at 84 in term 3", o.Last, term, err)
			}
		})
	}
}

// Without this some order of appends, votes, overwrites, snapshots, crashes and
// starts that nobody thought of could lose what was synced, or refuse a start.
func TestStorageRandomHistory(t *testing.T) {
	t.Parallel()
	h := newDiskHistory(t, rand.Uint64()) // logs the seed
	for range 60 {
		h.step()
	}
	h.restart()
}

// diskHistory does to a storage what raft might, and knows what must be there
// after a crash.
type diskHistory struct {
	t   *testing.T
	rnd *rand.Rand
	o   *Opened

	log        []*raftpb.Entry // log[i] has index first+i
	first      uint64
	term, vote uint64
	commit     uint64 // as raft knows it
	durable    uint64 // as it was in an append that was synced
	snap       uint64
	boot       uint64
	run        []*raftpb.Message
}

func newDiskHistory(t *testing.T, seed uint64) *diskHistory {
	t.Helper()
	t.Logf("seed %d", seed)
	o := openDisk(t, newDisk(t))
	return &diskHistory{
		t: t, rnd: rand.New(rand.NewPCG(seed, 0)), o: o,
		first: 2, term: 1, commit: 1, snap: 1, boot: 1,
	}
}

func (h *diskHistory) last() uint64 { return h.first + uint64(len(h.log)) - 1 }

func (h *diskHistory) step() {
	h.t.Helper()
	switch n := h.rnd.IntN(20); {
	case n < 10:
		for range 1 + h.rnd.IntN(3) {
			h.message()
		}
		testkit.Must(h.t, h.o.Append(h.run))
		h.run = nil
		if h.rnd.IntN(2) == 0 {
			h.o.Zeros.Step(h.o.Room.InUse())
		}
	case n < 13:
		flushMark(h.t, h.o)
	case n < 15:
		h.ownSnapshot()
	case n < 16:
		h.install()
	case n < 19:
		h.restart()
	default:
		testkit.Must(h.t, h.o.Close())
		h.reopen(h.o.Dir)
	}
}

// message makes up one append: entries, in place of others or not, a vote, or
// a commit index.
func (h *diskHistory) message() {
	switch h.rnd.IntN(5) {
	case 0: // another leader, with another log behind what is committed
		h.term++
		h.vote = h.rnd.Uint64N(4)
		from := h.commit + 1 + h.rnd.Uint64N(h.last()-h.commit+1)
		h.log = h.log[:from-h.first]
		h.entries(true)
	case 1:
		h.term++
		h.vote = h.rnd.Uint64N(4)
		h.run = append(h.run, testkit.AppendMessage(h.term, h.vote, h.commit))
	case 2:
		h.commit += h.rnd.Uint64N(h.last() - h.commit + 1)
		h.run = append(h.run, testkit.AppendMessage(h.term, h.vote, h.commit))
	case 3:
		h.entries(true)
	default:
		h.entries(false)
	}
}

func (h *diskHistory) entries(hard bool) {
	size := 10
	if h.rnd.IntN(4) == 0 {
		size = 200 << 10
	}
	entries := testkit.Entries(h.term, h.last()+1, h.last()+1+h.rnd.Uint64N(4), size)
	h.log = append(h.log, entries...)
	m := testkit.AppendMessage(0, 0, 0, entries...)
	if hard {
		m = testkit.AppendMessage(h.term, h.vote, h.commit, entries...)
	}
	h.run = append(h.run, m)
}

func (h *diskHistory) ownSnapshot() {
	if h.commit <= h.snap {
		return
	}
	index := h.snap + 1 + h.rnd.Uint64N(h.commit-h.snap)
	takeSnapshot(h.t, h.o, someState(h.t, h.log[index-h.first].GetTerm(), index))
	h.snap, h.durable = index, max(h.durable, index)
}

func (h *diskHistory) install() {
	index := h.last() + 1 + h.rnd.Uint64N(50)
	m := received(h.t, h.o.Storage, someState(h.t, h.term, index), h.term, h.vote)
	h.log, h.first, h.snap, h.commit, h.durable = nil, index+1, index, index, index
	if h.rnd.IntN(2) == 0 {
		h.entries(false)
		m.Entries = h.run[0].GetEntries()
		h.run = nil
	}
	testkit.Must(h.t, h.o.Append([]*raftpb.Message{m}))
}

func (h *diskHistory) restart() {
	h.t.Helper()
	h.reopen(testkit.Crashed(h.t, h.o.Dir))
}

func (h *diskHistory) reopen(dir string) {
	h.t.Helper()
	h.o.Close()
	if !wantSameBothWays(h.t, dir, []int64{1, 100 << 10, TailWeight}[h.rnd.IntN(3)]) {
		h.t.Error("the log is not read in one go")
	}
	h.o = openDisk(h.t, dir)
	h.boot++
	if h.o.Boot != h.boot {
		h.t.Fatalf("life %d has number %d", h.boot, h.o.Boot)
	}
	wantState(h.t, h.o, h.snap)
	wantHard(h.t, h.o, h.term, h.vote, h.durable)
	hard, _, err := h.o.Mem.InitialState()
	testkit.Must(h.t, err)
	if hard.GetCommit() > h.commit {
		h.t.Fatalf("commit %d, but raft knew of %d only", hard.GetCommit(), h.commit)
	}
	h.commit = max(h.commit, hard.GetCommit()) // what is lost of it, raft learns again
	if behind := h.log[h.snap+1-h.first:]; len(behind) > 0 {
		wantEntries(h.t, h.o, behind)
	} else if h.o.Last != h.snap {
		h.t.Fatalf("the log ends at %d, not at %d", h.o.Last, h.snap)
	}
}
