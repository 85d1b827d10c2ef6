package boot

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"raftkv/internal/address"
	"raftkv/internal/contact"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/peerport"
	"raftkv/internal/reconfig"
	"raftkv/internal/refusal"
	"raftkv/internal/transport"
	"raftkv/internal/wait"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.uber.org/zap"
)

// Whom this node takes messages from: from the members in its state. Whoever
// else knocks may be one that was added while this node was away, so it asks,
// over connections that it opens itself: the members that it knows, and the
// peers of its command line. What they say is believed. What a stranger says of
// itself, its ID and its URL, is not, and does not make this node dial.
//
// One case is left: all members that this node knows have been replaced since,
// and nobody is where it asks. Then, when it has heard of no leader for a while,
// it asks the stranger itself, but only at the address from which the stranger
// came: so nobody can make it dial a third. The answer must come from this
// cluster, know of changes of the members that this node does not, and list
// both this node, with its own directory, and the stranger. It is taken for the
// stranger alone. A liar gets no more by it than by posing as a member that the
// node knows, which nothing can tell before there is TLS.

const (
	// maxLearned bounds the members that others told of and the state has not.
	maxLearned = 64
	// learnedFor is how long such a member may be silent before it is let go.
	learnedFor = time.Minute
	// maxClaims bounds the strangers, one for each address, that may be asked
	// themselves, and maxClaimsAsked those that are at one time.
	maxClaims      = 64
	maxClaimsAsked = 4
	// lonelyAfter is after how many election timeouts without a leader they are.
	lonelyAfter = 3
)

// Config is what Acquaintances need of others.
type Config struct {
	Log             *zap.Logger
	Self            Self
	Cluster         uint64
	Tick            time.Duration
	ElectionTimeout time.Duration
	Seeds           []string // peer URLs of the command line
	Store           acquaintStore
	Applied         *wait.Index
	// Contacts is who was heard from, and when.
	Contacts *contact.Contacts
	// Role is what raft knew of its role last; nil before the start.
	Role func() *contact.RaftStatus
	// AskPeer asks the peer at a URL what it knows of the cluster.
	AskPeer func(ctx context.Context, peerURL string) (reconfig.ClusterInfo, error)
}

// Acquaintances is who may talk to this node's raft. The zero value knows
// nobody.
type Acquaintances struct {
	Config

	Gate    gate
	wake    chan struct{} // an inquiry is wanted
	mu      sync.Mutex
	peers   transport.PeerDirectory
	members membership.Membership  // as this node's state has them
	Learned map[uint64]*learnedOne // told of by others; in the transport, too
	claims  map[string]claim       // by the address that it came from
	term    uint64                 // the highest that a member told of
}

// NewAcquaintances returns what a node knows of others before its log tells it: nothing.
func NewAcquaintances(c Config) *Acquaintances {
	return &Acquaintances{Config: c, wake: make(chan struct{}, 1)}
}

// acquaintStore is what the state knows of the members, and of this node.
type acquaintStore interface {
	Membership() (m membership.Membership, index uint64)
	// Proven reports whether the cluster has agreed that this node's ID belongs
	// to its data directory.
	Proven() bool
}

// learnedOne is a member that is not in this node's state yet.
type learnedOne struct {
	url   string
	heard time.Time
}

// claim is what a stranger says of itself, and where it can be asked: at the
// address from which it came.
type claim struct {
	id  uint64
	url string
}

// Settle takes over the members of the state, and returns those told of by
// others that have been removed since.
func (a *Acquaintances) Settle(peers transport.PeerDirectory, m membership.Membership) (gone []uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peers, a.members = peers, m
	for id := range m.Members {
		a.addMember(id)
	}
	for id := range a.Learned {
		if m.Removed[id] {
			gone = append(gone, id)
			delete(a.Learned, id)
		}
	}
	return gone
}

// addMember has the transport know a member, at the URL that the state gives
// it. The caller holds a.mu.
func (a *Acquaintances) addMember(id uint64) {
	mem, ok := a.members.Members[id]
	if !ok || id == a.Self.Node {
		return
	}
	a.peers.AddPeer(types.ID(id), []string{mem.PeerURL}) // it may have been let go a moment ago
	if l := a.Learned[id]; l != nil && l.url != mem.PeerURL {
		a.peers.UpdatePeer(types.ID(id), []string{mem.PeerURL})
	}
	delete(a.Learned, id)
}

