// Package statetest makes states for tests, and compares them. It knows of
// package state what everybody may know, and the records of state files, which
// are for ever: so it can make any state that there can be, and some that cannot.
package statetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"raftkv/internal/address"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/membership"
	"raftkv/internal/once"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Kinds of records, as in state files.
const (
	headRecord    = 1
	itemRecord    = 2
	memberRecord  = 3
	removedRecord = 4
	windowRecord  = 5
	sumRecord     = 9
)

// Bytes returns the state file of s. Equal states have equal ones.
func Bytes(t testing.TB, s *state.State) []byte {
	t.Helper()
	var b bytes.Buffer
	testkit.Must(t, state.Write(&b, s))
	return b.Bytes()
}

// Record is one record of a state file.
type Record struct {
	Kind    byte
	Payload []byte
}

// FromRecords returns the state of a file with these records. It has no sum of
// its items, which is made when it is read.
func FromRecords(t testing.TB, records ...Record) *state.State {
	t.Helper()
	var b bytes.Buffer
	w := statefile.NewWriter(&b)
	for _, r := range records {
		testkit.Must(t, w.Record(r.Kind, r.Payload))
	}
	testkit.Must(t, w.Finish())
	s, err := state.Read(&b)
	testkit.Must(t, err)
	return s
}

// Records returns what the state file of s consists of, but for the sum.
func Records(t testing.TB, s *state.State) (records []Record) {
	t.Helper()
	r, err := statefile.NewReader(bytes.NewReader(Bytes(t, s)))
	testkit.Must(t, err)
	for {
		kind, payload, err := r.Next()
		if errors.Is(err, io.EOF) {
			return records
		}
		testkit.Must(t, err)
		if kind != sumRecord {
			records = append(records, Record{kind, bytes.Clone(payload)})
		}
	}
}

// Item is the record of a key. Its revisions and versions are those given.
func Item(key, value string, create, mod, version uint64) Record {
	b := record.AppendString(record.AppendUvarints(nil, create, mod, version), key)
	return Record{itemRecord, append(b, value...)}
}

// Head is the record of where a state stands.
func Head(index, term, revision, changes uint64) Record {
	return Record{headRecord, record.AppendUvarints(nil, index, term, revision, changes)}
}

// Member is the record of a member as it is before it has told of itself.
func Member(id uint64, peerURL string) Record {
	b := record.AppendUvarints(nil, id, 0, 0)
	return Record{memberRecord, record.AppendString(record.AppendString(b, peerURL), "")}
}

// At returns a state at an index, with one key that tells it from others.
func At(t testing.TB, peers []address.Peer, term, index uint64) *state.State {
	t.Helper()
	records := []Record{Head(index, term, index, 0)}
	for _, p := range peers {
		records = append(records, Member(p.ID, p.URL))
	}
	return FromRecords(t, append(records, Item("key", fmt.Sprintf("as of %d", index), 1, index, index))...)
}

// Altered returns s as if a key had another value, or were there at all. Index,
// revision and windows are those of s: no log makes such a state.
func Altered(t testing.TB, s *state.State, key, value string) *state.State {
	t.Helper()
	create, mod, version := s.Revision, s.Revision, uint64(1)
	if it := s.Get(key); it != nil {
		create, mod, version = it.CreateRevision, it.ModRevision, it.Version
	}
	altered := []Record{}
	prefix := record.AppendString(record.AppendUvarints(nil, create, mod, version), key)
	for _, r := range Records(t, s) {
		if r.Kind != itemRecord || !bytes.HasPrefix(r.Payload, prefix) {
			altered = append(altered, r)
		}
	}
	return FromRecords(t, append(altered, Item(key, value, create, mod, version))...)
}

// Full returns a state with something in each of its parts.
func Full(t testing.TB, term, index uint64) *state.State {
	t.Helper()
	records := []Record{
		Head(index, term, 1e9, 4),
		{memberRecord, record.AppendString(record.AppendString(record.AppendUvarints(nil, 1, 0, 0), "http://a:1"), "http://a:9121")},
		Member(math.MaxUint64-2, "http://b:2"),
		{memberRecord, record.AppendString(record.AppendString(record.AppendUvarints(nil, 3, 1, 0), "http://c:3"), "")},
	}
	for n := uint64(1); n < 10; n++ {
		records = append(records, Record{removedRecord, record.AppendUvarints(nil, 100+n)},
			Record{windowRecord, record.AppendUvarints(nil, n, n, 1<<30, math.MaxUint64-n)},
			Item(fmt.Sprint("key/", n), string(bytes.Repeat([]byte{byte(n)}, int(n)*50)), n, 2*n, 3))
	}
	for _, kv := range [][2]string{{"binary", "\xff\xfe\x00\x80"}, {"empty", ""}, {"große", "\"é\"\n"}, {"\xff\x00 key", "\x00"}} {
		records = append(records, Item(kv[0], kv[1], 1, 1, 1))
	}
	return FromRecords(t, append(records, Item("large", string(bytes.Repeat([]byte{200}, 10_000)), 7, 400, 3))...)
}

// Put encodes a put without a condition.
func Put(key, value string) []byte {
	return state.EncodeWrite(state.KindPut, state.Condition{}, key, []byte(value))
}

// Batch encodes a batch of encoded commands.
func Batch(id state.BatchID, commands ...[]byte) []byte {
	b := entry.AppendHeader(nil, id)
	for _, c := range commands {
		b = entry.AppendCommand(b, c)
	}
	return b
}

