// Package peerport answers: what of all that comes to the peer port is let in?
// Without TLS anyone can reach it, so bodies are bounded, senders must be members,
// terms must be such as elections give, and whatever would make raft panic is
// refused as a message.
package peerport

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/transport"
	"raftkv/internal/web"
	"regexp"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// What stands before rafthttp on the peer listener. rafthttp reads a body
// without limit, starts goroutines and dials for whoever a header names, keeps
// a metric for each sender and each connection that sends rubbish, and panics at
// a header that is no version. So what does not come from a member, or is no
// message, does not get to it.
//
// The streams on which most messages come need no guard here: this node has
// opened them, to the URLs of members; rafthttp bounds what it reads there.

const (
	// maxMessageBytes is the largest message: one entry of one command with the
	// largest value that any node may take, and what surrounds it.
	maxMessageBytes = config.MaxValueLimit + 1<<20
	// smallMessageBytes is the largest message that has a place beside large
	// ones, so that votes and heartbeats never wait for those. MaxSmallMessages
	// is how many of them may come in at once.
	smallMessageBytes = 64 << 10
	maxSmallMessages  = 256
	// maxIncomingBytes bounds what large messages take while they come in, all
	// together, as read and once more as decoded.
	maxIncomingBytes = maxMessageBytes + 16<<20
	// entryBytes is about what an entry takes in memory beside its data.
	entryBytes = 128
	// A message has messageReadLimit to come in, and a second more for each
	// messageReadRate.
	messageReadLimit = 10 * time.Second
	messageReadRate  = 1 << 20
	// refusedReadLimit is how long the rest of a refused body may take: net/http
	// reads some of it before it answers.
	refusedReadLimit = time.Second
)

// Numbers of the fields of raftpb.Message that the guard looks for before it decodes.
const (
	fieldEntries   = 7
	fieldSnapshot  = 9
	fieldResponses = 14
)

// Guard stands before rafthttp's handler.
type Guard struct {
	Config
	rafthttp http.Handler
	streams  http.Handler        // rafthttp's, which the links keep an eye on
	small    *semaphore.Weighted // messages
	large    *semaphore.Weighted // bytes
	uploads  uploads
	// readLimit is messageReadLimit, shorter in tests.
	readLimit time.Duration
}

// Config is what the guard needs of its node.
type Config struct {
	Log       *zap.Logger
	ID        uint64 // of this node
	Cluster   uint64 // its ID
	Dir       string // the data directory
	Admission *Admission
	Refusals  *refusal.Refusals
	// HoldStreams makes a handler that keeps an eye on the streams of another.
	HoldStreams func(http.Handler) http.Handler
	// Identify has the requests of a handler know who sends them (peerclient.SenderIs).
	Identify func(http.Handler) http.Handler
	// KeepFree returns how many bytes of the disk a snapshot leaves.
	KeepFree func() int64
	// NotStored is told of a snapshot for which there was no room.
	NotStored func(error)
}

// New returns a guard before rafthttp's handler. It takes requests once Routes has put
// it on a mux.
func New(c Config, rafthttp http.Handler) *Guard {
	return &Guard{
		Config: c, rafthttp: rafthttp, streams: c.HoldStreams(rafthttp),
		small: semaphore.NewWeighted(maxSmallMessages), large: semaphore.NewWeighted(maxIncomingBytes),
		uploads: uploads{freeSpace: freeSpace}, readLimit: messageReadLimit,
	}
}

// Routes puts the guard and what it guards on a mux.
func (g *Guard) Routes(mux *http.ServeMux) {
	mux.HandleFunc("/raft", g.serveMessage)
	mux.HandleFunc(transport.StreamPath, g.serveStream)
	mux.HandleFunc("/raft/snapshot", g.serveSnapshot)
	mux.Handle("/raft/", g.rafthttp) // probing, and what is not there
}

// refuse answers with a refusal and counts it.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, from uint64, why refusal.Refusal) {
	g.Refusals.Note(from, why)
	// Without a version rafthttp takes this for a server that has no streams;
	// the version of who asks will do.
	if v := r.Header.Get("X-Server-Version"); versionHeader.MatchString(v) {
		w.Header().Set("X-Server-Version", v)
	}
	w.Header().Set("X-Etcd-Cluster-ID", types.ID(g.Cluster).String())
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusedReadLimit)); err != nil {
		g.Log.Debug("no deadline for a refused request", zap.Error(err))
	}
	why.WriteTo(w)
}

// versionHeader is what rafthttp reads without a panic, as nodes send it.
var versionHeader = regexp.MustCompile(`^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?$`)

