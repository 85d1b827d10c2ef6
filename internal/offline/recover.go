package offline

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/walroom"
	"strconv"

	"go.uber.org/zap"
)

func recoverCommand() command.Command {
	return command.Command{
		Name: "recover", About: "make a cluster of its own of one surviving data directory",
		Long: `Turns one surviving data directory into a cluster of one node, when the majority of
its cluster is gone for good. As long as a majority can be brought back, bring it back:
with it nothing is lost.

It says first what may be lost. Without --force-new-cluster it says just that,
does nothing, and exits 1. The old directory is kept, beside the new one, or within
it as before-recovery-N if DIR is a mount point.

Afterwards start the node with its old command line. Other nodes join it with
empty data directories and --join; their old IDs are free again, because the
cluster has a new ID. Old nodes that still run are not of this cluster any more:
stop them, so that no client writes to them.`,
		Example: `raftkv recover --data-dir raftkv-2
raftkv recover --data-dir raftkv-2 --force-new-cluster`,
		New: newRecover,
	}
}

func newRecover() command.Action {
	var dir string
	var force bool
	return command.Action{
		Settings: []config.Setting{
			{Flag: "data-dir", Arg: "DIR", Env: "RAFTKV_DATA_DIR", Help: "the surviving node's files", Set: config.Into(&dir, config.ParseText, "")},
			{Flag: "force-new-cluster", Env: "RAFTKV_FORCE_NEW_CLUSTER", Help: "do it (false)", Set: config.Into(&force, strconv.ParseBool, "true or false")},
		},
		Check: func(o *command.Call) {
			if dir == "" && o.Review.Sound("data-dir") {
				o.Review.Errs = append(o.Review.Errs, errors.New("--data-dir is missing"))
			}
		},
		Run: run(func(o *command.Call) error { return recoverDir(o, dir, force) }),
	}
}

func recoverDir(o *command.Call, dir string, force bool) error {
	dir, err := durable.RealDir(dir)
	if err != nil {
		return err
	}
	rec, err := newRecovery(dir)
	if err != nil {
		return err
	}
	report := new(bytes.Buffer)
	out := o.Stdout
	if o.Output == command.JSON {
		out = report
	}
	done, err := rec.resume(out, force)
	if !done && err == nil {
		err = rec.run(out, force)
	}
	if o.Output != command.JSON || err != nil && !errors.Is(err, command.ErrSaid) {
		return err
	}
	return errors.Join(err, o.PrintJSON(struct {
		DataDir   string `json:"data_dir"`
		Recovered bool   `json:"recovered"`
		Report    string `json:"report"`
	}{dir, err == nil, report.String()}))
}

// recovery turns a data directory into that of a one-node cluster.
//
// The order of effects, and what a crash between two of them leaves:
//
//  1. The new directory is made beside the old one, as DIR.recovering. Before it
//     has its wal/, it is a first start that did not come to its end; it is made
//     again. Behind that the old directory is still in its place, and a second
//     run asks the operator to remove the new one.
//  2. The old one is renamed to DIR.before-recovery-N. Behind that there is no
//     DIR; a second run does what is left.
//  3. The new one is renamed to DIR.
//
// A mount point cannot be renamed; there volumeRecovery does the same within it.
type recovery struct {
	dir    string // in absolute terms, without links
	next   string // the new directory, while it is made
	volume bool   // that is within dir, see volumeRecovery
}

func newRecovery(dir string) (recovery, error) {
	within := volumeRecovery{dir: dir}.next()
	mounted, err := durable.IsMountPoint(dir)
	if err != nil {
		return recovery{}, err
	}
	begun, err := storage.Booted(within) // perhaps before the volume was copied to a directory
	if mounted || begun {
		return recovery{dir: dir, next: within, volume: true}, err
	}
	return recovery{dir: dir, next: storage.BesideDir(dir)}, err
}

