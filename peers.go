package main

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/room"
	"raftkv/internal/transport"
	"raftkv/internal/version"
	"raftkv/internal/web"
	"strconv"
	"time"
)

// Routes of our own on the peer listener, beside rafthttp's. They carry what a
// node must know before it takes part, and what only the leader knows.
const (
	clusterPath = "/raftkv/cluster"
	memberPath  = "/raftkv/member"
	joinPath    = "/raftkv/join"
	maxPeerAsk  = 16 << 10
)

// clusterInfo is what a node tells others of the cluster.
type clusterInfo struct {
	ClusterID uint64       `json:"cluster_id"`
	Level     uint64       `json:"level"`             // of commands; level.go
	Version   string       `json:"version,omitempty"` // of the program that answers
	Term      uint64       `json:"term"`              // of the node that answers; 0: it does not say
	Members   []memberInfo `json:"members"`
	Removed   []uint64     `json:"removed"`
	// Changes counts the membership changes that the node knows of.
	Changes uint64 `json:"changes"`
}

type memberInfo struct {
	ID        uint64 `json:"id"`
	PeerURL   string `json:"peer_url"`
	ClientURL string `json:"client_url"`
	Instance  uint64 `json:"instance"`
	Learner   bool   `json:"learner"`
	// Match is what the leader knows of the member's log; 0 elsewhere. More
	// than that is not needed to say that the ID is used.
	Match uint64 `json:"match"`
}

func (m memberInfo) member() membership.Member {
	return membership.Member{ID: m.ID, PeerURL: m.PeerURL, ClientURL: m.ClientURL, Instance: m.Instance, Learner: m.Learner}
}

func (c clusterInfo) member(id uint64) (memberInfo, bool) {
	for _, m := range c.Members {
		if m.ID == id {
			return m, true
		}
	}
	return memberInfo{}, false
}

// peerHandler serves the peer listener: rafthttp's routes and our own.
func (s *server) peerHandler(raftHandler http.Handler) http.Handler {
	mux := http.NewServeMux()
	door := newPeerGuard(s.guardConfig(), raftHandler)
	door.routes(mux)
	mux.HandleFunc("GET "+transport.LinkPath+"{id}", s.node.links.Serve)
	mux.HandleFunc("GET "+clusterPath, func(w http.ResponseWriter, r *http.Request) {
		web.WriteJSON(w, http.StatusOK, s.clusterInfo(r.Context()))
	})
	mux.HandleFunc("GET "+peerclient.ViewPath, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			s.serveStand(w, r)
			return
		}
		web.WriteJSON(w, http.StatusOK, s.members.leaderView(r.Context()))
	})
	mux.HandleFunc("POST "+room.Path, s.serveDiskNote)
	mux.HandleFunc("POST "+memberPath, s.servePeerMember(s.members.serve))
	mux.HandleFunc("POST "+joinPath, s.servePeerMember(s.members.serveJoin))
	// Our own requests never come from a browser, not even the harmless ones.
	guard := web.OriginGuard{Hosts: map[string]bool{address.HostOfURL(s.cfg.PeerURL): true}, Cross: http.NewCrossOriginProtection()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := guard.Check(r)
		if err == nil && (r.Header["Origin"] != nil || r.Header["Sec-Fetch-Site"] != nil) {
			err = problem.ErrCrossOrigin
		}
		if err != nil {
			http.Error(w, err.Error(), problem.Of(err).Status)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *server) guardConfig() guardConfig {
	return guardConfig{
		log: s.log, id: s.cfg.ID, cluster: s.node.cluster, dir: s.cfg.DataDir, admission: &s.node.admission, refusals: s.node.refusals,
		holdStreams: s.node.links.HoldStreams, keepFree: s.room.Keep.Load, notStored: s.storage.Trouble.NotStored,
	}
}

func (s *server) clusterInfo(ctx context.Context) clusterInfo {
	view := s.members.leaderView(ctx)
	m, _ := s.kv.Membership()
	info := clusterInfo{
		ClusterID: s.node.cluster, Level: s.kv.status().Level, Version: version.This().Version,
		Removed: membership.SortedKeys(m.Removed), Changes: m.Changes,
	}
	info.Term, _ = s.node.admission.ownTerm()
	for _, mem := range m.Sorted() {
		if mem.Instance == 0 {
			mem.Instance = s.storage.Published[mem.ID]
		}
		info.Members = append(info.Members, memberInfo{
			ID: mem.ID, PeerURL: mem.PeerURL, ClientURL: mem.ClientURL, Instance: mem.Instance, Learner: mem.Learner,
			Match: view[mem.ID].Match,
		})
	}
	return info
}

// servePeerMember lets serve carry out a membership change that a follower
// passed on, or that a node asks for that wants to join.
func (s *server) servePeerMember(serve func(context.Context, memberRequest) memberReply) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req memberRequest
		if !peerclient.Receive(w, r, s.node.cluster, maxPeerAsk, &req) {
			return
		}
		web.WriteJSON(w, http.StatusOK, serve(r.Context(), req))
	}
}

// askMember asks the node at a URL, the leader, for a membership change.
func askMember(ask *peerclient.Client) func(ctx context.Context, peerURL string, cluster uint64, r memberRequest) (memberReply, error) {
	return func(ctx context.Context, peerURL string, cluster uint64, r memberRequest) (reply memberReply, err error) {
		err = ask.Post(ctx, peerURL+memberPath, cluster, r, &reply)
		return reply, err
	}
}

// askJoin asks the node at a URL, any member, to have a new node added.
func askJoin(ctx context.Context, ask *peerclient.Client, peerURL string, cluster uint64, r memberRequest) (reply memberReply, err error) {
	err = ask.Post(ctx, peerURL+joinPath, cluster, r, &reply)
	return reply, err
}

// askView asks the node at a URL, the leader, how it sees the members.
func askView(ask *peerclient.Client) func(ctx context.Context, peerURL string) (map[uint64]peerView, error) {
	return func(ctx context.Context, peerURL string) (view map[uint64]peerView, err error) {
		err = ask.Get(ctx, peerURL+peerclient.ViewPath, 0, &view)
		return view, err
	}
}

// askCluster asks the node at a URL what it knows of the cluster.
func askCluster(ask *peerclient.Client) func(ctx context.Context, peerURL string) (clusterInfo, error) {
	return func(ctx context.Context, peerURL string) (info clusterInfo, err error) {
		err = ask.Get(ctx, peerURL+clusterPath, 0, &info)
		return info, err
	}
}

// serveStand tells a node where this one's log stands against its own.
func (s *server) serveStand(w http.ResponseWriter, r *http.Request) {
	var numbers [2]uint64
	for i, name := range []string{"node", "index"} {
		n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 64)
		if err != nil {
			http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusBadRequest)
			return
		}
		numbers[i] = n
	}
	answer, err := s.node.doubts.StandFor(r.Context(), numbers[0], numbers[1])
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	web.WriteJSON(w, http.StatusOK, answer)
}

// askAll asks all peers at once what they know of the cluster, and returns the
// answers that come.
func askAll(ctx context.Context, ask *peerclient.Client, urls []string, timeout time.Duration) []clusterInfo {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answers := make(chan *clusterInfo, len(urls))
	for _, u := range urls {
		go func() {
			info, err := askCluster(ask)(ctx, u)
			if err != nil {
				answers <- nil
				return
			}
			answers <- &info
		}()
	}
	var got []clusterInfo
	for range urls {
		if info := <-answers; info != nil {
			got = append(got, *info)
		}
	}
	return got
}
