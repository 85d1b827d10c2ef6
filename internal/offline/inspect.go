package offline

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/command"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/walfile"
	"strings"
	"time"
)

func inspectCommand() command.Command {
	return command.Command{
		Name: "inspect", Args: "DATA-DIR|FILE", About: "print what is in a data directory or a backup",
		Long: `Prints what is in a data directory: whose it is, the members, how far log and snapshot
reach, and whether all of it is sound. It changes nothing, and works beside a running
node; what it prints is then of a moment, and may be in motion. With a backup, or a
snap/*.state file, it does the same for that; - is standard input.

The sha256 of a state is the checksum at the end of its file: two nodes, or a
node and a backup, have the same one at the same index.

Exit status: 0 sound, 1 damaged or not a data directory, 2 wrong command line.`,
		Example: "raftkv inspect raftkv-1\nraftkv inspect backup.state",
		New:     plain(runInspect),
	}
}

func runInspect(o *command.Call) error {
	path := o.Arg(0)
	if info, err := os.Stat(path); path == "-" || (err == nil && info.Mode().IsRegular()) {
		return inspectFile(o, path)
	}
	f, busy, err := examineLive(path)
	if err != nil {
		return err
	}
	p := newPrinter(o)
	p.directory(f, busy)
	if err := p.end(o, path, len(f.Damage) == 0); err != nil {
		return err
	}
	if len(f.Damage) > 0 {
		return command.ErrSaid
	}
	return nil
}

// examineLive examines a directory that may be in use. Files may go, and frames
// be half-written, while it reads: what looks like damage then is looked at
// again.
func examineLive(dir string) (f *storage.Findings, busy bool, err error) {
	for range 10 {
		busy = storage.InUse(dir)
		f, err = storage.Examine(dir)
		if err != nil || len(f.Damage) == 0 || !busy {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return f, busy, err
}

func inspectFile(o *command.Call, path string) error {
	st, digest, err := state.ReadBackup(o.Stdin, path)
	if err != nil {
		return err
	}
	p := newPrinter(o)
	p.line("state file", "%s", path)
	p.state(st, digest)
	p.members(st)
	p.line("sound", "every checksum matches")
	return p.end(o, path, true)
}

// printer prints lines of a name and a value, or keeps them for JSON. Its first error sticks.
type printer struct {
	w     io.Writer // nil: facts are kept
	facts []fact
	err   error
}

// fact is a line in JSON.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func newPrinter(o *command.Call) *printer {
	if o.Output == command.JSON {
		return &printer{}
	}
	return &printer{w: o.Stdout}
}

// end prints what was kept, and returns the first error.
func (p *printer) end(o *command.Call, path string, sound bool) error {
	if p.w == nil && p.err == nil {
		p.err = o.PrintJSON(struct {
			Path  string `json:"path"`
			Sound bool   `json:"sound"`
			Facts []fact `json:"facts"`
		}{path, sound, p.facts})
	}
	return p.err
}

func (p *printer) line(name, format string, args ...any) {
	if p.w == nil {
		p.facts = append(p.facts, fact{strings.TrimSpace(name), fmt.Sprintf(format, args...)})
		return
	}
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%-16s %s\n", name, fmt.Sprintf(format, args...))
	}
}

func (p *printer) directory(f *storage.Findings, busy bool) {
	p.line("data directory", "%s", f.Dir)
	if busy {
		p.line("in use", "by a running process: what follows is of a moment, and may be in motion")
	}
	p.identity(f.Identity)
	p.log(f)
	if f.Snapshot != nil {
		p.snapshot(f)
	}
	temporary, foreign, err := f.Leftovers()
	f.Note(err)
	for _, name := range temporary {
		switch {
		case busy && filepath.Dir(name) == "wal": // the next segment, which is made ahead
		case len(f.Damage) == 0:
			p.line("left over", "%s, which the log does not name; the next start removes it", name)
		case filepath.Ext(name) == ".state":
			p.spare(f.Dir, name)
		default:
			p.line("left over", "%s", name)
		}
	}
	for _, name := range foreign {
		p.line("not raftkv's", "%s", name)
	}
	if f.OldCopy {
		p.line("OLD COPY", "%v", problem.ErrOldCopy)
	}
	for _, err := range f.Damage {
		name := "DAMAGED"
		if errors.Is(err, durable.ErrNewer) || errors.Is(err, record.ErrUnknownCommand) {
			name = "NEWER"
		}
		p.line(name, "%v", err)
	}
	switch {
	case len(f.Damage) == 0:
		p.line("sound", "nothing is damaged")
	case busy:
		p.line("but", "the directory is in use, which can look like damage: inspect it again, or when its node is stopped")
	}
}

func (p *printer) identity(id *storage.Identity) {
	if id == nil {
		p.line("node", "not known")
		return
	}
	p.line("format", "%d", id.Format)
	p.line("node", "%d", id.Node)
	p.line("cluster", "%x", id.ClusterID)
	p.line("instance", "%x", id.Instance)
	if id.Initial != "" {
		p.line("made with", "--cluster %s", id.Initial)
	} else {
		p.line("made", "by joining a running cluster, or by raftkv recover")
	}
}

