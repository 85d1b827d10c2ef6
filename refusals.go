package main

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// refusal is an error that rafthttp answers with a status of its own.
type refusal struct {
	status int
	kind   refusalKind
	reason string
}

func (r refusal) Error() string { return r.reason }

// WriteTo has the signature that rafthttp looks for.
func (r refusal) WriteTo(w http.ResponseWriter) { http.Error(w, r.reason, r.status) }

// refusalKind says why something that came to the peer port was not taken. The
// kinds are a label of a metric.
type refusalKind string

const (
	// notHostile: the daily life of a cluster has it, so it is not counted.
	notHostile       refusalKind = ""
	refusedAddress   refusalKind = "address"   // it is for another node, or from nobody
	refusedSender    refusalKind = "sender"    // no member that this node knows of sent it
	refusedTerm      refusalKind = "term"      // its term is none that an election gives
	refusedMalformed refusalKind = "malformed" // no node writes such a message
	refusedSize      refusalKind = "size"      // it is larger than any message can be
	refusedBusy      refusalKind = "busy"      // too much is coming in already
	refusedRoom      refusalKind = "room"      // the disk has no room for it
	// refusedContradiction: it contradicts this node's log (suspect.go).
	refusedContradiction refusalKind = "contradiction"
)

// refusalLogEvery is how often one kind of refusal gets a line in the log:
// whoever sends nonsense must not fill the disk with it.
const refusalLogEvery = 10 * time.Second

// refusals counts what came to the peer port and was not taken.
type refusals struct {
	log   *zap.Logger
	total *prometheus.CounterVec

	mu     sync.Mutex
	said   map[refusalKind]time.Time // when a kind last got a line
	unsaid map[refusalKind]uint64    // how many came since
	counts map[refusalKind]uint64
}

// countedKinds are the kinds that are counted.
var countedKinds = []refusalKind{refusedAddress, refusedSender, refusedTerm, refusedMalformed, refusedSize, refusedBusy,
	refusedRoom, refusedContradiction}

func newRefusals(log *zap.Logger) *refusals {
	r := &refusals{
		log: log, said: make(map[refusalKind]time.Time), unsaid: make(map[refusalKind]uint64), counts: make(map[refusalKind]uint64),
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

// note counts err if it is a refusal, and logs it now and then. from is the
// sender as it says itself.
func (r *refusals) note(from uint64, err error) {
	var why refusal
	if !errors.As(err, &why) || why.kind == notHostile {
		return
	}
	r.total.WithLabelValues(string(why.kind)).Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[why.kind]++
	now := time.Now()
	if last, ok := r.said[why.kind]; ok && now.Sub(last) < refusalLogEvery {
		r.unsaid[why.kind]++
		return
	}
	r.log.Warn("refused what came to the peer port", zap.String("reason", string(why.kind)), zap.Uint64("from", from),
		zap.Error(err), zap.Uint64("refused-since-the-last-such-line", r.unsaid[why.kind]))
	r.said[why.kind], r.unsaid[why.kind] = now, 0
}

// count returns how many were refused for one reason.
func (r *refusals) count(kind refusalKind) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[kind]
}

// asRefusal returns err as the refusal that it is, or as an error of this node's.
func asRefusal(err error) *refusal {
	var r refusal
	if !errors.As(err, &r) {
		r = refusal{status: http.StatusInternalServerError, kind: notHostile, reason: err.Error()}
	}
	return &r
}

// register adds what there is to count.
func (r *refusals) register(reg prometheus.Registerer) { reg.MustRegister(r.total) }