// Knows reports whether a node is a member as far as this node knows, and notes
// that it was heard of.
func (a *Acquaintances) Knows(id uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.members.Members[id]; ok {
		return true
	}
	l, ok := a.Learned[id]
	if ok {
		l.heard = time.Now()
	}
	return ok
}

// HighestTerm is the highest term that a member told of when it was asked.
func (a *Acquaintances) HighestTerm() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.term
}

// Ask has the members asked soon. It does not wait.
func (a *Acquaintances) Ask() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Claim notes what a request says of its sender, a node that this one does not
// know: its ID, and the peer URLs of which it takes no more than scheme and port.
func (a *Acquaintances) Claim(id uint64, urls, remoteAddr string) {
	defer a.Ask()
	first, _, _ := strings.Cut(urls, ",")
	host, _, err := net.SplitHostPort(remoteAddr)
	if err != nil {
		return
	}
	u, err := url.Parse(first)
	if err != nil || u.Port() == "" {
		return
	}
	at, err := address.CheckPeerURL(u.Scheme + "://" + net.JoinHostPort(host, u.Port()))
	if err != nil {
		return // an address with a zone, which rafthttp cannot dial
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.claims == nil {
		a.claims = make(map[string]claim)
	}
	if _, ok := a.claims[host]; !ok && len(a.claims) >= maxClaims {
		for other := range a.claims { // whichever comes first; who means it comes again
			delete(a.claims, other)
			break
		}
	}
	a.claims[host] = claim{id, at}
}

// takeClaims returns some of those that are waiting, in no order, and drops
// the others, since a genuine member asks again.
func (a *Acquaintances) takeClaims() (claims []claim) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.claims {
		if _, known := a.Learned[c.id]; !known && len(claims) < maxClaimsAsked {
			claims = append(claims, c)
		}
	}
	a.claims = nil
	return claims
}

// learn takes a node for a member of which the state does not know yet, and
// tells the transport where it is.
func (a *Acquaintances) learn(id uint64, peerURL string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, isMember := a.members.Members[id]
	_, isLearned := a.Learned[id]
	if isMember || isLearned || id == a.Self.Node || address.CheckID(id) != nil || a.members.Removed[id] ||
		!address.IsPlainURL(peerURL) || len(a.Learned) >= maxLearned || a.peers == nil {
		return false
	}
	if a.Learned == nil {
		a.Learned = make(map[uint64]*learnedOne)
	}
	a.Learned[id] = &learnedOne{peerURL, time.Now()}
	a.peers.AddPeer(types.ID(id), []string{peerURL})
	return true
}

// silent forgets those who have been silent for long, and returns them.
func (a *Acquaintances) silent(now time.Time) (ids []uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, l := range a.Learned {
		if now.Sub(l.heard) >= learnedFor {
			ids = append(ids, id)
			delete(a.Learned, id)
		}
	}
	return ids
}

// part lets go of one who has been silent. The transport may wait for a
// connection then, so no lock is held; if the state has come to know the member
// meanwhile, it is added again.
func (a *Acquaintances) part(id uint64) {
	a.Gate.Forget(id)
	a.mu.Lock()
	peers := a.peers
	a.mu.Unlock()
	peers.RemovePeer(types.ID(id))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addMember(id)
}

// noteTerm notes a term that a member told of when it was asked.
func (a *Acquaintances) noteTerm(term uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.term = max(a.term, min(term, peerport.MaxTerm))
}

// urls returns where the members are that this node knows.
func (a *Acquaintances) urls(more []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := make(map[string]bool)
	var urls []string
	for _, mem := range a.members.Sorted() {
		if mem.ID != a.Self.Node && !seen[mem.PeerURL] {
			seen[mem.PeerURL] = true
			urls = append(urls, mem.PeerURL)
		}
	}
	for _, u := range more {
		if !seen[u] {
			seen[u] = true
			urls = append(urls, u)
		}
	}
	return urls
}