func (p *printer) log(f *storage.Findings) {
	if m := f.Mark; m != nil {
		p.line("mark", "start %d; synced are entry %d, term %d, vote %s", m.Boot, m.Index, m.Term, nodeOrNone(m.Vote))
	}
	if f.NoLog {
		return
	}
	c := &f.Log
	if n := len(c.Entries); n > 0 {
		p.line("log", "entries %d to %d, the last of term %d", c.Entries[0].GetIndex(), c.Last(), c.Entries[n-1].GetTerm())
	} else {
		p.line("log", "no entries behind entry %d", c.Last())
	}
	p.line("term", "%d, vote %s", c.Hard.GetTerm(), nodeOrNone(c.Hard.GetVote()))
	p.line("committed", "entry %d, as far as this log knows", c.Hard.GetCommit())
	segments, _, err := walfile.Segments(filepath.Join(f.Dir, "wal"))
	f.Note(err)
	for _, s := range segments {
		info, err := os.Stat(s.Path)
		if f.Note(err); err == nil {
			p.line("segment", "wal/%s, %d bytes, from entry %d, written %s", info.Name(), info.Size(), s.First, stamp(info.ModTime()))
		}
	}
	switch {
	case f.Tail.File == "" || f.Tail.Damaged:
	case f.Tail.NonZero:
		p.line("tail", "torn at offset %d, as a crash leaves it; nothing that was synced is lost, and the next start wipes it out", f.Tail.End)
	default:
		p.line("tail", "clean, at offset %d", f.Tail.End)
	}
}

// snapshot prints the snapshot that counts, and the state with the log on it.
func (p *printer) snapshot(f *storage.Findings) {
	if f.Snapshot.Index == 0 {
		p.line("snapshot", "none: nothing has come from the cluster yet")
		return
	}
	if info, err := os.Stat(f.File); err == nil {
		p.line("snapshot", "snap/%s, %d bytes, written %s", info.Name(), info.Size(), stamp(info.ModTime()))
	}
	p.state(f.Snapshot, f.Digest)
	now, err := f.Replay(f.Log.Hard.GetCommit())
	if err != nil {
		f.Note(err)
		p.members(f.Snapshot)
		return
	}
	digest, err := DigestOf(now)
	f.Note(err)
	p.line("state", "with the log up to the last entry known to be committed")
	p.state(now, digest)
	p.members(now)
}

// spare prints a state file that does not count, in a damaged directory: it may
// be all that is left to restore from.
func (p *printer) spare(dir, name string) {
	st, digest, err := state.ReadBackup(nil, filepath.Join(dir, name))
	if err != nil {
		p.line("state file", "%s: %v", name, err)
		return
	}
	p.line("state file", "%s, whole, which what is left of the log does not name; raftkv restore can use it", name)
	p.state(st, digest)
}

func (p *printer) state(st *state.State, digest [sha256.Size]byte) {
	p.line("  index", "%d", st.Index)
	p.line("  term", "%d", st.Term)
	p.line("  revision", "%d", st.Revision)
	p.line("  keys", "%d", st.Keys())
	p.line("  bytes", "%d", st.Bytes)
	if l := &st.Leases; l.Last > 0 {
		p.line("  leases", "%d, beside %d keys with a time to live of their own; the last ID is %d", l.Listed(), l.Len()-l.Listed(), l.Last)
		p.line("  clock", "%v", time.Duration(l.Clock)*time.Millisecond)
	}
	if n := st.Once.Len(); n > 0 {
		p.line("  requests", "the outcomes of %d under an Idempotency-Key", n)
	}
	p.line("  sha256", "%x", digest)
}

func (p *printer) members(st *state.State) {
	for _, m := range st.Membership.Sorted() {
		role := "voter"
		if m.Learner {
			role = "learner"
		}
		text := fmt.Sprintf("%s at %s", role, m.PeerURL)
		if m.Instance != 0 {
			text += fmt.Sprintf(", clients at %s, instance %x", m.ClientURL, m.Instance)
		} else {
			text += ", has not taken part yet"
		}
		p.line(fmt.Sprintf("member %d", m.ID), "%s", text)
	}
	p.line("removed", "%s", orNone(idList(membership.SortedKeys(st.Membership.Removed))))
	p.line("changes", "%d of the membership", st.Membership.Changes)
	p.line("level", "%d: the commands that every member knows", st.Level)
	if c := st.Checks; c.Index > 0 {
		p.line("checked", "entry %d, where a majority of the replicas agreed; the last checkpoint is entry %d", c.Checked, c.Index)
		p.line("diverged", "%s", orNone(idList(membership.SortedKeys(c.Diverged))))
	}
}

func nodeOrNone(id uint64) string {
	if id == 0 {
		return "none"
	}
	return fmt.Sprintf("for node %d", id)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func idList(ids []uint64) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ", "), "[]")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// lastWritten is when the log was last written to, as the file system says.
func lastWritten(dir string) (time.Time, error) {
	segments, _, err := walfile.Segments(filepath.Join(dir, "wal"))
	var last time.Time
	for _, s := range segments {
		info, serr := os.Stat(s.Path)
		if err = errors.Join(err, serr); serr == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last, err
}

// DigestOf returns the checksum at the end of the file that state.Write makes.
func DigestOf(s *state.State) ([sha256.Size]byte, error) {
	var end lastBytes
	err := state.Write(&end, s)
	return [sha256.Size]byte(end), err
}

// lastBytes keeps the end of what is written to it.
type lastBytes [sha256.Size]byte

func (l *lastBytes) Write(b []byte) (int, error) {
	both := append(l[:], b[max(0, len(b)-len(l)):]...)
	copy(l[:], both[len(both)-len(l):])
	return len(b), nil
}