// resume completes a run that a crash ended between the two renames.
func (r recovery) resume(out io.Writer, force bool) (done bool, err error) {
	complete, err := storage.Booted(r.next)
	if err != nil || !complete {
		return false, err
	}
	old, err := storage.Booted(r.dir)
	if err != nil {
		return false, err
	}
	switch _, err := os.Stat(r.dir); {
	case err == nil && r.volume && !old: // that is the state between
	case err == nil && r.volume:
		return false, r.bothComplete()
	case err == nil && checkVacant(r.dir) == nil:
		// A start that was refused in between has left it. place needs the name.
		if force {
			if err := removeVacant(r.dir); err != nil {
				return false, err
			}
		}
	case err == nil:
		return false, r.bothComplete()
	case !errors.Is(err, os.ErrNotExist):
		return false, err
	}
	if !force {
		fmt.Fprintf(out, "An earlier run was interrupted: %s is complete, and not yet %s.\n"+
			"With --force-new-cluster it is put in its place. Nothing was done.\n", r.next, r.dir)
		return false, command.ErrSaid
	}
	locked := r.next
	if r.volume {
		locked = r.dir
	}
	lock, err := storage.Lock(locked)
	if err != nil {
		return false, err
	}
	err = r.complete()
	if err == nil {
		fmt.Fprintf(out, "An earlier run was interrupted behind making %s; it is now %s.\n", r.next, r.dir)
	}
	return err == nil, errors.Join(err, lock.Close())
}

func (r recovery) bothComplete() error {
	return fmt.Errorf("%s is complete from an earlier run, but %s is still there, and it cannot be told here which one counts. "+
		"Look at both with raftkv inspect; remove %s to recover from %s again", r.next, r.dir, r.next, r.dir)
}

// complete puts the new directory in the place of one that was set aside.
func (r recovery) complete() error {
	if !r.volume {
		return r.place()
	}
	v := volumeRecovery{dir: r.dir}
	aside, err := v.latestAside()
	if err != nil {
		return err
	}
	return v.finish(aside)
}

// removeVacant removes a directory that checkVacant finds vacant, if nobody
// uses it.
func removeVacant(dir string) error {
	lock, err := storage.Lock(dir)
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), lock.Close())
}

