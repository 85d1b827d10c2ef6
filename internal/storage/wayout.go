package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/walfile"
	"slices"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// What to do about a directory that cannot be used depends on whether there are
// others to take this node's place.

// Refused explains why a directory cannot be used, and the way out.
func Refused(dir string, err error) error {
	if errors.Is(err, durable.ErrNewer) {
		return fmt.Errorf("data directory %s: %w; start it with the version that wrote it, or a newer one", dir, err)
	}
	return fmt.Errorf("data directory %s is damaged: %w; nothing was changed. The way out: %s", dir, err, wayOut(dir))
}

func wayOut(dir string) string {
	r := lookAtRemains(dir)
	const others = "remove this member (curl -X DELETE http://ANOTHER-NODE/%s), and join under a new ID with an empty directory"
	lone := fmt.Sprintf("raftkv restore makes a new data directory of a backup (raftkv restore FILE --data-dir DIR --id %s --cluster %s)", r.node, r.url)
	if r.file != "" {
		lone += fmt.Sprintf(", or of %s, which is whole and holds the data as of entry %d; raftkv inspect %s tells how far the log went", r.file, r.index, dir)
	}
	switch {
	case r.voters == 1:
		return "this node is the only voter of its cluster, so no other has its data: " + lone
	case r.voters > 1:
		return fmt.Sprintf(others, r.node)
	}
	return "if the cluster has other voters, " + fmt.Sprintf(others, r.node) + "; if this node was alone, " + lone
}

// remains is what a damaged directory still tells.
type remains struct {
	node, url string // placeholders, if it does not tell
	voters    int    // as last known; 0: not known
	file      string // the newest state file that is whole; empty: none
	index     uint64 // which it is of
}

// lookAtRemains reads what it can, and takes no error for an answer.
func lookAtRemains(dir string) remains {
	r := remains{node: "ID", url: "URL"}
	var st *state.State
	r.file, st = newestWhole(dir)
	if st != nil {
		r.index = st.Index
	}
	_ = walfile.Scan(filepath.Join(dir, "wal"), func(rec *walpb.Record, d wal.Decoder, _ walfile.Place) error {
		switch rec.GetType() {
		case wal.MetadataType:
			if id, err := decodeIdentity(rec.GetData()); err == nil {
				r.node = fmt.Sprint(id.Node)
				if st == nil {
					return nil
				}
				r.url = st.Membership.Members[id.Node].PeerURL
			}
		case wal.CrcType:
			d.UpdateCRC(rec.GetCrc())
		case wal.EntryType:
			e := &raftpb.Entry{}
			if st == nil || walfile.DecodeRecord(rec, e) != nil || e.GetType() == raftpb.EntryNormal || e.GetIndex() <= st.Index {
				return nil
			}
			if _, change, err := state.DecodeConfEntry(e); err == nil {
				_, _ = st.ApplyChange(change) // a refused one is void
			}
		}
		return nil
	})
	if st != nil {
		r.voters = len(st.Membership.Voters())
	}
	if r.url == "" {
		r.url = "URL"
	}
	return r
}

// newestWhole returns the newest state file in a directory that is whole, and
// its state without the items.
func newestWhole(dir string) (path string, st *state.State) {
	files, err := os.ReadDir(filepath.Join(dir, "snap"))
	if err != nil {
		return "", nil
	}
	for _, f := range slices.Backward(files) { // by term and index
		if _, kind := parseSnapName(f.Name()); kind != ".state" {
			continue
		}
		path := filepath.Join(dir, "snap", f.Name())
		if st, err := readStateWithoutItems(path); err == nil {
			return path, st
		}
	}
	return "", nil
}
