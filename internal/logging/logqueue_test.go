package logging

import (
	"bytes"
	"errors"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logReader is whoever reads a log: it takes lines while it may.
type logReader struct {
	gate chan struct{} // a token lets one line through; closed: all

	mu   sync.Mutex
	text bytes.Buffer
	err  error
}

func (r *logReader) Write(p []byte) (int, error) {
	<-r.gate
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	return r.text.Write(p)
}

func (r *logReader) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Split(strings.TrimSuffix(r.text.String(), "\n"), "\n")
}

func (r *logReader) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// Guarantee: whoever writes to the log never waits for its reader. What waits is
// bounded, the rest is counted, and the log says so itself when it is read again.
// Without this a node stops with the reader of its log.
func TestLogQueueNeverWaits(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		r := &logReader{gate: make(chan struct{})}
		q := NewQueue(r)
		log := New(0, "json", "error", q)
		q.ReportLost(log)
		write := func(n int) {
			line := append(bytes.Repeat([]byte("x"), n-1-lineOverhead), '\n')
			if wrote, err := q.Write(line); err != nil || wrote != n-lineOverhead {
				t.Fatalf("%d, %v", wrote, err)
			}
		}
		const size = maxQueue / 1024
		for range 1023 {
			write(size)
		}
		synctest.Wait() // the first is being written, and counts
		write(size)     // just what there is room for
		if n := q.Dropped(); n != 0 {
			t.Fatalf("%d lines were dropped within the bound", n)
		}
		for range 7 {
			write(size)
		}
		write(lineOverhead + 1) // not even the shortest
		if n := q.Dropped(); n != 8 {
			t.Fatalf("%d lines were dropped past the bound, not 8", n)
		}
		for range 511 {
			r.gate <- struct{}{}
		}
		synctest.Wait()
		if got := r.lines(); len(got) != 511 {
			t.Fatalf("%d lines came through", len(got))
		}
		close(r.gate)
		synctest.Wait()
		got := r.lines()
		want := `"msg":"lines of this log were lost: they were not read in time, or could not be written","node":0,"lines":8,"total":8}`
		if len(got) != 1025 || !strings.HasSuffix(got[1024], want) {
			t.Errorf("%d lines, the last is %s", len(got), got[len(got)-1])
		}
		write(size)
		testkit.Must(t, q.Close())
		if got := r.lines(); len(got) != 1026 {
			t.Errorf("%d lines at the end", len(got))
		}
		write(size)
		if n := q.Dropped(); n != 9 {
			t.Errorf("%d lines were dropped", n)
		}
	})
}

// Lines that cannot be written, as to a reader that has gone or a full disk, are
// lost and counted, which is said once it can be.
func TestLogQueueOutlivesItsReader(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		r := &logReader{gate: make(chan struct{})}
		close(r.gate)
		q := NewQueue(r)
		log := New(0, "console", "info", q)
		q.ReportLost(log)
		log.Info("one")
		synctest.Wait()
		r.fail(errors.New("broken pipe"))
		log.Info("two")
		log.Info("three")
		synctest.Wait()
		if n := q.Dropped(); n != 2 {
			t.Errorf("%d lines were lost, not 2", n)
		}
		r.fail(nil)
		log.Info("four")
		synctest.Wait()
		testkit.Must(t, q.Close())
		got := r.lines()
		if len(got) != 3 || !strings.HasSuffix(got[1], "four") || !strings.HasSuffix(got[2], `{"lines": 2, "total": 2}`) {
			t.Errorf("%q", got)
		}
	})
}

// Guarantee: an ending process waits for its last line, for which there is always
// room, but not for ever.
func TestLogQueueClose(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		r := &logReader{gate: make(chan struct{})}
		q := NewQueue(r)
		for range maxQueue / (lineOverhead + 2) {
			_, _ = q.Write([]byte("x\n"))
		}
		_, _ = q.Write([]byte("there is no room\n"))
		q.Last([]byte("the end\n"))
		if n := q.Dropped(); n != 1 {
			t.Errorf("%d lines were dropped", n)
		}
		began := time.Now()
		testkit.Must(t, q.Close())
		if took := time.Since(began); took != logFlushLimit {
			t.Errorf("with a reader that takes nothing it took %v", took)
		}
		close(r.gate)
		testkit.Must(t, q.Close())
		if got := r.lines(); got[len(got)-1] != "the end" {
			t.Errorf("the last line is %q", got[len(got)-1])
		}
	})
}
