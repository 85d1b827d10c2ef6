package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/statefile"
	"slices"

	"go.uber.org/zap"
)

func restoreUsage() string {
	return `raftkv restore FILE makes the data directory of one node of a new cluster from a
backup (curl -o FILE http://HOST/v1/snapshot), or from a snap/*.state file of a
data directory; FILE - is standard input. Run it once for each node, with the
same file and the same --cluster, then start the nodes with that --cluster.

A damaged file is refused before anything is made, and so is a data directory
that is not new.

The new cluster has an ID of its own, made from file and list. Its members are
those of --cluster. Keys keep their values and revisions; the next write gets a
revision at least 1000000000 higher, so that no ETag of the old cluster matches
what the new one writes.

Flags (default in parentheses), each also an environment variable as for the server:
` + flagTable(restoreSettings(new(config), new(string))) + `
Example:
  raftkv restore backup.state --data-dir raftkv-1 --id 1 \
    --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379
`
}

func restoreSettings(c *config, list *string) []setting {
	return only(c.settings(list), "id", "cluster", "data-dir")
}

// revisionJump lies between the last revision of a cluster and the first one
// of a cluster made from its state. The state may be older than what the old
// cluster wrote last: without a jump, an ETag or a position in a watch that
// somebody still has would match other data.
const revisionJump = 1_000_000_000

// refound makes the state the first one of a new cluster with these voters.
// Who was a member, who was removed, which batches were applied and what the
// replicas found of one another is the old cluster's: here those IDs have not
// been used yet.
func (s *state) refound(voters []address.Peer) error {
	if s.revision > math.MaxUint64-revisionJump {
		return fmt.Errorf("its revision %d is too high to go on from", s.revision)
	}
	s.index, s.term = firstIndex, firstTerm
	s.revision += revisionJump
	s.membership = newMembership(voters)
	s.windows = make(map[uint64]window)
	s.level, s.checks = 0, checks{}
	return nil
}

// restoredClusterID derives a cluster ID from what every node of the cluster is
// made from, so that all arrive at the same one. It is never 0.
func restoredClusterID(digest [sha256.Size]byte, voters []address.Peer) uint64 {
	text := fmt.Appendf(nil, "restore %x\n%s\n", digest, address.FormatPeers(voters))
	sum := sha256.Sum256(text)
	return max(1, binary.BigEndian.Uint64(sum[:]))
}

func runRestore(o offline) error {
	c := defaultConfig()
	c.DataDir = ""
	list := defaultPeerURL
	r, err := o.review(restoreSettings(&c, &list), "FILE")
	if err != nil {
		return err
	}
	peers, err := address.ParsePeers(list)
	r.check("cluster", list, err)
	if r.sound("id", "cluster") {
		r.check("cluster", list, c.resolveCluster(peers))
	}
	if r.sound("id", "cluster") && !slices.Contains(c.Cluster, address.Peer{ID: c.ID, URL: c.PeerURL}) {
		r.check("id", c.ID, fmt.Errorf("expected a member in %s %s", r.name("cluster"), address.FormatPeers(c.Cluster)))
	}
	if err := r.verdict(); err != nil {
		return err
	}
	c.DataDir = cmp.Or(c.DataDir, fmt.Sprintf("raftkv-%d", c.ID))
	return restore(o, c, r.operands[0])
}

// restore makes the data directory of c from a file.
func restore(o offline, c config, file string) error {
	// A directory in use is found before a large file is read, a damaged file
	// before a directory is made.
	if err := checkVacant(c.DataDir); err != nil {
		return err
	}
	st, digest, err := readBackup(o.stdin, file)
	if err != nil {
		return fmt.Errorf("%w; nothing was made", err)
	}
	was := st.revision
	if err := st.refound(c.Cluster); err != nil {
		return fmt.Errorf("%s: %w; nothing was made", file, err)
	}
	id := identity{
		Format: dirFormat, Node: c.ID, Instance: newInstance(),
		ClusterID: restoredClusterID(digest, c.Cluster), Initial: address.FormatPeers(c.Cluster),
	}
	if err := makeDir(c.DataDir, id, st); err != nil {
		return err
	}
	fmt.Fprintf(o.stdout, `restored %s
  sha256          %x
  keys            %d, with %d bytes
  revision        %d; new writes begin after %d
into %s
  node            %d
  cluster         %x, which is also that of the other nodes restored from this file with this list
Start it with --id %d --cluster %s --data-dir %s
`, file, digest, st.keys(), st.bytes, was, st.revision, c.DataDir, id.Node, id.ClusterID, id.Node, id.Initial, c.DataDir)
	return nil
}

// readBackup reads a state file, from stdin if its name is -.
func readBackup(stdin io.Reader, file string) (st *state, digest [sha256.Size]byte, err error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, digest, err
		}
		defer func() { _ = f.Close() }() // only read from
		in = f
	}
	sr, err := statefile.NewReader(in)
	if err == nil {
		st, err = readRecords(sr)
	}
	if err != nil {
		return nil, digest, fmt.Errorf("backup %s: %w", file, err)
	}
	return st, sr.Digest, nil
}

// checkVacant refuses a directory in which there is a node, or anything else.
// One that is not there is vacant.
func checkVacant(dir string) error {
	old, err := booted(dir)
	if err != nil {
		return err
	}
	if old {
		return fmt.Errorf("data directory %s has a node in it (see raftkv inspect %s), and stays as it is; use a new one", dir, dir)
	}
	if err := checkNew(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// makeDir makes a data directory that begins with st.
func makeDir(dir string, id identity, st *state) (err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := checkVacant(dir); err != nil {
		return err
	}
	mark := filepath.Join(dir, restoringName)
	if err := errors.Join(os.WriteFile(mark, nil, 0o600), durable.SyncDir(dir)); err != nil {
		return err
	}
	fitSegments(zap.NewNop(), dir)
	if err := createStorage(zap.NewNop(), dir, id, st); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if err := os.Remove(mark); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(filepath.Dir(dir)))
}