// letIn reports whether a request of rafthttp's comes from a member. If not, it
// is answered. rafthttp never sees the sender's URLs: it would dial them.
func (g *Guard) letIn(w http.ResponseWriter, r *http.Request) (from uint64, ok bool) {
	urls := r.Header.Get("X-PeerURLs")
	r.Header.Del("X-PeerURLs")
	for _, name := range []string{"X-Server-Version", "X-Min-Cluster-Version"} {
		if v := r.Header.Get(name); v != "" && !versionHeader.MatchString(v) {
			g.refuse(w, r, 0, refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: fmt.Sprintf("%s: %.100q is no version", name, v)})
			return 0, false
		}
	}
	if r.Header.Get("X-Etcd-Cluster-ID") != types.ID(g.Cluster).String() {
		g.rafthttp.ServeHTTP(w, r) // refuses it with the words that its peer understands
		return 0, false
	}
	from, err := transport.SenderOf(r)
	if err == nil && (address.CheckID(from) != nil || from == g.ID) {
		err = fmt.Errorf("%d is not the ID of a peer", from)
	}
	switch unproven := peerclient.SenderIs(r.Context(), from); {
	case err != nil:
		g.refuse(w, r, from, refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedAddress, Reason: err.Error()})
		return from, false
	case unproven != nil:
		g.refuse(w, r, from, *refusal.As(unproven))
		return from, false
	case g.Admission.IsRemoved(from):
		return from, true // which Process, or rafthttp for a stream, tells it
	case !g.Admission.Known.Knows(from):
		g.Admission.Known.Claim(from, urls, r.RemoteAddr)
		g.refuse(w, r, from, unknownSender(from))
		return from, false
	}
	return from, true
}

// serveStream lets a member open the stream on which it gets this node's
// messages.
func (g *Guard) serveStream(w http.ResponseWriter, r *http.Request) {
	if _, ok := g.letIn(w, r); ok {
		g.streams.ServeHTTP(w, r)
	}
}

// serveMessage takes a single message.
func (g *Guard) serveMessage(w http.ResponseWriter, r *http.Request) {
	from, ok := g.letIn(w, r)
	if !ok {
		return
	}
	if r.Method != http.MethodPost {
		g.rafthttp.ServeHTTP(w, r)
		return
	}
	var place places
	defer place.release()
	body, why := g.readMessage(w, r, from, &place)
	if why != nil {
		g.refuse(w, r, from, *why)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	g.rafthttp.ServeHTTP(w, r)
}

// places is what one message holds of what all together may take.
type places []func()

// take reports whether there was room.
func (p *places) take(of *semaphore.Weighted, n int64) bool {
	ok := of.TryAcquire(n)
	if ok {
		*p = append(*p, func() { of.Release(n) })
	}
	return ok
}

func (p *places) release() {
	for _, f := range *p {
		f()
	}
}

// readMessage reads a message of a node's that would be admitted.
func (g *Guard) readMessage(w http.ResponseWriter, r *http.Request, from uint64, place *places) (body []byte, why *refusal.Refusal) {
	size := r.ContentLength
	switch {
	case size < 0:
		return nil, &refusal.Refusal{Status: http.StatusLengthRequired, Kind: refusal.RefusedMalformed, Reason: "a message without a length"}
	case size > maxMessageBytes:
		return nil, &refusal.Refusal{Status: http.StatusRequestEntityTooLarge, Kind: refusal.RefusedSize,
			Reason: fmt.Sprintf("a message of %d bytes, where %d are allowed", size, maxMessageBytes)}
	case size <= smallMessageBytes && !place.take(g.small, 1), size > smallMessageBytes && !place.take(g.large, size):
		return nil, &refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.RefusedBusy, Reason: "too many messages are coming in"}
	}
	limit := g.readLimit + time.Duration(size/messageReadRate)*time.Second
	conn := http.NewResponseController(w)
	body = make([]byte, size)
	err := conn.SetReadDeadline(time.Now().Add(limit))
	if err == nil {
		_, err = io.ReadFull(r.Body, body)
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.NotHostile, Reason: "the message broke off: " + err.Error()}
	}
	// Entries of two bytes each take fifty times as much when they are decoded.
	entries, why := countEntries(body, fieldEntries)
	if why != nil {
		return nil, why
	}
	if more := int64(entries) * entryBytes; more > smallMessageBytes && !place.take(g.large, more) {
		return nil, &refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.RefusedBusy, Reason: fmt.Sprintf("%d entries, while others are coming in", entries)}
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: "no message: " + err.Error()}
	}
	// Process asks again; but a metric of rafthttp's is named after the sender.
	if err := cmp.Or(transport.CheckSender(m, from), g.Admission.Admit(m)); err != nil {
		return nil, refusal.As(err)
	}
	return body, nil
}

// countEntries looks through an encoded message. It refuses one that nests
// others, which no node sends, and of entries and snapshot the one that it is
// not asked to let pass.
func countEntries(b []byte, allowed protowire.Number) (entries int, why *refusal.Refusal) {
	for len(b) > 0 {
		num, _, n := protowire.ConsumeField(b)
		switch {
		case n < 0:
			return 0, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: "no message: " + protowire.ParseError(n).Error()}
		case num == fieldResponses, (num == fieldEntries || num == fieldSnapshot) && num != allowed:
			return 0, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: fmt.Sprintf("a message with field %d, which does not belong here", num)}
		case num == fieldEntries:
			entries++
		}
		b = b[n:]
	}
	return entries, nil
}

// WithoutBrowsers serves with h, but for what a browser sends: requests between
// nodes never come from one, not even the harmless ones. peerURL is this node's.
func WithoutBrowsers(peerURL string, h http.Handler) http.Handler {
	guard := web.OriginGuard{Hosts: map[string]bool{address.HostOfURL(peerURL): true}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := guard.CheckHost(r.Host)
		if err == nil && (r.Header["Origin"] != nil || r.Header["Sec-Fetch-Site"] != nil) {
			err = problem.ErrCrossOrigin
		}
		if err != nil {
			http.Error(w, err.Error(), problem.Of(err).Status)
			return
		}
		h.ServeHTTP(w, r)
	})
}
