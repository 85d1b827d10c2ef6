package main

import (
	"context"
	"net/http"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/peerport"
	"raftkv/internal/reconfig"
	"raftkv/internal/room"
	"raftkv/internal/transport"
	"raftkv/internal/version"
	"raftkv/internal/web"
)

// peerRoutes are the routes of our own on the peer listener, beside rafthttp's.
// They carry what a node must know before it takes part, and what only the leader
// knows.
func (s *server) peerRoutes() map[string]http.HandlerFunc {
	members := s.node.admission.ForMembers
	return map[string]http.HandlerFunc{
		"GET " + transport.LinkPath + "{id}": members(s.node.links.Serve),
		"GET " + reconfig.ClusterPath: func(w http.ResponseWriter, r *http.Request) {
			web.WriteJSON(w, http.StatusOK, s.clusterInfo(r.Context()))
		},
		"GET " + peerclient.ViewPath: members(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "" {
				s.node.doubts.ServeStand(w, r)
				return
			}
			web.WriteJSON(w, http.StatusOK, s.members.LeaderView(r.Context()))
		}),
		"POST " + room.Path:           members(s.room.ServeNote(s.node.cluster)),
		"POST " + reconfig.MemberPath: s.members.Handler(s.members.Serve),
		"POST " + reconfig.JoinPath:   s.members.Handler(s.members.ServeJoin),
	}
}

func (s *server) guardConfig() peerport.Config {
	return peerport.Config{
		Log: s.log, ID: s.cfg.ID, Cluster: s.node.cluster, Dir: s.cfg.DataDir, Admission: &s.node.admission, Refusals: s.node.refusals,
		HoldStreams: s.node.links.HoldStreams, Identify: s.identify, KeepFree: s.room.Keep.Load, NotStored: s.storage.Trouble.NotStored,
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
	if s.node.admission.Remains(ctx) != nil {
		return info // that it was removed, and no more
	}
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
