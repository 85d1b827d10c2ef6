// Package refusal counts what a node refuses at its peer port, by kind and
// sender, and says so in the log without letting a stranger fill it.
package refusal

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Refusal is an error that rafthttp answers with a status of its own.
type Refusal struct {
	Status int // of HTTP
	Kind   Kind
	Reason string
}

func (r Refusal) Error() string { return r.Reason }

// WriteTo has the signature that rafthttp looks for.
func (r Refusal) WriteTo(w http.ResponseWriter) { http.Error(w, r.Reason, r.Status) }

// Kind says why something that came to the peer port was not taken. The
// kinds are a label of a metric.
type Kind string

const (
	// NotHostile: the daily life of a cluster has it, so it is not counted.
	NotHostile       Kind = ""
	RefusedAddress   Kind = "address"   // it is for another node, or from nobody
	RefusedSender    Kind = "sender"    // no member that this node knows of sent it
	RefusedTerm      Kind = "term"      // its term is none that an election gives
	RefusedMalformed Kind = "malformed" // no node writes such a message
	RefusedSize      Kind = "size"      // it is larger than any message can be
	RefusedBusy      Kind = "busy"      // too much is coming in already
	RefusedRoom      Kind = "room"      // the disk has no room for it
	RefusedIdentity  Kind = "identity"  // its certificate is that of another
	// RefusedContradiction: it contradicts this node's log (package suspect).
	RefusedContradiction Kind = "contradiction"
)

// refusalLogEvery is how often one kind of refusal gets a line in the log:
// whoever sends nonsense must not fill the disk with it.
const refusalLogEvery = 10 * time.Second

// Refusals counts what came to the peer port and was not taken.
type Refusals struct {
	log   *zap.Logger
	total *prometheus.CounterVec

	mu     sync.Mutex
	said   map[Kind]time.Time // when a kind last got a line
	unsaid map[Kind]uint64    // how many came since
	counts map[Kind]uint64
}

// countedKinds are the kinds that are counted.
var countedKinds = []Kind{RefusedAddress, RefusedSender, RefusedTerm, RefusedMalformed, RefusedSize, RefusedBusy,
	RefusedRoom, RefusedIdentity, RefusedContradiction}

// NewRefusals returns refusals that have counted nothing. Their metric shows once
// Register was called.
func NewRefusals(log *zap.Logger) *Refusals {
	r := &Refusals{
		log: log, said: make(map[Kind]time.Time), unsaid: make(map[Kind]uint64), counts: make(map[Kind]uint64),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "raftkv_peer_refused_total",
			Help: "What came to the peer port and was not taken, by reason.",
		}, []string{"reason"}),
	}
	for _, kind := range countedKinds {
		r.total.WithLabelValues(string(kind)) // so that its first increase shows
	}
	return r
}

// Note counts err if it is a refusal, and logs it now and then. from is the
// sender as it says itself.
func (r *Refusals) Note(from uint64, err error) {
	var why Refusal
	if !errors.As(err, &why) || why.Kind == NotHostile {
		return
	}
	r.total.WithLabelValues(string(why.Kind)).Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[why.Kind]++
	now := time.Now()
	if last, ok := r.said[why.Kind]; ok && now.Sub(last) < refusalLogEvery {
		r.unsaid[why.Kind]++
		return
	}
	r.log.Warn("refused what came to the peer port", zap.String("reason", string(why.Kind)), zap.Uint64("from", from),
		zap.Error(err), zap.Uint64("refused-since-the-last-such-line", r.unsaid[why.Kind]))
	r.said[why.Kind], r.unsaid[why.Kind] = now, 0
}

// Count returns how many were refused for one reason.
func (r *Refusals) Count(kind Kind) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[kind]
}

// As returns err as the refusal that it is, or as an error of this node's.
func As(err error) *Refusal {
	var r Refusal
	if !errors.As(err, &r) {
		r = Refusal{Status: http.StatusInternalServerError, Kind: NotHostile, Reason: err.Error()}
	}
	return &r
}

// Register adds what there is to count.
func (r *Refusals) Register(reg prometheus.Registerer) { reg.MustRegister(r.total) }
