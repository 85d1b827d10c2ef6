package watermark

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"raftkv/internal/testkit"
	"testing"
	"testing/synctest"
	"time"
)

// newKeeper is a mark keeper whose run is under way.
func newKeeper(t *testing.T, first Mark) (k *Keeper, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "mark")
	testkit.Must(t, Create(path, Mark{}))
	k, _, err := Open(path)
	testkit.Must(t, err)
	testkit.Must(t, k.Start(first))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.Close()
	})
	return k, path
}

// Without this the mark vouches for less than the log of the last tenth of a
// second, or for more than is synced, which would refuse a sound log.
func TestMarkKeeperFollows(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		k, path := newKeeper(t, Mark{Boot: 1, Index: 10, Term: 2, Vote: 1})
		rnd := rand.New(rand.NewPCG(1, 2))
		type step struct {
			at   time.Time
			mark Mark
		}
		history := []step{{time.Now(), Mark{Boot: 1, Index: 10, Term: 2, Vote: 1}}}
		for range 300 {
			m := history[len(history)-1].mark
			m.Index += 1 + rnd.Uint64N(3)
			m.Term += rnd.Uint64N(2)
			m.Vote = 1 + rnd.Uint64N(3)
			history = append(history, step{time.Now(), m})
			k.Raise(m.Index, m.Term, m.Vote)
			time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond * time.Duration(1+rnd.IntN(6)))
			synctest.Wait()
			got := markIn(t, filepath.Dir(path))
			// What was raised an interval ago is covered; nothing is that was not raised.
			for i := len(history) - 1; ; i-- {
				if i < 0 {
					t.Fatalf("the mark is %+v, which was never said", got)
				}
				if got == history[i].mark {
					break
				}
				if age := time.Since(history[i].at); age > markInterval {
					t.Fatalf("the mark is %+v, but %+v was said %v ago", got, history[i].mark, age)
				}
			}
		}
	})
}

// Without this each append would cost another fsync.
func TestMarkKeeperWritesOnceAnInterval(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		k, _ := newKeeper(t, Mark{Boot: 1})
		k.Mu.Lock()
		was := k.File.seq
		k.Mu.Unlock()
		const intervals = 20
		for i := range uint64(intervals * 50) {
			k.Raise(i+1, 1, 1)
			time.Sleep(markInterval / 50)
		}
		k.Mu.Lock()
		defer k.Mu.Unlock()
		if n := k.File.seq - was; n < intervals-1 || n > intervals+1 {
			t.Errorf("%d writes in %d intervals", n, intervals)
		}
	})
}

// Without this the mark covers entries while they are overwritten: a crash then
// leaves a log that is shorter than the mark says, and the start is refused.
func TestMarkKeeperLowersAtOnce(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		k, path := newKeeper(t, Mark{Boot: 1, Index: 10, Term: 2})
		dir := filepath.Dir(path)
		k.Raise(20, 3, 1)
		testkit.Must(t, k.Lower(5))
		if m := markIn(t, dir); m.Index != 5 || m.Boot != 1 || m.Term > 3 {
			t.Fatalf("the mark is %+v", m)
		}
		// It stays low until the log is said to be longer.
		time.Sleep(5 * markInterval)
		synctest.Wait()
		if m := markIn(t, dir); m.Index != 5 {
			t.Fatalf("the mark is %+v", m)
		}
		k.Raise(7, 4, 2)
		time.Sleep(markInterval)
		synctest.Wait()
		if m := markIn(t, dir); m != (Mark{Boot: 1, Index: 7, Term: 4, Vote: 2}) {
			t.Fatalf("the mark is %+v", m)
		}
		// What it does not cover needs no write, but must not be raised to.
		k.Raise(30, 4, 2)
		testkit.Must(t, k.Lower(8))
		time.Sleep(2 * markInterval)
		synctest.Wait()
		if m := markIn(t, dir); m.Index > 8 {
			t.Fatalf("the mark is %+v", m)
		}
	})
}

// Without this a graceful stop leaves an older mark than it could, and a
// failure to write it goes unnoticed.
func TestMarkKeeperCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mark")
	testkit.Must(t, Create(path, Mark{Boot: 3}))
	k, m, err := Open(path)
	testkit.Must(t, err)
	if m.Boot != 3 {
		t.Fatalf("the mark is %+v", m)
	}
	k.Raise(9, 2, 1)
	testkit.Must(t, k.Close())
	if m := markIn(t, filepath.Dir(path)); m != (Mark{Boot: 3, Index: 9, Term: 2, Vote: 1}) {
		t.Fatalf("the mark is %+v", m)
	}

	k, _, err = Open(path)
	testkit.Must(t, err)
	testkit.Must(t, k.File.f.Close())
	if k.Lower(3) == nil {
		t.Error("lowered a file that is closed")
	}
	k.Raise(12, 2, 1)
	if k.Close() == nil {
		t.Error("closed without an error")
	}
	k, _, err = Open(path)
	testkit.Must(t, err)
	testkit.Must(t, k.File.f.Close())
	k.Raise(12, 2, 1)
	if k.Run(t.Context()) == nil {
		t.Error("run has no error")
	}
}

// markIn is the mark in a directory, as it is on disk.
func markIn(t *testing.T, dir string) Mark {
	t.Helper()
	m, err := readMarkFile(filepath.Join(dir, "mark"))
	testkit.Must(t, err)
	return m
}
