package reconfig

import (
	"context"
	"net/http"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/web"
	"time"
)

// Routes of our own on the peer listener, beside rafthttp's. They carry what a
// node must know before it takes part, and what only the leader knows.
const (
	ClusterPath = "/raftkv/cluster"
	MemberPath  = "/raftkv/member"
	JoinPath    = "/raftkv/join"
	maxPeerAsk  = 16 << 10 // bytes of a request to MemberPath or JoinPath
)

// ClusterInfo is what a node tells others of the cluster.
type ClusterInfo struct {
	ClusterID uint64       `json:"cluster_id"`
	Level     uint64       `json:"level"`             // of commands; package state
	Version   string       `json:"version,omitempty"` // of the program that answers
	Term      uint64       `json:"term"`              // of the node that answers; 0: it does not say
	Members   []MemberInfo `json:"members"`
	Removed   []uint64     `json:"removed"`
	// Changes counts the membership changes that the node knows of.
	Changes uint64 `json:"changes"`
}

// MemberInfo is what a node tells others of one member.
type MemberInfo struct {
	ID        uint64 `json:"id"`
	PeerURL   string `json:"peer_url"`
	ClientURL string `json:"client_url"` // empty: it has never started
	Instance  uint64 `json:"instance"`   // of its data directory; 0: it has never started
	Learner   bool   `json:"learner"`
	// Match is what the leader knows of the member's log; 0 elsewhere. More
	// than that is not needed to say that the ID is used.
	Match uint64 `json:"match"`
}

// Member returns the member, as far as the answer tells of it. Level, Pinned and Added
// are not in it, and stay zero.
func (m MemberInfo) Member() membership.Member {
	return membership.Member{ID: m.ID, PeerURL: m.PeerURL, ClientURL: m.ClientURL, Instance: m.Instance, Learner: m.Learner}
}

// Member returns what is told of the member with an ID, and whether there is one.
func (c ClusterInfo) Member(id uint64) (MemberInfo, bool) {
	for _, m := range c.Members {
		if m.ID == id {
			return m, true
		}
	}
	return MemberInfo{}, false
}

// Handler lets serve carry out a membership change that a follower has passed on, or that
// a node asks for that wants to join.
func (ms *Members) Handler(serve func(context.Context, Request) Reply) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Request
		if peerclient.Receive(w, r, ms.Cluster, maxPeerAsk, &req) {
			web.WriteJSON(w, http.StatusOK, serve(r.Context(), req))
		}
	}
}

// AskMember asks the node at a URL, the leader, for a membership change.
func AskMember(ask *peerclient.Client) func(ctx context.Context, peerURL string, cluster uint64, r Request) (Reply, error) {
	return func(ctx context.Context, peerURL string, cluster uint64, r Request) (reply Reply, err error) {
		err = ask.Post(ctx, peerURL+MemberPath, cluster, r, &reply)
		return reply, err
	}
}

// AskJoin asks the node at a URL, any member, to have a new node added.
func AskJoin(ctx context.Context, ask *peerclient.Client, peerURL string, cluster uint64, r Request) (reply Reply, err error) {
	err = ask.Post(ctx, peerURL+JoinPath, cluster, r, &reply)
	return reply, err
}

// AskView asks the node at a URL, the leader, how it sees the members.
func AskView(ask *peerclient.Client) func(ctx context.Context, peerURL string) (map[uint64]View, error) {
	return func(ctx context.Context, peerURL string) (view map[uint64]View, err error) {
		err = ask.Get(ctx, peerURL+peerclient.ViewPath, 0, &view)
		return view, err
	}
}

// AskCluster asks the node at a URL what it knows of the cluster.
func AskCluster(ask *peerclient.Client) func(ctx context.Context, peerURL string) (ClusterInfo, error) {
	return func(ctx context.Context, peerURL string) (info ClusterInfo, err error) {
		err = ask.Get(ctx, peerURL+ClusterPath, 0, &info)
		return info, err
	}
}

// AskAll asks all peers at once what they know of the cluster, and returns the
// answers that come.
func AskAll(ctx context.Context, ask *peerclient.Client, urls []string, timeout time.Duration) []ClusterInfo {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answers := make(chan *ClusterInfo, len(urls))
	for _, u := range urls {
		go func() {
			info, err := AskCluster(ask)(ctx, u)
			if err != nil {
				answers <- nil
				return
			}
			answers <- &info
		}()
	}
	var got []ClusterInfo
	for range urls {
		if info := <-answers; info != nil {
			got = append(got, *info)
		}
	}
	return got
}

// Membership returns the members that an answer names.
func (c ClusterInfo) Membership() membership.Membership {
	m := membership.Membership{Members: make(map[uint64]membership.Member), Changes: c.Changes}
	for _, mem := range c.Members {
		m.Members[mem.ID] = mem.Member()
	}
	return m
}
