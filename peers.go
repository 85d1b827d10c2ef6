package main

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/peerport"
	"raftkv/internal/reconfig"
	"raftkv/internal/room"
	"raftkv/internal/transport"
	"raftkv/internal/version"
	"raftkv/internal/web"
	"strconv"
)

// peerRoutes are the routes of our own on the peer listener, beside rafthttp's.
// They carry what a node must know before it takes part, and what only the leader
// knows.
func (s *server) peerRoutes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET " + transport.LinkPath + "{id}": s.node.links.Serve,
		"GET " + reconfig.ClusterPath: func(w http.ResponseWriter, r *http.Request) {
			web.WriteJSON(w, http.StatusOK, s.clusterInfo(r.Context()))
		},
		"GET " + peerclient.ViewPath: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "" {
				s.serveStand(w, r)
				return
			}
			web.WriteJSON(w, http.StatusOK, s.members.LeaderView(r.Context()))
		},
		"POST " + room.Path:           s.serveDiskNote,
		"POST " + reconfig.MemberPath: s.servePeerMember(s.members.Serve),
		"POST " + reconfig.JoinPath:   s.servePeerMember(s.members.ServeJoin),
	}
}

func (s *server) guardConfig() peerport.Config {
	return peerport.Config{
		Log: s.log, ID: s.cfg.ID, Cluster: s.node.cluster, Dir: s.cfg.DataDir, Admission: &s.node.admission, Refusals: s.node.refusals,
		HoldStreams: s.node.links.HoldStreams, KeepFree: s.room.Keep.Load, NotStored: s.storage.Trouble.NotStored,
	}
}

func (s *server) clusterInfo(ctx context.Context) reconfig.ClusterInfo {
	view := s.members.LeaderView(ctx)
	m, _ := s.kv.Membership()
	info := reconfig.ClusterInfo{
		ClusterID: s.node.cluster, Level: s.kv.Status().Level, Version: version.This().Version,
		Removed: membership.SortedKeys(m.Removed), Changes: m.Changes,
	}
	info.Term, _ = s.node.admission.OwnTerm()
	for _, mem := range m.Sorted() {
		if mem.Instance == 0 {
			mem.Instance = s.storage.Published[mem.ID]
		}
		info.Members = append(info.Members, reconfig.MemberInfo{
			ID: mem.ID, PeerURL: mem.PeerURL, ClientURL: mem.ClientURL, Instance: mem.Instance, Learner: mem.Learner,
			Match: view[mem.ID].Match,
		})
	}
	return info
}

// servePeerMember lets serve carry out a membership change that a follower
// passed on, or that a node asks for that wants to join.
func (s *server) servePeerMember(serve func(context.Context, reconfig.Request) reconfig.Reply) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req reconfig.Request
		if !peerclient.Receive(w, r, s.node.cluster, reconfig.MaxPeerAsk, &req) {
			return
		}
		web.WriteJSON(w, http.StatusOK, serve(r.Context(), req))
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

// serveDiskNote takes what another node says of its disk.
func (s *server) serveDiskNote(w http.ResponseWriter, r *http.Request) {
	var n room.Note
	if !peerclient.Receive(w, r, s.node.cluster, peerclient.MaxBody, &n) {
		return
	}
	s.room.Hear(n)
	web.WriteJSON(w, http.StatusOK, struct{}{})
}
