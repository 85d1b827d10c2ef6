package walfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// followed is a log that a test writes record by record.
type followed struct {
	t   *testing.T
	w   *wal.WAL
	dir string
}

func newFollowed(t *testing.T) *followed {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "wal")
	w, err := wal.Create(nil, dir, []byte("metadata"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return &followed{t, w, dir}
}

func (l *followed) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// save saves the entries of a term from one index to another, and a commit index if
// that is not 0.
func (l *followed) save(term, from, to, commit uint64) *followed {
	l.t.Helper()
	var entries []*raftpb.Entry
	for i := from; i <= to; i++ {
		entries = append(entries, &raftpb.Entry{Term: new(term), Index: new(i), Data: fmt.Append(nil, term)})
	}
	hard := &raftpb.HardState{}
	if commit > 0 {
		hard = &raftpb.HardState{Term: new(term), Vote: new(uint64(1)), Commit: new(commit)}
	}
	l.check(l.w.Save(hard, entries))
	return l
}

func (l *followed) snapshot(term, index uint64) *followed {
	l.t.Helper()
	l.check(l.w.SaveSnapshot(&walpb.Snapshot{Term: new(term), Index: new(index), ConfState: &raftpb.ConfState{}}))
	return l
}

// Guarantee: what is followed is what is read in two goes, or it is said that the log
// cannot be followed; and what may yet be overwritten is not taken for committed.
func TestFollowIsSurveyAndEach(t *testing.T) {
	for name, c := range map[string]struct {
		write func(l *followed)
		from  uint64
		// want are the entries, as term/index, behind ! those that are not known to be
		// committed; empty: it cannot be followed.
		want string
	}{
		"nothing":                   {func(*followed) {}, 0, "!"},
		"all committed":             {func(l *followed) { l.save(1, 1, 3, 2).save(1, 4, 3, 3) }, 0, "1/1 1/2 1/3 !"},
		"an end that is not":        {func(l *followed) { l.save(1, 1, 3, 2) }, 0, "1/1 1/2 !1/3"},
		"nothing known":             {func(l *followed) { l.save(1, 1, 2, 0) }, 0, "!1/1 1/2"},
		"an end that was":           {func(l *followed) { l.save(1, 1, 5, 2).save(2, 4, 4, 2).save(2, 5, 4, 4) }, 0, "1/1 1/2 1/3 2/4 !"},
		"overwritten twice":         {func(l *followed) { l.save(1, 1, 5, 1).save(2, 2, 4, 1).save(3, 3, 3, 1) }, 0, "1/1 !2/2 3/3"},
		"in the same save":          {func(l *followed) { l.save(1, 1, 5, 0).save(2, 3, 3, 3) }, 0, "1/1 1/2 2/3 !"},
		"own snapshot":              {func(l *followed) { l.save(1, 1, 5, 4).snapshot(1, 3).save(1, 6, 6, 6) }, 3, "1/4 1/5 1/6 !"},
		"own snapshot at the end":   {func(l *followed) { l.save(1, 1, 5, 5).snapshot(1, 5) }, 5, "!"},
		"received snapshot":         {func(l *followed) { l.save(1, 1, 5, 2).snapshot(2, 9).save(2, 10, 11, 10) }, 9, "2/10 !2/11"},
		"one in place of a log":     {func(l *followed) { l.save(1, 1, 9, 2).snapshot(2, 5).save(2, 6, 6, 5) }, 5, "!2/6"},
		"and nothing behind it":     {func(l *followed) { l.save(1, 1, 9, 2).snapshot(2, 5) }, 5, "!"},
		"an older one before":       {func(l *followed) { l.save(1, 1, 9, 9).snapshot(1, 3).snapshot(1, 7) }, 7, "1/8 1/9 !"},
		"another one counts":        {func(l *followed) { l.save(1, 1, 5, 5).snapshot(1, 3).snapshot(1, 5) }, 3, ""},
		"a state file too many":     {func(l *followed) { l.save(1, 1, 5, 5).snapshot(1, 3) }, 5, ""},
		"committed and overwritten": {func(l *followed) { l.save(1, 1, 5, 4).save(2, 4, 6, 4) }, 0, ""},
		"committed and taken back":  {func(l *followed) { l.save(1, 1, 5, 4).save(2, 6, 6, 2) }, 0, ""},
		"cut off by its snapshot":   {func(l *followed) { l.save(1, 1, 5, 5).save(2, 2, 2, 5).snapshot(1, 3) }, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newFollowed(t)
			c.write(l)
			l.check(l.w.Close())
			var got []string
			bar := 0
			note := func(_ []byte, e *raftpb.Entry) error {
				got = append(got, fmt.Sprintf("%s/%d", e.GetData(), e.GetIndex()))
				return nil
			}
			contents, err := Follow(l.dir, 2, c.from, func(meta []byte, e *raftpb.Entry) error {
				if string(meta) != "metadata" {
					t.Errorf("at entry %d: metadata %q", e.GetIndex(), meta)
				}
				bar++
				return note(meta, e)
			}, note)
			if c.want == "" {
				if err == nil {
					t.Errorf("followed: %v", got)
				}
				return
			}
			l.check(err)
			text := ""
			for i, e := range slices.Concat(got[:bar], []string{"!"}, got[bar:]) {
				if i > 0 && text[len(text)-1] != '!' {
					text += " "
				}
				text += e
			}
			if text != c.want {
				t.Errorf("followed %q, want %q", text, c.want)
			}
			survey, err := Survey(l.dir, 2)
			l.check(err)
			var each []string
			l.check(survey.Each(l.dir, func(e *raftpb.Entry) error {
				each = append(each, fmt.Sprintf("%s/%d", e.GetData(), e.GetIndex()))
				return nil
			}))
			if !slices.Equal(got, each) || contents.Proven != survey.Proven || contents.Last() != survey.Last() ||
				contents.Hard.GetCommit() != survey.Hard.GetCommit() || contents.Hard.GetTerm() != survey.Hard.GetTerm() {
				t.Errorf("followed %v %+v, read %v %+v", got, contents, each, survey)
			}
		})
	}
}

// Without this a start holds all of the log in memory before it applies any.
func TestFollowDoesNotWaitForTheEnd(t *testing.T) {
	l := newFollowed(t)
	const saves, each = 50, 10
	for i := range uint64(saves) {
		l.save(1, i*each+1, (i+1)*each, max(i*each, 1))
	}
	l.check(l.w.Close())
	stop := errors.New("stop")
	most, taken := 0, 0
	c := newWALContents()
	c.follow = &follower{}
	c.follow.take = func(*raftpb.Entry) error {
		most = max(most, len(c.follow.waiting))
		if taken++; taken == (saves-2)*each {
			return stop
		}
		return nil
	}
	if err := c.read(l.dir, 0); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	if most > 2*each {
		t.Errorf("%d entries were waiting", most)
	}
}
