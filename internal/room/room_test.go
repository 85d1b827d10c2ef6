package room

import (
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"testing"
	"time"
)

// Without this a level is off by one byte, or --min-free 0 refuses something.
func TestRoomJudge(t *testing.T) {
	const r = 128 << 20
	for _, tt := range []struct {
		reserve, free, left int64
		want                Shortage
	}{
		{r, r, 2 * r, Plenty},
		{r, r - 1, 2 * r, ShortForGrowth},
		{r, r - 1, 1 << 40, ShortForGrowth}, // what is reserved for the log is no room for growth
		{r, 1 << 40, r/2 - 1, ShortForPuts}, // nor the other way round
		{r, 0, r / 2, ShortForGrowth},
		{r, 0, r/2 - 1, ShortForPuts},
		{r, 0, r / 4, ShortForPuts},
		{r, 0, r/4 - 1, ShortForDeletes},
		{r, 0, r / 8, ShortForDeletes},
		{r, 0, r/8 - 1, ShortForEntries},
		{r, 0, 0, ShortForEntries},
		{0, 0, 0, Plenty},
	} {
		if got := judge(tt.reserve, tt.free, tt.left); got != tt.want {
			t.Errorf("of %d, %d free, %d left for the log: %v, want %v", tt.reserve, tt.free, tt.left, got, tt.want)
		}
	}
	for total, want := range map[int64]int64{400 << 20: r, 3 * r: r, 3*r - 3: r - 1, 100 << 20: 100 << 20 / 3, 0: 0} {
		if got := reserveOf(r, total); got != want {
			t.Errorf("on a disk of %d: %d, want %d", total, got, want)
		}
	}
}

// Without this a write is refused although the cluster could lose another disk,
// or let in although it could not.
func TestRoomDecide(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		voters int
		short  map[uint64]Shortage // node 1 leads
		want   Shortage
	}{
		{1, nil, Plenty},
		{1, map[uint64]Shortage{1: ShortForGrowth}, ShortForGrowth},
		{2, nil, Plenty},
		{2, map[uint64]Shortage{2: ShortForGrowth}, ShortForGrowth},
		{3, nil, Plenty},
		{3, map[uint64]Shortage{3: ShortForGrowth}, ShortForGrowth},
		{3, map[uint64]Shortage{3: ShortForEntries}, ShortForDeletes},
		{3, map[uint64]Shortage{9: ShortForGrowth}, Plenty}, // no voter
		{4, map[uint64]Shortage{4: ShortForGrowth}, ShortForGrowth},
		{5, map[uint64]Shortage{5: ShortForDeletes}, Plenty},
		{5, map[uint64]Shortage{4: ShortForGrowth, 5: ShortForDeletes}, ShortForGrowth},
		{5, map[uint64]Shortage{4: ShortForPuts, 5: ShortForDeletes}, ShortForPuts},
		{5, map[uint64]Shortage{1: ShortForGrowth}, ShortForGrowth},
		{7, map[uint64]Shortage{6: ShortForGrowth, 7: ShortForGrowth}, Plenty},
		{7, map[uint64]Shortage{5: ShortForGrowth, 6: ShortForGrowth, 7: ShortForGrowth}, ShortForGrowth},
	} {
		r := &Keeper{id: 1, heard: make(map[uint64]heardNote)}
		var voters []uint64
		for id := range uint64(tt.voters) {
			voters = append(voters, id+1)
		}
		r.short.Store(int64(tt.short[1]))
		for id, s := range tt.short {
			if id != 1 {
				r.heard[id] = heardNote{Note{From: id, Short: s}, now.Add(-Trusted + 1)}
			}
		}
		got, full := r.decide(voters, now)
		if got != tt.want || (got > Plenty) != (len(full) > 0) {
			t.Errorf("%d voters, %v: %v because of %v, want %v", tt.voters, tt.short, got, full, tt.want)
		}
		if got, _ := r.decide(voters, now.Add(1)); got != min(tt.want, tt.short[1]) {
			t.Errorf("%d voters, %v: %v by what is too old, or not by this node's own disk", tt.voters, tt.short, got)
		}
	}
}

// forgetfulStore is a store that counts who asks for snapshots.
type forgetfulStore struct {
	held  uint64
	asked int
}

func (s *forgetfulStore) Membership() (membership.Membership, uint64) {
	return membership.Membership{}, 0
}

func (s *forgetfulStore) Used(string) state.Holding { return state.Holding{Bytes: s.held} }

func (s *forgetfulStore) AskForSnapshot(uint64) { s.asked++ }

// A node that is short of room asks for a snapshot again and again, soon if that would
// free more than it takes. Without this a store that was emptied is refused writes for
// a minute, because of a log that nobody needs.
func TestRoomCompacts(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		store := &forgetfulStore{held: 50 << 20}
		r := &Keeper{store: store, storage: &storage.Storage{}, applied: wait.NewIndex(7)}
		looks := func(d time.Duration) (asked int) {
			before := store.asked
			for range d / roomOften {
				r.compact()
				time.Sleep(roomOften)
			}
			return store.asked - before
		}
		if n := looks(2 * time.Minute); n != 0 {
			t.Errorf("asked %d times although there is no log to free", n)
		}
		r.storage.Tail.Grown.Store(30 << 20)
		if n := looks(3 * time.Minute); n != 3 {
			t.Errorf("asked %d times in three minutes for a snapshot that is larger than the log", n)
		}
		store.held = 3 << 10
		if n := looks(time.Minute); n < 10 || n > 12 {
			t.Errorf("asked %d times in a minute for a small one", n)
		}
	})
}
