package main

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
)

// statusReporter answers what a node says of itself.
type statusReporter struct {
	id       uint64
	cluster  uint64
	kv       *kvstore
	node     *raftNode
	began    time.Time
	caughtUp *atomic.Bool
}

// nodeStatus is the answer to GET /v1/status.
type nodeStatus struct {
	ID            uint64 `json:"id"`
	ClusterID     string `json:"cluster_id"`
	Role          string `json:"role"`
	Leader        uint64 `json:"leader"`
	Term          uint64 `json:"term"`
	CommitIndex   uint64 `json:"commit_index"`
	AppliedIndex  uint64 `json:"applied_index"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	Revision      uint64 `json:"revision"`
	Keys          uint64 `json:"keys"`
	Bytes         uint64 `json:"bytes"`
	Version       string `json:"version"`
	BuildRevision string `json:"build_revision"` // version.go
	UptimeSeconds int64  `json:"uptime_seconds"`

	// Diverged: the checks of the replicas keep this node from serving.
	Diverged bool `json:"diverged"`
	// CheckedIndex is the newest checkpoint on which a majority agreed, and
	// CheckedAt when this node saw that, missing if it has not in this life.
	CheckedIndex uint64     `json:"checked_index"`
	CheckedAt    *time.Time `json:"checked_at,omitempty"`
	// Level is that of the commands that every member knows; see level.go.
	Level uint64 `json:"level"`
}

func (s *statusReporter) get() nodeStatus {
	rs, ks := s.node.status.Load(), s.kv.status()
	return nodeStatus{
		ID: s.id, ClusterID: strconv.FormatUint(s.cluster, 16),
		Role: s.role(rs.role), Leader: rs.leader, Term: rs.term,
		CommitIndex: max(rs.commit, ks.index), AppliedIndex: ks.index,
		SnapshotIndex: s.node.storage.snapIndex.Load(), Revision: ks.revision, Keys: ks.keys, Bytes: ks.bytes,
		Version: thisBuild().version, BuildRevision: thisBuild().revision, UptimeSeconds: int64(time.Since(s.began).Seconds()),
		Diverged: s.kv.sound() != nil, CheckedIndex: ks.checked, CheckedAt: s.kv.agreement.seen.Load(), Level: ks.level,
	}
}

func (s *statusReporter) role(role raft.StateType) string {
	m, _ := s.kv.membership()
	switch {
	case role == raft.StateLeader:
		return "leader"
	case role != raft.StateFollower:
		return "candidate"
	case m.members[s.id].Learner:
		return "learner"
	}
	return "follower"
}

func (s *statusReporter) serveStatus(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.get())
	return nil
}

// checks are what a node must be to be ready.
func (s *statusReporter) checks() []check {
	m, _ := s.kv.membership()
	_, isMember := m.members[s.id]
	return []check{
		{"has a leader", s.node.status.Load().leader != 0},
		{"is a member", isMember},
		{"has caught up", s.caughtUp.Load()},
		{"has loaded its data", !s.kv.loading.Load()},
		{"agrees with the other replicas", s.kv.sound() == nil},
		{"has a disk that answers", !s.node.disk.hanging.Load()},
		{"is not loading a snapshot", !s.kv.pulse.loading()},
	}
}

type check struct {
	name string
	ok   bool
}

func (s *statusReporter) serveReady(w http.ResponseWriter, r *http.Request) error {
	verbose := r.URL.RawQuery == "verbose"
	if err := noQuery(r); err != nil && !verbose {
		return err
	}
	text, ready := "", true
	for _, c := range s.checks() {
		mark := "ok  "
		if !c.ok {
			mark, ready = "FAIL", false
		}
		if verbose || !c.ok {
			text += mark + " " + c.name + "\n"
		}
		if !c.ok && !verbose {
			return fmt.Errorf("%w: not yet true: %s", errNotReady, c.name)
		}
	}
	if verbose {
		text += s.notes()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else if text == "" {
		text = "ok\n"
	}
	_, err := fmt.Fprint(w, text)
	return ignoreWriteError(err)
}

// leaderContact returns how long ago, in milliseconds, this node last heard
// from a leader or, leading, from a majority that follows it. False: never.
func (s *statusReporter) leaderContact() (ms int64, ok bool) {
	at := s.node.contacts.leaderHeard()
	switch {
	case at == nil:
		return 0, false
	case at.IsZero():
		return 0, true
	}
	return time.Since(*at).Milliseconds(), true
}

// memberStatus is one member in the answers of /v1/members. What only the
// leader knows is missing when the leader could not be asked.
type memberStatus struct {
	ID         uint64  `json:"id"`
	PeerURL    string  `json:"peer_url"`
	ClientURL  string  `json:"client_url"`
	Role       string  `json:"role"`
	Leader     bool    `json:"leader"`
	Reachable  *bool   `json:"reachable,omitempty"`
	MatchIndex *uint64 `json:"match_index,omitempty"`
	// Version is that of the member's program; see memberversions.go.
	Version string `json:"version,omitempty"`
}

func (a *api) serveMembers(w http.ResponseWriter, r *http.Request) error {
	stale, err := parseQuery(r, true)
	if err != nil {
		return err
	}
	if err := a.prepareRead(w.Header(), r, stale); err != nil {
		return err
	}
	m, _ := a.kv.membership()
	leader, _, _ := a.members.leaders.get()
	view := a.members.view(r.Context())
	out := struct {
		Members []memberStatus `json:"members"`
		Removed []uint64       `json:"removed"`
	}{Removed: append([]uint64{}, sortedKeys(m.removed)...)}
	for _, mem := range m.sorted() {
		out.Members = append(out.Members, a.newMemberStatus(mem, leader, view))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (a *api) newMemberStatus(mem member, leader uint64, view map[uint64]peerView) memberStatus {
	ms := memberStatus{
		ID: mem.ID, PeerURL: mem.PeerURL, ClientURL: mem.ClientURL, Role: roleName(mem.Learner), Leader: mem.ID == leader,
		Version: cmp.Or(a.members.version(mem.ID), view[mem.ID].Version),
	}
	if p, ok := view[mem.ID]; ok {
		ms.Reachable, ms.MatchIndex = &p.Reachable, &p.Match
	}
	return ms
}

// clientHosts returns the names, beside IP literals and localhost, under which
// clients may address this node.
func clientHosts(cfg config, port int) map[string]bool {
	hosts := make(map[string]bool)
	for _, h := range cfg.AllowedHosts {
		hosts[h] = true
	}
	hosts[hostOfURL(cfg.clientURL(port))] = true
	return hosts
}
