// Package api answers the HTTP resources beside the keys: members, status and
// health, backups, metrics and profiles, one file each. Freshness, which reads of keys
// share, says how fresh an answer is. Each resource is told what it needs by the node
// and knows nothing else of it.
package api

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
	BuildRevision string `json:"build_revision"` // package version
	UptimeSeconds int64  `json:"uptime_seconds"`

	// Diverged: the checks of the replicas keep this node from serving.
	Diverged bool `json:"diverged"`
	// CheckedIndex is the newest checkpoint on which a majority agreed, and
	// CheckedAt when this node saw that, missing if it has not in this life.
	CheckedIndex uint64     `json:"checked_index"`
	CheckedAt    *time.Time `json:"checked_at,omitempty"`
	// Level is that of the commands that every member knows; see package state.
	Level uint64 `json:"level"`
}

func (s *StatusAPI) ServeStatus(w http.ResponseWriter, _ *http.Request) error {
	web.WriteJSON(w, http.StatusOK, s.Get())
	return nil
}

type Check struct {
	Name string
	Ok   bool
}

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
		if !c.Ok && !verbose {
			return fmt.Errorf("%w: not yet true: %s", problem.ErrNotReady, c.Name)
		}
	}
	if verbose {
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
