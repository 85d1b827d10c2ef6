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
		release, err := o.Reserve(once.Key{Name: name}, 10)
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
