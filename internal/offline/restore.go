package offline

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/doors"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/walroom"
	"slices"

	"go.uber.org/zap"
)

func restoreCommand() command.Command {
	return command.Command{
		Name: "restore", Args: "FILE", About: "make the data directory of a new cluster from a backup",
		Long: `Makes the data directory of one node of a new cluster from a backup
(raftkv backup FILE, or curl -o FILE http://HOST/v1/snapshot), or from a snap/*.state file
of a data directory; FILE - is standard input. Run it once for each node, with the
same file and the same --cluster, then start the nodes with that --cluster.

A damaged file is refused before anything is made, and so is a data directory
that is not new.

The new cluster has an ID of its own, made from file and list. Its members are
those of --cluster. Keys keep their values and revisions; the next write gets a
revision at least 1000000000 higher, so that no ETag of the old cluster matches
what the new one writes.`,
		Example: `raftkv restore backup.state --data-dir raftkv-1 --id 1 \
  --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379`,
		New: newRestore,
	}
}

func newRestore() command.Action {
	c, list := config.DefaultConfig(), config.DefaultPeerURL
	c.DataDir = ""
	return command.Action{
		Settings: shared(&c, &list, "id", "cluster", "data-dir"),
		Check: func(o *command.Call) {
			r := o.Review
			peers, err := address.ParsePeers(list)
			r.Check("cluster", list, err)
			if r.Sound("id", "cluster") {
				r.Check("cluster", list, c.ResolveCluster(peers))
			}
			if r.Sound("id", "cluster") && !slices.Contains(c.Cluster, address.Peer{ID: c.ID, URL: c.PeerURL}) {
				r.Check("id", c.ID, fmt.Errorf("expected a member in %s %s", r.Name("cluster"), address.FormatPeers(c.Cluster)))
			}
		},
		Run: run(func(o *command.Call) error {
			c.DataDir = cmp.Or(c.DataDir, fmt.Sprintf("raftkv-%d", c.ID))
			return restore(o, c, o.Arg(0))
		}),
	}
}

// restoredClusterID derives a cluster ID from what every node of the cluster is
// made from, so that all arrive at the same one. It is never 0.
func restoredClusterID(digest [sha256.Size]byte, voters []address.Peer) uint64 {
	text := fmt.Appendf(nil, "restore %x\n%s\n", digest, address.FormatPeers(voters))
	sum := sha256.Sum256(text)
	return max(1, binary.BigEndian.Uint64(sum[:]))
}

// restore makes the data directory of c from a file.
func restore(o *command.Call, c config.Config, file string) error {
	// A directory in use is found before a large file is read, a damaged file
	// before a directory is made.
	if err := checkVacant(c.DataDir); err != nil {
		return err
	}
	st, digest, err := state.ReadBackup(o.Stdin, file)
	if err != nil {
		return fmt.Errorf("%w; nothing was made", err)
	}
	was, rights := st.Revision, sayRights(st)
	if err := st.Refound(c.Cluster); err != nil {
		return fmt.Errorf("%s: %w; nothing was made", file, err)
	}
	id := storage.Identity{
		Format: storage.DirFormat, Node: c.ID, Instance: storage.NewInstance(),
		ClusterID: restoredClusterID(digest, c.Cluster), Initial: address.FormatPeers(c.Cluster),
	}
	if err := makeDir(c.DataDir, id, st); err != nil {
		return err
	}
	if o.Output == command.JSON {
		return o.PrintJSON(map[string]any{
			"file": file, "sha256": fmt.Sprintf("%x", digest), "keys": st.Keys(), "bytes": st.Bytes, "revision": was, "next_after": st.Revision,
			"data_dir": c.DataDir, "id": id.Node, "cluster_id": fmt.Sprintf("%x", id.ClusterID), "cluster": id.Initial,
		})
	}
	_, err = fmt.Fprintf(o.Stdout, `restored %s
  sha256          %x
  keys            %d, with %d bytes
  revision        %d; new writes begin after %d
into %s
  node            %d
  cluster         %x, which is also that of the other nodes restored from this file with this list
Start it with --id %d --cluster %s --data-dir %s
%s`, file, digest, st.Keys(), st.Bytes, was, st.Revision, c.DataDir, id.Node, id.ClusterID, id.Node, id.Initial, c.DataDir, rights)
	return err
}

// sayRights says that the cluster of a state has rights, if it has: in a new one no node has
// published any yet, and one without a file serves everybody.
func sayRights(st *state.State) string {
	if doors.RightsBy(&st.Membership) == 0 {
		return ""
	}
	return "The cluster had rights, which the new one has not by itself: without --auth-file it serves everybody.\n"
}

// checkVacant refuses a directory in which there is a node, or anything else.
// One that is not there is vacant.
func checkVacant(dir string) error {
	old, err := storage.Booted(dir)
	if err != nil {
		return err
	}
	if old {
		return fmt.Errorf("data directory %s has a node in it (see raftkv inspect %s), and stays as it is; use a new one", dir, dir)
	}
	if err := storage.CheckNew(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// makeDir makes a data directory that begins with st.
func makeDir(dir string, id storage.Identity, st *state.State) (err error) {
	lock, err := storage.Lock(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := checkVacant(dir); err != nil {
		return err
	}
	mark := filepath.Join(dir, storage.RestoringName)
	if err := errors.Join(os.WriteFile(mark, nil, 0o600), durable.SyncDir(dir)); err != nil {
		return err
	}
	walroom.FitSegments(zap.NewNop(), dir)
	if err := storage.Create(zap.NewNop(), dir, id, st); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if err := os.Remove(mark); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(filepath.Dir(dir)))
}
