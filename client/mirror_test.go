package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func (m *Mirror) text() string {
	text := ""
	for key, item := range m.All() {
		text += fmt.Sprintf("%s@%d ", key, item.ModRevision)
	}
	return text
}

// Guarantee: a mirror is whole when it is returned, follows the changes, and those who read it
// never see half of a revision or of a state.
func TestMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("m/b", "m/a", "x")
		f.puts("m/c")
		m, err := f.client(2).Mirror(t.Context(), "m/")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if got := m.text(); got != "m/a@1 m/b@1 m/c@2 " || m.Len() != 3 || m.Revision() != 2 {
			t.Fatal(got, m.Len(), m.Revision())
		}
		if m.Age() != 0 {
			t.Fatal(m.Age())
		}
		changed := m.Changed()
		f.write(append(gone("m/a"), f.put("m/d", "d", 0))...)
		<-changed
		if got := m.text(); got != "m/b@1 m/c@2 m/d@3 " {
			t.Fatal(got)
		}
		if _, ok := m.Get("m/a"); ok {
			t.Fatal("m/a is still there")
		}
		if i, ok := m.Get("m/d"); !ok || string(i.Value) != "d" {
			t.Fatal(i)
		}
		// A state that comes in parts while the copy is read.
		f.mu.Lock()
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{refused: true} }
		f.mu.Unlock()
		f.cut(0)
		f.write(gone("m/b", "m/c")...)
		f.puts("m/e", "m/f")
		f.forget()
		time.Sleep(time.Minute)
		if m.Age() < time.Minute {
			t.Fatal(m.Age())
		}
		f.mu.Lock()
		f.fault = nil
		f.mu.Unlock()
		changed = m.Changed()
		if err := m.Wait(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		<-changed
		if got := m.text(); got != "m/d@3 m/e@5 m/f@5 " {
			t.Fatal(got)
		}
		changed = m.Changed()
		m.Close()
		<-changed
		if m.Err() == nil || m.Wait(t.Context(), 5) != nil || m.Wait(t.Context(), 6) == nil || m.Len() != 3 {
			t.Fatal("after Close")
		}
	})
}

// Guarantee: half a state is never shown.
func TestMirrorShowsWholeStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a")
		m, err := f.client(1).Mirror(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for _, line := range []string{
			`{"event":"reset","id":0,"data":{"code":"history_gone"}}`,
			`{"event":"state","data":{"revision":9,"items":[{"key":"b","mod_revision":9}]}}`,
			`{"event":"comment"}`,
			`{"event":"state","data":{"revision":9,"items":[{"key":"c","mod_revision":8}]}}`,
		} {
			f.say(1, line)
			synctest.Wait()
			if got := m.text(); got != "a@1 " || m.Revision() != 1 {
				t.Fatalf("%q at %d after %s", got, m.Revision(), line)
			}
		}
		f.say(1, `{"event":"synced","id":9,"data":{"revision":9}}`)
		if err := m.Wait(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		if got := m.text(); got != "b@9 c@8 " {
			t.Fatal(got)
		}
		f.say(1, `{"event":"position","id":12}`)
		if err := m.Wait(t.Context(), 12); err != nil {
			t.Fatal(err)
		}
	})
}

// Guarantee: the wait for a mirror ends with its context, and a refusal is returned.
func TestMirrorFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{hangs: true} }
		c := f.client(2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Mirror(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.fault = func(int, *http.Request) fakeFault {
			a := fakeProblem(403, Forbidden, false)
			return fakeFault{answer: &a}
		}
		f.mu.Unlock()
		if _, err := c.Mirror(t.Context(), "a"); !errors.Is(err, Forbidden) {
			t.Fatal(err)
		}
	})
}

// Guarantee: All tells one revision, while the copy goes on.
func TestMirrorAllIsOneRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("a", "b", "c")
		m, err := f.client(1).Mirror(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var got []string
		for key, item := range m.All() {
			if len(got) == 0 {
				if err := m.Wait(t.Context(), f.puts("b", "d")); err != nil {
					t.Fatal(err)
				}
			}
			got = append(got, fmt.Sprintf("%s@%d", key, item.ModRevision))
		}
		if !slices.Equal(got, []string{"a@1", "b@1", "c@1"}) {
			t.Fatal(got)
		}
	})
}
