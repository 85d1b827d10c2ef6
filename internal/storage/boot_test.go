package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// startDisk is the normal start of a node: make the directory if it was never
// booted, then open it.
// firstSegment is the name of the first segment of a log.
const firstSegment = "0000000000000000-0000000000000000.wal"

func startDisk(t *testing.T, dir string, peers []address.Peer) *Opened {
	t.Helper()
	old, err := Booted(dir)
	testkit.Must(t, err)
	if !old {
		testkit.Must(t, Create(zap.NewNop(), dir, diskIdentity(), state.First(peers)))
	}
	return openDisk(t, dir)
}

// wantFirstState checks what every node of a new cluster starts from.
func wantFirstState(t *testing.T, o *Opened, joining bool) {
	t.Helper()
	if joining {
		wantHard(t, o, 0, 0, 0)
		if o.State.Index != 0 || o.Last != 0 || len(o.State.Membership.Members) != 0 {
			t.Fatalf("a joining node begins with index %d, last %d, members %v", o.State.Index, o.Last, o.State.Membership.Members)
		}
		return
	}
	wantHard(t, o, state.FirstTerm, 0, state.FirstIndex)
	want, got := state.New(diskPeers()), o.State
	want.Index, want.Term = state.FirstIndex, state.FirstTerm
	if string(statetest.Bytes(t, got)) != string(statetest.Bytes(t, want)) || o.Last != state.FirstIndex || o.Reconfigured {
		t.Fatalf("state of index %d, log to %d, members %v", got.Index, o.Last, got.Membership.Members)
	}
	if o.Identity != diskIdentity() {
		t.Fatalf("identity %+v", o.Identity)
	}
}

// wantOnlyNeeded checks that nothing is left over beside what a start needs.
// 0.tmp and 1.tmp are the WAL's next segments.
func wantOnlyNeeded(t *testing.T, dir string) {
	t.Helper()
	for path := range testkit.Tree(t, dir) {
		base := filepath.Base(path)
		switch {
		case path == "wal", path == "snap", path == "mark", base == "0.tmp", base == "1.tmp":
		case filepath.Dir(path) == "wal" && strings.HasSuffix(base, ".wal"):
		case filepath.Dir(path) == "snap" && strings.HasSuffix(base, ".state"):
		default:
			t.Errorf("%s is left over", path)
		}
	}
}

// partOf is a tree's paths that keep names.
func partOf(tree map[string]string, keep func(path string) bool) map[string]string {
	part := make(map[string]string)
	for path, content := range tree {
		if keep(path) {
			part[path] = content
		}
	}
	return part
}

// firstBootSteps are the directories that a crash during Create leaves,
// in the order of its steps.
func firstBootSteps(t *testing.T, peers []address.Peer) map[string]map[string]string {
	t.Helper()
	done := t.TempDir()
	testkit.Must(t, Create(zap.NewNop(), done, diskIdentity(), state.First(peers)))
	all := testkit.Tree(t, done)
	isSnap := func(p string) bool { return strings.HasPrefix(p, "snap") }
	notWAL := func(p string) bool { return !strings.HasPrefix(p, "wal") }
	segment := all[filepath.Join("wal", firstSegment)]
	with := func(tree map[string]string, path, content string) map[string]string {
		tree = partOf(tree, func(string) bool { return true })
		tree[path] = content
		return tree
	}
	// The log as wal.Create leaves it, and how it grows from there.
	blank := t.TempDir()
	meta, err := diskIdentity().encode()
	testkit.Must(t, err)
	w, err := wal.Create(nil, filepath.Join(blank, "wal"), meta)
	testkit.Must(t, err)
	testkit.Must(t, w.Close())
	created, err := os.ReadFile(filepath.Join(blank, "wal", firstSegment))
	testkit.Must(t, err)
	testkit.Must(t, os.RemoveAll(filepath.Join(blank, "wal")))
	w, err = wal.Create(nil, filepath.Join(blank, "wal"), meta)
	testkit.Must(t, err)
	testkit.Must(t, w.Save(&raftpb.HardState{Term: new(uint64(state.FirstTerm)), Vote: new(uint64(0)), Commit: new(uint64(state.FirstIndex))}, nil))
	testkit.Must(t, w.Close())
	withHard, err := os.ReadFile(filepath.Join(blank, "wal", firstSegment))
	testkit.Must(t, err)

	base := partOf(all, notWAL)
	newSegment := filepath.Join("wal.new", firstSegment)
	steps := map[string]map[string]string{
		"nothing":                            {},
		"snap":                               {"snap": "/"},
		"temporary mark":                     with(partOf(all, isSnap), "mark.tmp123", all["mark"][:watermark.SlotSize]),
		"snap complete":                      partOf(all, isSnap),
		"mark":                               base,
		"wal.new.tmp/ empty":                 with(base, "wal.new.tmp", "/"),
		"wal.new.tmp/ with an empty segment": with(base, filepath.Join("wal.new.tmp", firstSegment), ""),
		"wal.new.tmp/ with zeros":            with(base, filepath.Join("wal.new.tmp", firstSegment), strings.Repeat("\x00", 1<<20)),
		"wal.new.tmp/ with half a head":      with(base, filepath.Join("wal.new.tmp", firstSegment), string(created[:40])),
		"wal.new.tmp/ with a head":           with(base, filepath.Join("wal.new.tmp", firstSegment), string(created)),
		"renamed":                            with(base, newSegment, string(created)),
		"renamed, next segment":              with(with(base, newSegment, string(created)), filepath.Join("wal.new", "0.tmp"), ""),
		"hard state":                         with(base, newSegment, string(withHard)),
		"log complete":                       with(base, newSegment, segment),
		"torn snapshot record":               with(base, newSegment, segment[:inspectPath(t, filepath.Join(done, "wal")).End-8]),
		"wal":                                all,
		"wal, with next segment":             with(all, filepath.Join("wal", "0.tmp"), ""),
	}
	for path, content := range all {
		if strings.HasSuffix(path, ".state") {
			steps["temporary state file"] = map[string]string{"snap": "/", path + ".tmp123": content[:len(content)/2]}
		}
	}
	return steps
}