// Apply applies commands as the next entry of the log, as a batch of node 1.
func Apply(t testing.TB, s *state.State, commands ...[]byte) {
	t.Helper()
	e := &raftpb.Entry{Index: new(s.Index + 1), Term: new(max(1, s.Term)), Type: raftpb.EntryNormal.Enum()}
	e.Data = Batch(state.BatchID{Node: 1, Boot: 1, Seq: s.Index}, commands...)
	_, _, err := s.ApplyEntry(e)
	testkit.Must(t, err)
}

// Filled returns a state of so many keys of 128 bytes each, and their names in
// the order in which they came, which is none.
func Filled(t testing.TB, n int) (s *state.State, keys []string) {
	t.Helper()
	s = state.New(testkit.Peers())
	var commands [][]byte
	for _, i := range rand.New(rand.NewPCG(1, 6)).Perm(n) {
		keys = append(keys, fmt.Sprintf("key-%08d", i))
		commands = append(commands, Put(keys[len(keys)-1], string(bytes.Repeat([]byte{byte(i)}, 128))))
	}
	for len(commands) > 0 {
		batch := commands[:min(len(commands), 1000)]
		Apply(t, s, batch...)
		commands = commands[len(batch):]
	}
	return s, keys
}

// Puts encodes n puts of values of 128 bytes to some of the keys, as a batch has
// them behind its header.
func Puts(keys []string, n int, rnd *rand.Rand) (commands []byte) {
	for range n {
		cmd := state.EncodeWrite(state.KindPut, state.Condition{}, keys[rnd.IntN(len(keys))], bytes.Repeat([]byte("v"), 128))
		commands = entry.AppendCommand(commands, cmd)
	}
	return commands
}

// Describe prints a state: every field of it, except that a long value is told
// by its length and hash. A new field goes into a line that a state without it
// does not have.
func Describe(s *state.State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "index %d term %d revision %d bytes %d changes %d\n", s.Index, s.Term, s.Revision, s.Bytes, s.Membership.Changes)
	for _, m := range s.Membership.Sorted() {
		fmt.Fprintf(&b, "member %d learner %v instance %x peer %s client %q\n", m.ID, m.Learner, m.Instance, m.PeerURL, m.ClientURL)
	}
	for _, m := range s.Membership.Sorted() {
		if m.Level > 0 || m.Pinned || m.Added > 0 {
			fmt.Fprintf(&b, "member %d level %d pinned %v added %x\n", m.ID, m.Level, m.Pinned, m.Added)
		}
	}
	for _, m := range s.Membership.Sorted() {
		if m.Doors != "" {
			fmt.Fprintf(&b, "member %d doors %x\n", m.ID, m.Doors)
		}
	}
	fmt.Fprintf(&b, "removed %d\n", membership.SortedKeys(s.Membership.Removed))
	if s.Level > 0 {
		fmt.Fprintf(&b, "level %d\n", s.Level)
	}
	if k := s.Checks; k.Index > 0 {
		fmt.Fprintf(&b, "check %d full %d voters %d checked %d agreed %x diverged %v no majority %d\n",
			k.Index, k.Full, k.Voters, k.Checked, k.Agreed, k.Diverged, k.NoMajority)
		for _, id := range membership.SortedKeys(k.Reports) {
			fmt.Fprintf(&b, "report %d {hash:%d void:%v}\n", id, k.Reports[id].Hash, k.Reports[id].Void)
		}
	}
	for _, id := range membership.SortedKeys(s.Windows) {
		w := s.Windows[id]
		fmt.Fprintf(&b, "window %d boot %d low %d applied %x\n", id, w.Boot, w.Low, w.Applied)
	}
	describeLeases(&b, s)
	s.Once.Scan(func(k once.Key, r *once.Record, deadline uint64) {
		fmt.Fprintf(&b, "request %q of owner %q class %d print %x deadline %d outcome %x\n", k.Name, k.Owner, r.Class, r.Print, deadline, r.Outcome)
	})
	s.Scan(func(key string, it *state.Item) bool {
		value := fmt.Sprintf("%q", it.Value)
		if len(it.Value) > 64 {
			value = fmt.Sprintf("%d bytes, sha256 %x", len(it.Value), sha256.Sum256(it.Bytes()))
		}
		if len(key) > 64 {
			key = fmt.Sprintf("%d bytes, sha256 %x", len(key), sha256.Sum256([]byte(key)))
		}
		fmt.Fprintf(&b, "key %q create %d mod %d version %d value %s\n", key, it.CreateRevision, it.ModRevision, it.Version, value)
		if it.Lease != 0 {
			fmt.Fprintf(&b, "key %q lease %d\n", key, it.Lease)
		}
		return true
	})
	return b.String()
}

func describeLeases(b *strings.Builder, s *state.State) {
	if s.Leases.Clock != 0 || s.Leases.Last != 0 {
		fmt.Fprintf(b, "clock %d last lease %d\n", s.Leases.Clock, s.Leases.Last)
	}
	s.Leases.Scan(func(id uint64, l *lease.Lease) bool {
		fmt.Fprintf(b, "lease %d ttl %d deadline %d private %v owner %q keys %q\n", id, l.TTL, l.Deadline, l.Private, l.Owner, s.Leases.KeysOf(id, "", lease.MaxKeys))
		return true
	})
}
