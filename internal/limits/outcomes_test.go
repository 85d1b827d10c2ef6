package limits

import (
	"errors"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"testing"
)

// Guarantee: requests on their way hold what their outcomes will take, until they are
// released; a repeat holds nothing, and there is room up to the bound and not past it.
func TestOutcomes(t *testing.T) {
	s := state.New(nil)
	const cost = once.Cost + 1 + 10
	o := NewOutcomes(2*cost*outcomesShare, func(look func(*state.State)) { look(s) })
	reserve := func(name string, want error) func() {
		t.Helper()
		release, err := o.Reserve(once.Key{Name: name}, 10, false)
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", name, err, want)
		}
		return release
	}
	a := reserve("a", nil)
	b := reserve("b", nil) // up to the last byte
	reserve("c", problem.ErrOverloaded)
	a()
	reserve("c", nil)()
	reserve("c", nil)
	reserve("d", problem.ErrOverloaded)
	b()
	s.Once.Add(once.Key{Name: "b"}, once.Print{}, once.Minute, "12345678") // and two lengths
	reserve("d", problem.ErrOverloaded)
	reserve("b", nil)() // a repeat
	if !o.Known(once.Key{Name: "b"}) || o.Known(once.Key{Name: "c"}) || o.Known(once.Key{Owner: "web", Name: "b"}) {
		t.Error("it knows other requests than those that happened")
	}
	if o := NewOutcomes(1<<40, nil); o.limit != maxOutcomes {
		t.Errorf("with much memory %d bytes are let in", o.limit)
	}
}

// Guarantee: where there are owners, none takes more than half of the room, with what is on
// its way; up to the last byte of the half, and not past it. Others still have theirs.
func TestOutcomesOfOneOwner(t *testing.T) {
	if ownerShare != 2 {
		t.Fatal("it is not half")
	}
	s := state.New(nil)
	const cost = once.Cost + 3 + 1 + 10 // owner, name, outcome
	o := NewOutcomes((4*cost+2)*outcomesShare, func(look func(*state.State)) { look(s) })
	reserve := func(owner, name string, size int, want error) func() {
		t.Helper()
		release, err := o.Reserve(once.Key{Owner: owner, Name: name}, size, true)
		if !errors.Is(err, want) {
			t.Fatalf("%s of %q: %v, want %v", name, owner, err, want)
		}
		return release
	}
	a := reserve("web", "a", 10, nil)
	reserve("web", "b", 12, problem.ErrOverloaded) // one byte more
	b := reserve("web", "b", 11, nil)              // the last byte
	reserve("web", "c", 0, problem.ErrOverloaded)
	reserve("job", "a", 10, nil)()
	b()
	if len(o.each) != 1 {
		t.Errorf("%d owners are known, and one has requests on their way", len(o.each))
	}
	s.Once.Add(once.Key{Owner: "web", Name: "b"}, once.Print{}, once.Minute, "12345678") // and two lengths
	reserve("web", "c", 10, problem.ErrOverloaded)                                       // what happened counts, too
	reserve("web", "b", 10, nil)()                                                       // a repeat takes nothing
	a()
	reserve("web", "c", 10, nil)()
	if len(o.each) != 0 || o.held.Load() != 0 {
		t.Errorf("%v, %d bytes are held of nobody's requests", o.each, o.held.Load())
	}
	if _, err := o.Reserve(once.Key{Name: "large"}, 3*cost-once.Cost-5, false); err != nil {
		t.Errorf("without rights there is all the room: %v", err)
	}
}