// URL returns where a member is, as the state or another member says; "" if none
// of them does.
func (a *Acquaintances) URL(id uint64) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if mem, ok := a.members.Members[id]; ok {
		return mem.PeerURL
	}
	if l, ok := a.Learned[id]; ok {
		return l.url
	}
	return ""
}

func (a *Acquaintances) changes() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.members.Changes
}

// introduce takes over what a member says of the others.
func (a *Acquaintances) introduce(info reconfig.ClusterInfo) {
	a.noteTerm(info.Term)
	if info.Changes < a.changes() {
		return // it is behind
	}
	for _, m := range info.Members {
		a.meet(m.ID, m.PeerURL)
	}
}

// meet takes a node for a member; its ID may have to be proven to it first.
func (a *Acquaintances) meet(id uint64, peerURL string) {
	if a.learn(id, peerURL) {
		a.Gate.Learn(id, peerURL)
		a.Log.Info("a member that this node did not know yet", zap.Uint64("id", id), zap.String("peer-url", peerURL))
	}
}

// GetAcquainted asks about strangers when any have knocked, no more than once in
// askInterval.
func (a *Acquaintances) GetAcquainted(ctx context.Context) error {
	began := time.Now()
	for {
		wanted := true
		select {
		case <-a.wake:
		case <-time.After(learnedFor):
			wanted = false
		case <-ctx.Done():
			return nil
		}
		for _, id := range a.silent(time.Now()) {
			a.part(id)
		}
		if !wanted {
			continue
		}
		a.askMembers(ctx)
		if claims := a.takeClaims(); a.lonely(began) {
			a.askStrangers(ctx, claims)
		}
		select {
		case <-time.After(askInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// lonely reports whether this node has heard of no leader for long, since began
// at the earliest.
func (a *Acquaintances) lonely(began time.Time) bool {
	heard := a.Contacts.LeaderHeard()
	if heard == nil {
		heard = &began
	}
	if st := a.Role(); heard.IsZero() || st == nil || st.Leader != 0 {
		return false
	}
	return time.Since(began) >= lonelyAfter*a.ElectionTimeout && time.Since(*heard) >= lonelyAfter*a.ElectionTimeout
}

// askMembers asks those whom this node knows who else is a member. The one that
// knows of the most changes is believed.
func (a *Acquaintances) askMembers(ctx context.Context) {
	urls := a.urls(a.Seeds)
	answers := make(chan reconfig.ClusterInfo, len(urls))
	var asked sync.WaitGroup
	for _, u := range urls {
		asked.Go(func() {
			if info, err := a.askOne(ctx, u); err == nil {
				answers <- info
			}
		})
	}
	asked.Wait()
	close(answers)
	var newest reconfig.ClusterInfo
	for info := range answers {
		a.noteTerm(info.Term)
		if info.Changes >= newest.Changes {
			newest = info
		}
	}
	a.introduce(newest)
}

// askStrangers asks those who say that they are members, each at the address
// from which it came.
func (a *Acquaintances) askStrangers(ctx context.Context, claims []claim) {
	for _, c := range claims {
		info, err := a.askOne(ctx, c.url)
		if err == nil && a.vouches(info, c.id) {
			a.noteTerm(info.Term)
			a.meet(c.id, c.url)
		}
	}
}

// vouches reports whether an answer can come from a cluster that has gone on
// without this node, with a stranger for a member.
func (a *Acquaintances) vouches(info reconfig.ClusterInfo, id uint64) bool {
	_, isMember := info.Member(id)
	me, amMember := info.Member(a.Self.Node)
	return isMember && amMember && !a.isAnothers(me) && info.Changes > a.changes()
}

// askOne asks the peer at a URL what it knows of this cluster.
func (a *Acquaintances) askOne(ctx context.Context, peerURL string) (reconfig.ClusterInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, peerclient.AskTimeout)
	defer cancel()
	info, err := a.AskPeer(ctx, peerURL)
	if err == nil && info.ClusterID != a.Cluster {
		err = errOtherCluster
	}
	return info, err
}

var errOtherCluster = refusal.Refusal{Status: http.StatusPreconditionFailed, Kind: refusal.NotHostile, Reason: "this is another cluster"}
