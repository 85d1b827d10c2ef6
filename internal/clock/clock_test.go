package clock

import (
	"math/rand/v2"
	"raftkv/internal/lease"
	"slices"
	"testing"
	"time"
)

// Guarantee: no lease runs out before its time has passed since the request was sent, over
// leaders that change, stop, and lose ticks; and none outlives it by more than two seconds
// while one leader commits.
func TestNeverEarly(t *testing.T) {
	ended := 0
	for seed := range uint64(400) {
		m := &model{T: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1000, 0), calm: seed%4 == 0}
		m.run()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		ended += m.ended
	}
	if ended < 400 {
		t.Fatalf("%d leases ended: the test tests nothing", ended)
	}
}

// wish is a request for a lease.
type wish struct {
	keep uint64 // the lease to keep alive; 0: a new one
	ttl  time.Duration
}

// model is a cluster as far as leases are concerned: a log, and one leader at a time.
type model struct {
	*testing.T
	rng    *rand.Rand
	now    time.Time
	table  lease.Table
	pacer  *Pacer
	sent   map[uint64]time.Time
	length map[uint64]time.Duration
	calm   bool // nothing stops, and no leader changes
	ended  int
}

func (m *model) upTo(d time.Duration) time.Duration { return time.Duration(m.rng.Int64N(int64(d))) }

func (m *model) pass(d time.Duration) { m.now = m.now.Add(d) }

func (m *model) run() {
	m.sent, m.length = make(map[uint64]time.Time), make(map[uint64]time.Duration)
	m.lead()
	for range 300 {
		switch r := m.rng.IntN(100); {
		case r < 40:
			m.pass(m.upTo(200 * time.Millisecond))
		case r < 65:
			m.apply(wish{ttl: 100*time.Millisecond + time.Duration(m.rng.IntN(20_000))*time.Millisecond})
		case r < 80:
			if ids := m.ids(); len(ids) > 0 {
				m.apply(wish{keep: ids[m.rng.IntN(len(ids))]})
			}
		case m.calm:
		case r < 84: // the leader is stopped, or its disk hangs
			m.pass(time.Duration(m.rng.IntN(30_000)) * time.Millisecond)
		case r < 88:
			m.lead()
		}
		m.tick()
	}
}

// lead has another leader begin, after a time without any.
func (m *model) lead() {
	m.pass(m.upTo(5000 * time.Millisecond))
	m.pacer = NewPacer(m.table.Clock, m.now)
}

// apply appends a request, which was sent before, and applies it.
func (m *model) apply(e wish) {
	sent := m.now
	m.pass(m.upTo(200 * time.Millisecond)) // on its way
	id := e.keep
	if id == 0 {
		var err error
		if id, err = m.table.Grant(uint64(e.ttl/time.Millisecond), ""); err != nil {
			m.Fatal(err)
		}
		if err := m.table.Bind(id, "key", ""); err != nil {
			m.Fatal(err)
		}
	} else if _, err := m.table.Keep(id, ""); err != nil {
		m.Fatal(err)
	}
	if m.sent[id] = sent; e.keep == 0 {
		m.length[id] = e.ttl
	}
}

// tick has the leader tick, if it is time.
func (m *model) tick() {
	for {
		left, ok := m.pacer.Due(m.table.Agenda(), m.now)
		if !ok || left > 0 {
			return
		}
		v, at := m.pacer.Tick(m.table.Clock, m.now), m.now
		m.pass(m.upTo(50 * time.Millisecond)) // until it is applied
		if !m.calm && m.rng.IntN(20) == 0 {
			return // it was lost
		}
		before := m.ids()
		m.table.Tick(v)
		after := m.ids()
		for _, id := range before {
			if _, left := slices.BinarySearch(after, id); left {
				continue
			}
			if early := m.sent[id].Add(m.length[id]).Sub(at); early > 0 {
				m.Errorf("a lease of %v ended %v early", m.length[id], early)
			}
			if late := m.now.Sub(m.sent[id].Add(m.length[id])); m.calm && late > 2*time.Second {
				m.Errorf("a lease of %v ended %v late", m.length[id], late)
			}
			m.ended++
		}
	}
}

func (m *model) ids() []uint64 {
	ids, _ := m.table.List(0, lease.MaxLeases, func(string) bool { return true })
	return ids
}

// Guarantee: time in which the leader is stopped does not count, nor does time in which
// nothing has a deadline.
func TestStoppedLeader(t *testing.T) {
	now := time.Unix(1000, 0)
	p := NewPacer(5000, now)
	a := lease.Agenda{Clock: 5000, Fresh: true}
	now = now.Add(time.Hour) // without anything to tick for
	if left, ok := p.Due(a, now); !ok || left > 0 {
		t.Fatal(left, ok)
	}
	clock := p.Tick(5000, now)
	if most := uint64(5000 + (fastTick+maxLag)/time.Millisecond); clock > most {
		t.Errorf("an hour without leases moved the clock from 5000 to %d", clock)
	}
	a = lease.Agenda{Clock: clock, Next: clock + 10_000}
	if left, ok := p.Due(a, now); !ok || left != fastTick {
		t.Fatal(left, ok)
	}
	now = now.Add(30 * time.Second) // stopped
	after := p.Tick(clock, now)
	if most := clock + uint64((fastTick+maxLag)/time.Millisecond); after > most {
		t.Errorf("a stop of 30 s moved the clock from %d to %d", clock, after)
	}
	if again := p.Tick(after, now.Add(100*time.Millisecond)); again != after+100 {
		t.Errorf("100 ms moved it from %d to %d", after, again)
	}
}

// Guarantee: the leader ticks soon where something is fresh or due, and seldom where
// nothing is for long.
func TestPace(t *testing.T) {
	const second = 1000
	for _, tt := range []struct {
		agenda lease.Agenda
		want   time.Duration
	}{
		{lease.Agenda{Fresh: true}, fastTick},
		{lease.Agenda{Fresh: true, Full: true}, 0},
		{lease.Agenda{Next: 100}, 100 * time.Millisecond},
		{lease.Agenda{Clock: 100, Next: 50}, 0}, // more is due than went
		{lease.Agenda{Next: 10 * second}, fastTick},
		{lease.Agenda{Next: 100 * second}, time.Second},
		{lease.Agenda{Next: 100 * second, Fresh: true}, fastTick},
		{lease.Agenda{Next: 1 << 40}, slowTick},
	} {
		if got, ok := NewPacer(0, time.Time{}).Wait(tt.agenda); !ok || got != tt.want {
			t.Errorf("%+v: %v, %v; want %v", tt.agenda, got, ok, tt.want)
		}
	}
	if _, ok := NewPacer(0, time.Time{}).Wait(lease.Agenda{Clock: 7}); ok {
		t.Error("it ticks for nothing")
	}
}

// Guarantee: that a tick says whole milliseconds makes no lease end early.
func TestRounding(t *testing.T) {
	began := time.Unix(1000, 0)
	p := NewPacer(0, began)
	var table lease.Table
	if _, err := table.Grant(5, ""); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at   time.Duration
		left int
	}{{10900 * time.Microsecond, 1}, {15800 * time.Microsecond, 1}, {16900 * time.Microsecond, 0}} {
		if table.Tick(p.Tick(table.Clock, began.Add(tt.at))); table.Len() != tt.left {
			t.Errorf("after %v there are %d leases, want %d", tt.at, table.Len(), tt.left)
		}
	}
}