func inspectPath(t *testing.T, walDir string) walfile.Tail {
	t.Helper()
	r, err := walfile.InspectTail(walDir)
	testkit.Must(t, err)
	return r
}

// Without this a crash during the very first start leaves a directory that
// never starts (raftexample: an empty directory, a log without members), or one
// that starts from another state than the rest of the cluster.
func TestBootCrashAfterEachStepOfCreate(t *testing.T) {
	t.Parallel()
	for _, joining := range []bool{false, true} {
		peers := diskPeers()
		if joining {
			peers = nil
		}
		for name, tree := range firstBootSteps(t, peers) {
			if joining && strings.HasPrefix(name, "wal.new.tmp/") {
				continue // the same as without
			}
			t.Run(fmt.Sprintf("joining=%t/%s", joining, name), func(t *testing.T) {
				dir := testkit.Plant(t, tree)
				o := startDisk(t, dir, peers)
				wantFirstState(t, o, joining)
				if o.Boot != 1 {
					t.Errorf("the first life has number %d", o.Boot)
				}
				wantOnlyNeeded(t, dir)
				// And it is a directory to live on.
				testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(5, 3, o.Last, testkit.Entries(5, o.Last+1, o.Last+3, 10)...)}))
				again := openDisk(t, testkit.Crashed(t, dir))
				wantHard(t, again, 5, 3, 0)
				wantEntries(t, again, testkit.Entries(5, o.State.Index+1, o.State.Index+3, 10))
			})
		}
	}
}

// Without this a crash while leftovers are being removed could leave a mix that
// counts as something. Only wal/ makes a directory booted.
func TestBootCrashDuringRemovalOfLeftovers(t *testing.T) {
	all := testkit.Tree(t, newDisk(t))
	names := []string{"snap", "mark", "wal.new", "wal.new.tmp"}
	for set := range 1 << len(names) {
		tree := make(map[string]string)
		for i, name := range names {
			if set>>i&1 == 0 {
				continue
			}
			from := strings.TrimSuffix(strings.TrimSuffix(name, ".tmp"), ".new")
			for path, content := range all {
				if path == from || strings.HasPrefix(path, from+string(filepath.Separator)) {
					tree[name+strings.TrimPrefix(path, from)] = content
				}
			}
		}
		dir := testkit.Plant(t, tree)
		if old, err := Booted(dir); err != nil || old {
			t.Fatalf("%v counts as booted: %v", names, err)
		}
		testkit.Must(t, removeLeftovers(dir))
		if left := testkit.Tree(t, dir); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	}
}

