// Package admin answers: what do the HTTP resources about a node and its cluster ask and
// say? They are the members, status and health, backups, metrics and profiles, one file
// each. Each is told what it needs by the node and knows nothing else of it.
package admin

import (
	"fmt"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"time"
)

// StatusAPI answers what a node says of itself.
type StatusAPI struct {
	Get func() NodeStatus
	// Checks are what the node must be to be ready.
	Checks func() []Check
	// Notes are lines about what does not keep it from that, and should be seen to.
	Notes func() string
}

// NodeStatus is the answer to GET /v1/status.
type NodeStatus struct {
	ID            uint64 `json:"id"`
	ClusterID     string `json:"cluster_id"` // in hexadecimal
	Role          string `json:"role"`       // leader, candidate, follower or learner
	Leader        uint64 `json:"leader"`     // 0: none is known
	Term          uint64 `json:"term"`
	CommitIndex   uint64 `json:"commit_index"` // as this node knows it; at least AppliedIndex
	AppliedIndex  uint64 `json:"applied_index"`
	SnapshotIndex uint64 `json:"snapshot_index"` // of the newest snapshot that the log records
	Revision      uint64 `json:"revision"`       // of the store, as applied here
	Keys          uint64 `json:"keys"`
	Bytes         uint64 `json:"bytes"` // of all keys and values
	Version       string `json:"version"`
	BuildRevision string `json:"build_revision"` // package version
	UptimeSeconds int64  `json:"uptime_seconds"`

	// Diverged: the checks of the replicas, or another history, keep this node from serving.
	Diverged bool `json:"diverged"`
	// Disputed: another member's history contradicts this node's, and too few voters
	// answer to tell which one the majority keeps.
	Disputed bool `json:"disputed"`
	// CheckedIndex is the log index of the newest check on which a majority agreed,
	// CheckedAt when this node saw that, missing if it has not in this life.
	CheckedIndex uint64     `json:"checked_index"`
	CheckedAt    *time.Time `json:"checked_at,omitempty"`
	// Level is that of the commands that every member knows; see package state.
	Level uint64 `json:"level"`
}

// ServeStatus answers GET /v1/status from what this node knows. It asks no other
// node, and its error is always nil.
func (s *StatusAPI) ServeStatus(w http.ResponseWriter, _ *http.Request) error {
	web.WriteJSON(w, http.StatusOK, s.Get())
	return nil
}

// Line says in a line how the node does: what keeps it from being ready, or its role.
func (s *StatusAPI) Line() string {
	for _, c := range s.Checks() {
		switch {
		case c.Ok:
		case c.Why != nil:
			return fmt.Sprintf("not ready: not yet true: %s: %v", c.Name, c.Why)
		default:
			return "not ready: not yet true: " + c.Name
		}
	}
	now := s.Get()
	return fmt.Sprintf("ready: node %d is %s in term %d, led by node %d", now.ID, now.Role, now.Term, now.Leader)
}

// Check is one condition that a node must meet to be ready.
type Check struct {
	Name string // as the answer has it: "has a leader"
	Ok   bool
	Why  error // why it fails, and what to do, if there is more to say; else nil
}

// ServeReady answers GET /readyz. If a check fails, it returns problem.ErrNotReady
// with the name of the first one that does. With ?verbose the answer lists all checks
// and the notes, and its status is 503 if one fails.
func (s *StatusAPI) ServeReady(w http.ResponseWriter, r *http.Request) error {
	verbose := r.URL.RawQuery == "verbose"
	if err := web.NoQuery(r); err != nil && !verbose {
		return err
	}
	text, ready := "", true
	for _, c := range s.Checks() {
		mark := "ok  "
		if !c.Ok {
			mark, ready = "FAIL", false
		}
		if verbose || !c.Ok {
			text += mark + " " + c.Name + "\n"
		}
		switch {
		case c.Ok || verbose:
		case c.Why != nil:
			return fmt.Errorf("%w: not yet true: %s: %w", problem.ErrNotReady, c.Name, c.Why)
		default:
			return fmt.Errorf("%w: not yet true: %s", problem.ErrNotReady, c.Name)
		}
	}
	if verbose {
		for _, c := range s.Checks() {
			if c.Why != nil {
				text += "note " + c.Why.Error() + "\n"
			}
		}
		text += s.Notes()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else if text == "" {
		text = "ok\n"
	}
	_, err := fmt.Fprint(w, text)
	return web.IgnoreWriteError(err)
}
