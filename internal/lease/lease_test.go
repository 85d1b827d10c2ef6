package lease

import (
	"fmt"
	"testing"
)

// Guarantee: a copy goes on as its original would: what runs out in one does in the other.
// A directory is examined on a copy of its snapshot's state.
func TestCopyTicks(t *testing.T) {
	var table Table
	for range 3 {
		if _, err := table.Grant(1000, ""); err != nil {
			t.Fatal(err)
		}
	}
	table.GrantFor("timed", 500, "")
	table.Tick(10)
	if _, err := table.Keep(2, ""); err != nil {
		t.Fatal(err)
	}
	c := table.Copy()
	for clock := uint64(20); clock < 2100; clock += 500 {
		if a, b := fmt.Sprint(table.Tick(clock)), fmt.Sprint(c.Tick(clock)); a != b || table.Len() != c.Len() || table.sum != c.sum {
			t.Fatalf("at %d: %s is gone, in the copy %s; %d leases are left, %d in the copy", clock, a, b, table.Len(), c.Len())
		}
	}
	if table.Len() != 0 {
		t.Errorf("%d leases are left", table.Len())
	}
}
