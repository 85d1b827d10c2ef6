//go:build unix

package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// The refusal of a damaged directory names a way that this node has: one that is alone cannot be removed through
// another, and joins nobody.
func TestDamageNamesAWayOut(t *testing.T) {
	lone := storagetest.Peers()[:1]
	make := func(peers []address.Peer) string {
		dir := t.TempDir()
		id := storagetest.Identity()
		id.Initial = address.FormatPeers(peers)
		testkit.Must(t, storage.Create(zap.NewNop(), dir, id, state.First(peers)))
		return dir
	}
	addVoter := func(dir string) {
		o := storagetest.Open(t, dir)
		var entries []*raftpb.Entry
		for i, change := range []membership.Change{{Op: membership.OpAdd, ID: 4, PeerURL: "http://10.0.0.4:2380"}, {Op: membership.OpPromote, ID: 4}} {
			data, err := proto.Marshal(change.ConfChange())
			testkit.Must(t, err)
			entries = append(entries, &raftpb.Entry{Term: new(uint64(1)), Index: new(uint64(i + 2)), Type: raftpb.EntryConfChange.Enum(), Data: data})
		}
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(1, 1, 3, entries...)}))
		testkit.Must(t, o.Close())
	}
	const byAnother, byRestore = "remove this member (curl -X DELETE http://ANOTHER-NODE/", "raftkv restore"
	for name, c := range map[string]struct {
		peers     []address.Peer
		damage    func(dir string)
		want, not []string
	}{
		"three": {storagetest.Peers(), func(string) {}, []string{byAnother + "1)", "new ID"}, []string{byRestore, "only voter"}},
		"alone": {lone, func(string) {}, []string{"only voter", byRestore, "--id 1 --cluster " + lone[0].URL, "whole", ".state", "as of entry 1"}, []string{byAnother}},
		"alone, and the state file damaged": {lone, func(dir string) {
			damageFirstState(t, dir)
		}, []string{byAnother + "1)", byRestore, "if this node was alone", "--data-dir"}, []string{"only voter", "whole"}},
		"alone, without the log": {lone, func(dir string) { testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal"))) }, []string{"only voter", byRestore, "--id ID"}, []string{byAnother}},
		"no more alone":          {lone, addVoter, []string{byAnother + "1)"}, []string{byRestore}},
	} {
		dir := make(c.peers)
		c.damage(dir)
		err := storage.Refused(dir, fmt.Errorf("it is broken"))
		for _, w := range append(c.want, dir, "The way out", "it is broken") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: no %q in: %v", name, w, err)
			}
		}
		if name == "alone" { // and it works
			code, out, errs := runCommand(t, "restore", storage.StatePath(dir, state.FirstTerm, state.FirstIndex), "--data-dir", filepath.Join(t.TempDir(), "new"),
				"--id", "1", "--cluster", lone[0].URL)
			if code != config.ExitOK {
				t.Errorf("restore: exit %d\n%s%s", code, out, errs)
			}
		}
		for _, w := range c.not {
			if strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q in: %v", name, w, err)
			}
		}
	}
}

func damageFirstState(t *testing.T, dir string) {
	t.Helper()
	testkit.Patch(t, storage.StatePath(dir, state.FirstTerm, state.FirstIndex), 20, []byte{0xff, 0xff, 0xff})
}