// run says what may be lost, and with force goes through with it.
func (r recovery) run(out io.Writer, force bool) (err error) {
	if err := storage.CheckHasData(r.dir); err != nil {
		return err
	}
	if force {
		lock, err := storage.Lock(r.dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	} else if storage.InUse(r.dir) {
		return fmt.Errorf("data directory %s is in use by another process; stop that one first", r.dir)
	}
	f, err := storage.Examine(r.dir)
	if err != nil {
		return err
	}
	me, st, err := survivor(f)
	if err != nil {
		return err
	}
	if err := sayLosses(out, f, me, st); err != nil {
		return err
	}
	if !force {
		fmt.Fprintf(out, "\nNothing was done. To go through with it: raftkv recover --force-new-cluster --data-dir %s\n", r.dir)
		return command.ErrSaid
	}
	return r.replace(out, f.Identity.Node, me, st)
}

// survivor returns the node of a directory as its cluster knew it, and the
// state with the whole log on it.
//
// The whole log: also the entries that are not known to be committed. This node
// often hears of a commit later than the client does, so such an entry may have
// been acknowledged, and leaving it out would lose it. One that was not
// acknowledged was answered as outcome_unknown, or not at all: it may happen.
func survivor(f *storage.Findings) (membership.Member, *state.State, error) {
	if len(f.Damage) > 0 {
		return membership.Member{}, nil, fmt.Errorf("data directory %s is damaged: %w; nothing was changed. raftkv inspect shows what is left; "+
			"raftkv restore makes a new cluster of a backup, or of a snap/*.state file that is whole", f.Dir, errors.Join(f.Damage...))
	}
	if f.Snapshot.Index == 0 {
		return membership.Member{}, nil, fmt.Errorf("data directory %s holds no state: the node has got nothing from its cluster yet", f.Dir)
	}
	st, err := f.Replay(f.Log.Last())
	if err != nil {
		return membership.Member{}, nil, err
	}
	known, err := f.Replay(f.Log.Hard.GetCommit())
	if err != nil {
		return membership.Member{}, nil, err
	}
	me, ok := known.Membership.Members[f.Identity.Node] // its removal may be among the rest
	if !ok {
		return membership.Member{}, nil, fmt.Errorf("node %d is no member of its cluster any more; what it has is old. "+
			"raftkv restore makes a new cluster of %s", f.Identity.Node, f.File)
	}
	return me, st, nil
}

// sayLosses says what a recovery rests on, and what it gives up.
func sayLosses(out io.Writer, f *storage.Findings, me membership.Member, st *state.State) error {
	written, err := lastWritten(f.Dir)
	if err != nil {
		return err
	}
	p := &printer{w: out}
	p.line("data directory", "%s", f.Dir)
	p.line("node", "%d of cluster %x, at %s", me.ID, f.Identity.ClusterID, me.PeerURL)
	p.line("log", "reaches entry %d, term %d; known to be committed is entry %d; last written %s",
		st.Index, st.Term, f.Log.Hard.GetCommit(), stamp(written))
	if f.Tail.NonZero {
		p.line("", "its last write was torn by a crash; nothing that was synced is lost of it")
	}
	if f.OldCopy {
		p.line("OLD COPY", "its node has found out that it has forgotten what it acknowledged: take another node's directory if there is one")
	}
	p.line("keys", "%d, at revision %d", st.Keys(), st.Revision)
	for _, m := range st.Membership.Sorted() {
		switch {
		case m.ID != me.ID:
			p.line("dropped", "node %d at %s", m.ID, m.PeerURL)
		case m.Learner:
			p.line("learner", "node %d had no vote: it may be far behind", m.ID)
		}
	}
	if err := st.Checks.Verdict(me.ID); err != nil {
		p.line("diverged", "the replicas were found to differ, and this one may be wrong: prefer another node's directory, or a backup")
	}
	if p.err == nil {
		_, p.err = io.WriteString(out, `
WHAT MAY BE LOST: every write that the others acknowledged as a majority and that
this node had not got. It cannot be known here which, or whether there are any.
Entries that are not known to be committed are taken over: a write that was
answered with outcome_unknown may turn out to have happened.
If another node's data directory survived as well, compare with raftkv inspect,
and recover the one with the higher last term, then the higher last entry.
`)
	}
	return p.err
}

// replace puts a directory with the state st, of node me alone, in the place of
// the old one, which the caller has locked.
func (r recovery) replace(out io.Writer, node uint64, me membership.Member, st *state.State) (err error) {
	if err := r.clear(); err != nil {
		return err
	}
	rights := sayRights(st)
	if err := st.Refound([]address.Peer{{ID: node, URL: me.PeerURL}}); err != nil {
		return err
	}
	id := storage.Identity{Format: storage.DirFormat, Node: node, Instance: storage.NewInstance(), ClusterID: max(1, rand.Uint64())}
	lock, err := storage.Lock(r.next)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	walroom.FitSegments(zap.NewNop(), r.next)
	if err := storage.Create(zap.NewNop(), r.next, id, st); err != nil {
		return errors.Join(fmt.Errorf("data directory %s: %w", r.next, err), os.RemoveAll(r.next))
	}
	old, err := r.swap()
	if old == "" {
		return errors.Join(err, os.RemoveAll(r.next))
	}
	if err != nil {
		return fmt.Errorf("%w. The old directory is %s, the new one %s: run this again, or rename it", err, old, r.next)
	}
	fmt.Fprintf(out, `
Done: %s is now node %d, alone, of the new cluster %x.
New writes begin after revision %d. The old directory is kept as %s.
Start the node with its old command line (without --cluster-id).
%s`, r.dir, node, id.ClusterID, st.Revision, old, rights)
	return nil
}

// swap puts the new directory in the place of the old one, and returns the name
// under which that is kept: none if nothing was changed.
func (r recovery) swap() (old string, err error) {
	if r.volume {
		v := volumeRecovery{dir: r.dir}
		if old, err = v.begin(); err != nil {
			return old, err
		}
		return old, v.finish(old)
	}
	if old, err = r.setAside(); err != nil {
		return "", err
	}
	if err = durable.SyncDir(filepath.Dir(r.dir)); err == nil {
		err = r.place()
	}
	return old, err
}

// clear removes what an earlier run did not complete.
func (r recovery) clear() error {
	err := storage.CheckNew(r.next)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.RemoveAll(r.next)
	}
	return err
}

// setAside gives the old directory a name that is free.
func (r recovery) setAside() (string, error) {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.before-recovery-%d", r.dir, n)
		if _, err := os.Lstat(name); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := os.Rename(r.dir, name); err != nil {
			return "", fmt.Errorf("%w; nothing was changed. If it is a mount point, copy its content to a directory, and recover that", err)
		}
		return name, nil
	}
}

// place gives the new directory the name of the old one.
func (r recovery) place() error {
	if err := os.Rename(r.next, r.dir); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(r.dir))
}
