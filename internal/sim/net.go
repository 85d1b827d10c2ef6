package sim

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/refusal"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Delay is how long a message takes at most on a healed network.
const Delay = 2 * time.Millisecond

// Net is the network between the nodes of a cluster. It delays every message, and
// so reorders them; it may drop and duplicate; it can cut any direction of any link.
type Net[N Node] struct {
	t testing.TB

	mu        sync.Mutex
	rng       *rand.Rand
	nodes     map[uint64]N
	drop, dup float64
	spoil     float64               // how often a snapshot breaks off, or comes with a bit flipped
	transfers int                   // snapshots that were sent
	empty     int                   // appends without entries that were sent
	asked     int                   // heartbeats that ask for a confirmation of reads
	midway    func(from, to uint64) // called, if not nil, in the middle of each snapshot
	slowest   time.Duration
	cut       map[[2]uint64]bool // from, to
	leaders   map[uint64]uint64  // by term: who was seen to lead
	twoLead   bool
}

func newNet[N Node](t testing.TB, seed uint64) *Net[N] {
	return &Net[N]{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), nodes: make(map[uint64]N), slowest: Delay,
		cut: make(map[[2]uint64]bool), leaders: make(map[uint64]uint64),
	}
}

// Forget has the network take what follows for another history, in which others
// may lead in the same terms.
func (s *Net[N]) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.leaders)
	s.twoLead = false
}

func (s *Net[N]) attach(life N) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[life.ID()] = life
}

func (s *Net[N]) detach(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, id)
}

// Isolate cuts a node off in both directions.
func (s *Net[N]) Isolate(id uint64, from ...uint64) {
	for _, other := range from {
		s.Sever(id, other)
		s.Sever(other, id)
	}
}

// Sever cuts one direction of a link.
func (s *Net[N]) Sever(from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[[2]uint64{from, to}] = true
}

// Disturb sets how bad the network is.
func (s *Net[N]) Disturb(drop, dup float64, slowest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop, s.dup, s.slowest = drop, dup, slowest
}

// SpoilSnapshots sets how often one breaks off, or is damaged.
func (s *Net[N]) SpoilSnapshots(p float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil = p
}

// Midway sets what is called in the middle of each snapshot on its way, with who
// sends it and who receives it. The snapshot waits for it.
func (s *Net[N]) Midway(f func(from, to uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.midway = f
}

// Heal undoes Disturb, Isolate and Sever.
func (s *Net[N]) Heal() {
	s.Disturb(0, 0, Delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.cut)
}

// EmptyAppends is how many appends without entries were sent.
func (s *Net[N]) EmptyAppends() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.empty
}

// ReadQuestions is how many heartbeats were sent that ask for a confirmation of reads.
func (s *Net[N]) ReadQuestions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// Transfers is how many snapshots were sent.
func (s *Net[N]) Transfers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.transfers
}

// checkLeaders reports two leaders of one term (thesis §3.4, election safety).
func (s *Net[N]) checkLeaders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.twoLead {
		s.t.Error("two nodes led in the same term")
	}
}

// Running returns the lives that are on the network, by ID.
func (s *Net[N]) Running() map[uint64]N {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.nodes)
}

// Reach returns the node at a peer URL, if a request from one gets there.
func (s *Net[N]) Reach(from uint64, url string) (N, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, life := range s.nodes {
		if life.PeerURL() == url && !s.cut[[2]uint64{from, id}] && !s.cut[[2]uint64{id, from}] {
			return life, nil
		}
	}
	var none N
	return none, errors.New("unreachable")
}

// hangUp tells a removed node so, as rafthttp does when that node finds its
// connection closed and dials again.
func (s *Net[N]) hangUp(by N, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target, up := s.nodes[id]
	if !up || s.cut[[2]uint64{id, by.ID()}] || !by.IsRemoved(id) {
		return
	}
	target.Refuse(errors.New("hung up"))
}

// send puts a message on its way, or two copies of it.
func (s *Net[N]) send(sender N, m *raftpb.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if typ := m.GetType(); typ == raftpb.MsgApp || typ == raftpb.MsgHeartbeat {
		if was, ok := s.leaders[m.GetTerm()]; ok && was != m.GetFrom() {
			s.twoLead = true
		}
		s.leaders[m.GetTerm()] = m.GetFrom()
		if typ == raftpb.MsgApp && len(m.GetEntries()) == 0 {
			s.empty++
		}
		if typ == raftpb.MsgHeartbeat && len(m.GetContext()) > 0 {
			s.asked++
		}
	}
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
	}
	lost := s.rng.Float64() < s.drop
	for range copies {
		delay := time.Duration(s.rng.Int64N(int64(s.slowest))) + time.Microsecond
		go func() {
			time.Sleep(delay)
			s.arrive(sender, proto.Clone(m).(*raftpb.Message), lost)
		}()
	}
}

// arrive delivers a message, and reports what became of it as rafthttp does.
func (s *Net[N]) arrive(sender N, m *raftpb.Message, lost bool) {
	s.mu.Lock()
	target, up := s.nodes[m.GetTo()]
	lost = lost || !up || s.cut[[2]uint64{m.GetFrom(), m.GetTo()}]
	s.mu.Unlock()
	err := errors.New("lost")
	if !lost {
		err = target.Receive(context.Background(), m)
	}
	var refused refusal.Refusal
	if errors.As(err, &refused) && refused.Kind == refusal.RefusedSender {
		// Its streams and single requests say where it is, and come from there.
		target.Claim(m.GetFrom(), sender.PeerURL())
	}
	if errors.As(err, &refused) && refused.Status == http.StatusForbidden {
		sender.Refuse(err)
	}
	if err != nil && lost {
		sender.Unreachable(m.GetTo())
	}
}

// sendSnapshot carries a snapshot to its receiver, which may be spoiled on the way.
func (s *Net[N]) sendSnapshot(sender N, m *raftpb.Message, file io.Reader) error {
	s.mu.Lock()
	delay := time.Duration(s.rng.Int64N(int64(s.slowest))) + time.Microsecond
	lost := s.rng.Float64() < s.drop
	spoiled := s.rng.Float64() < s.spoil
	broken := spoiled && s.rng.IntN(2) == 0
	flipped := spoiled && !broken
	at := s.rng.Int64N(150) // no file is shorter
	midway := s.midway
	s.transfers++
	s.mu.Unlock()
	time.Sleep(delay)
	target, err := s.Reach(sender.ID(), URL(m.GetTo()))
	if err == nil && lost {
		err = errors.New("lost")
	}
	if err != nil {
		sender.Unreachable(m.GetTo())
		return err
	}
	switch {
	case broken:
		file = io.MultiReader(io.LimitReader(file, at), iotest.ErrReader(errors.New("broke off")))
	case flipped:
		file = &flipReader{file, at}
	case midway != nil:
		file = io.MultiReader(io.LimitReader(file, 64), readerFunc(func([]byte) (int, error) {
			midway(sender.ID(), m.GetTo())
			return 0, io.EOF
		}), file)
	}
	return target.ReceiveSnapshot(context.Background(), file, m)
}

type readerFunc func([]byte) (int, error)

// Read calls the function.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// flipReader flips a bit of the byte at an offset.
type flipReader struct {
	io.Reader
	left int64
}

// Read reads, and flips the bit when its byte comes by.
func (r *flipReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.left >= 0 && r.left < int64(n) {
		p[r.left] ^= 0x10
	}
	r.left -= int64(n)
	return n, err
}
