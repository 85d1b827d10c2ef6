package storage

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// flipDisk makes a closed data directory with a state file and a log of puts
// and deletes behind it, in two segments, and cuts the zeros off its end, which
// only make the test slow.
func flipDisk(t *testing.T) string {
	t.Helper()
	dir := newDisk(t)
	o := openDisk(t, dir)
	rnd := rand.New(rand.NewPCG(3, 1))
	st, index := o.State.Copy(), o.Last
	write := func(n int) {
		for range n {
			index++
			id := state.BatchID{Node: 1, Boot: 1, Seq: index, Low: index}
			cmd := state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprintf("key%d", rnd.IntN(40)), make([]byte, rnd.IntN(400)))
			data := entry.AppendCommand(entry.AppendHeader(nil, id), cmd)
			e := &raftpb.Entry{Term: new(uint64(2)), Index: new(index), Data: data}
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 3, index, e)}))
			applyForTest(t, st, e)
		}
	}
	write(60)
	takeSnapshot(t, o, st.Copy())
	write(60)
	testkit.Must(t, o.Close())
	path := testkit.Segments(t, dir)[0]
	testkit.Must(t, os.Truncate(path, (inspectPath(t, filepath.Join(dir, "wal")).End/walfile.Sector+4)*walfile.Sector))
	return dir
}

// applyForTest applies a normal entry as the apply loop does.
func applyForTest(t *testing.T, s *state.State, e *raftpb.Entry) {
	t.Helper()
	s.Index, s.Term = e.GetIndex(), e.GetTerm()
	if len(e.GetData()) == 0 {
		return
	}
	id, cmds, err := state.DecodeBatch(e.GetData())
	testkit.Must(t, err)
	s.ApplyBatch(id, cmds)
}

// whatCounts reads a data directory as a start does, without changing it, and
// returns what the node would come to: its whole state behind its log, and its
// promises. An error means that the start is refused.
func whatCounts(t *testing.T, dir string) (string, error) {
	t.Helper()
	mf, m, err := watermark.OpenFile(filepath.Join(dir, "mark"))
	if err != nil {
		return "", err
	}
	testkit.Must(t, mf.Close())
	o, err := inspect(zap.NewNop(), dir, m, Bounds{Tail: TailWeight}, anyIdentity)
	if err != nil {
		return "", err
	}
	last, err := o.Mem.LastIndex()
	testkit.Must(t, err)
	if last > o.State.Index {
		entries, err := o.Mem.Entries(o.State.Index+1, last+1, ^uint64(0))
		testkit.Must(t, err)
		for _, e := range entries {
			applyForTest(t, o.State, e)
		}
	}
	return fmt.Sprintln(o.Identity, o.Hard.GetTerm(), o.Hard.GetVote(), fmt.Sprintf("%x", sha256.Sum256(statetest.Bytes(t, o.State)))), nil
}

// flipPlaces draws the offsets in a file at which to flip a bit; in a segment of
// the log, also the byte of each frame that says how to read it, which no
// checksum covers.
func flipPlaces(t *testing.T, rnd *rand.Rand, path string, data []byte) []int {
	var places []int
	for range min(8*len(data), 1500) {
		places = append(places, rnd.IntN(len(data)))
	}
	if strings.HasSuffix(path, ".wal") {
		for _, f := range testkit.Frames(t, data) {
			places = append(places, int(f.Off)+8+1)
		}
	}
	return places
}

// A bit that flips in any file of a data directory, wherever, is found at the
// start, or changes nothing of what the node holds and has promised.
func TestStorageFlippedBits(t *testing.T) {
	t.Parallel()
	dir := flipDisk(t)
	want, err := whatCounts(t, dir)
	testkit.Must(t, err)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	t.Logf("seed %d", seed)
	var refused, harmless int
	testkit.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "lock") {
			return err
		}
		sound, err := os.ReadFile(path)
		testkit.Must(t, err)
		for _, at := range flipPlaces(t, rnd, path, sound) {
			bit := byte(1) << rnd.IntN(8)
			testkit.Patch(t, path, int64(at), []byte{sound[at] ^ bit})
			got, err := whatCounts(t, dir)
			switch {
			case err != nil:
				refused++
			case got == want:
				harmless++
			default:
				t.Errorf("%s: bit %#x at %d of %d goes unnoticed:\n%.300s\ninstead of\n%.300s", path, bit, at, len(sound), got, want)
			}
			testkit.Patch(t, path, int64(at), sound[at:at+1])
		}
		return nil
	}))
	t.Logf("%d were refused, %d harmless", refused, harmless)
	if refused < harmless {
		t.Error("most of the flips hit nothing: is this the right directory?")
	}
}