// Without this a crash in the middle of a start could give two lives one
// number, whose batches would then be taken for one another's, or lose the
// start altogether.
func TestBootCrashAfterEachStepOfOpen(t *testing.T) {
	dir := newDisk(t)
	steps := map[string]string{"created": testkit.Crashed(t, dir)}
	keeper, m, err := watermark.Open(filepath.Join(dir, "mark"))
	testkit.Must(t, err)
	defer keeper.Close()
	o, err := inspect(zap.NewNop(), dir, m, Bounds{Tail: TailWeight}, anyIdentity)
	testkit.Must(t, err)
	testkit.Must(t, o.open())
	defer o.Wal.Close()
	steps["log read"] = testkit.Crashed(t, dir)
	testkit.Must(t, o.Wal.Save(o.Hard, nil))
	steps["hard state not synced"] = testkit.Crashed(t, dir)
	testkit.Must(t, o.Wal.Sync())
	steps["hard state synced"] = testkit.Crashed(t, dir)
	next := watermark.Mark{Boot: m.Boot + 1, Index: o.Last, Term: o.Hard.GetTerm(), Vote: o.Hard.GetVote()}
	testkit.Must(t, keeper.File.WriteSlot(next))
	steps["one slot of the mark"] = testkit.Crashed(t, dir)
	torn := testkit.Crashed(t, dir)
	testkit.Patch(t, filepath.Join(torn, "mark"), 40, []byte{0xff}) // in the slot that WriteSlot has written
	steps["a torn slot of the mark"] = torn
	testkit.Must(t, keeper.File.WriteSlot(next))
	steps["mark"] = testkit.Crashed(t, dir)

	for name, crash := range steps {
		t.Run(name, func(t *testing.T) {
			used := uint64(0)
			if name == "mark" {
				used = 1 // Open may have returned with it
			}
			o := startDisk(t, crash, diskPeers())
			wantFirstState(t, o, false)
			if o.Boot <= used {
				t.Errorf("boot %d was used before", o.Boot)
			}
			if m := markOf(t, crash); m.Boot != o.Boot || m.Index != state.FirstIndex || m.Term != state.FirstTerm {
				t.Errorf("mark %+v", m)
			}
			wantOnlyNeeded(t, crash)
		})
	}
}

// Without this two lives of a node could use one number: the state machine
// would take the batches of the second for repetitions of the first's, and
// drop writes that were acknowledged.
func TestBootNumberRises(t *testing.T) {
	dir := newDisk(t)
	for life := uint64(1); life <= 4; life++ {
		o := openDisk(t, dir)
		if o.Boot != life {
			t.Fatalf("life %d has number %d", life, o.Boot)
		}
		// Damage to one slot must not set the number back either.
		hurt := testkit.Crashed(t, dir)
		testkit.Patch(t, filepath.Join(hurt, "mark"), int64(life%2)*watermark.SlotSize+24, []byte{0xee})
		if h := openDisk(t, hurt); h.Boot != life+1 {
			t.Fatalf("after damage to a slot in life %d, the next has number %d", life, h.Boot)
		}
		if life%2 == 0 {
			testkit.Must(t, o.Close())
			continue
		}
		dir = testkit.Crashed(t, dir)
	}
}

// Without this two processes could write one log.
func TestLockDirTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	lock, err := Lock(dir)
	testkit.Must(t, err)
	if second, err := Lock(dir); err == nil {
		second.Close()
		t.Fatal("locked twice")
	} else if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("message: %v", err)
	}
	testkit.Must(t, lock.Close())
	again, err := Lock(dir)
	testkit.Must(t, err)
	testkit.Must(t, again.Close())
}

// Without this a directory that cannot be made or locked would look like one
// in use.
func TestLockDirImpossible(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Lock(file); err == nil || strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v", err)
	}
	if _, err := Booted(filepath.Join(file, "x")); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("booted below a file: %v", err)
	}
}

// Without this an older version would read a directory whose layout it does
// not know, or one of another program.
func TestIdentityOfAnotherFormat(t *testing.T) {
	newer := t.TempDir()
	id := diskIdentity()
	id.Format = DirFormat + 1
	testkit.Must(t, Create(zap.NewNop(), newer, id, state.First(diskPeers())))
	t.Run("newer", func(t *testing.T) {
		before := testkit.Sums(t, newer)
		_, err := Open(zap.NewNop(), newer, Bounds{}, anyIdentity)
		if err == nil {
			t.Fatal("opened")
		}
		for _, w := range []string{newer, "format 2", "knows format 1"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("no %q in the message: %v", w, err)
			}
		}
		testkit.WantUnchanged(t, newer, before)
	})
	t.Run("newer is not damaged", func(t *testing.T) {
		// Its data is sound: who follows the advice to remove the member
		// throws a replica away.
		_, err := Open(zap.NewNop(), newer, Bounds{}, anyIdentity)
		if err == nil || strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "remove this member") {
			t.Errorf("message: %v", err)
		}
	})
	t.Run("of another program", func(t *testing.T) {
		dir := newDisk(t)
		testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal")))
		w, err := wal.Create(nil, filepath.Join(dir, "wal"), []byte("\x08\x01\x10\x02"))
		testkit.Must(t, err)
		testkit.Must(t, w.Save(&raftpb.HardState{Term: new(uint64(9)), Commit: new(uint64(1)), Vote: new(uint64(1))}, testkit.Entries(9, 1, 1, 10)))
		testkit.Must(t, w.Close())
		wantRefused(t, dir, "metadata is not raftkv's")
	})
}
