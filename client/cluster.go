package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// changeWait is for how long a node may hold back its answer to a change of the members: they
// wait for each other.
const changeWait = 6 * time.Second

// Member is a node of the cluster.
type Member struct {
	ID         uint64  `json:"id"`
	PeerURL    string  `json:"peer_url"`
	ClientURL  string  `json:"client_url"` // as it tells the others; this client never asks it
	Role       string  `json:"role"`       // voter or learner
	Leader     bool    `json:"leader"`
	Reachable  *bool   `json:"reachable,omitempty"`   // as the leader sees it; nil if that could not be asked
	MatchIndex *uint64 `json:"match_index,omitempty"` // of the log; nil if the leader could not be asked
	Version    string  `json:"version,omitempty"`     // of its program

	// Differs says in what the member has let others in otherwise than the node that
	// answers, for over a minute; "" if in nothing.
	Differs string `json:"doors_differ,omitempty"`
}

// Members are the nodes of the cluster, and the IDs that cannot be used again.
type Members struct {
	Members []Member `json:"members"`
	Removed []uint64 `json:"removed"`
}

// NewMember is a node that is to be added.
type NewMember struct {
	ID      uint64 // 0: the next free one
	PeerURL string
	Role    string // "": a learner, until it has caught up; learner: it stays one; voter: at once
	Force   bool   // also if no reachable majority would be left
}

// MemberChange is what is to become of a member; what is empty stays.
type MemberChange struct {
	PeerURL string
	Role    string // voter or learner
	Force   bool   // also if no reachable majority would be left
}

// Members returns the nodes of the cluster and the IDs that were removed.
func (c *Client) Members(ctx context.Context, opts ...ReadOption) (Members, error) {
	q := make(url.Values)
	if wrong := c.reads(opts, q); wrong != "" {
		return Members{}, invalid("member list", "", "%s", wrong)
	}
	var got Members
	err := c.ask(ctx, &request{op: "member list", method: http.MethodGet, path: "/v1/members", query: q}, &got)
	return got, err
}

func memberPath(id uint64) string { return "/v1/members/" + strconv.FormatUint(id, 10) }

func forced(force bool) url.Values {
	if force {
		return url.Values{"force": {"true"}}
	}
	return nil
}

// AddMember adds a node, and returns it. The same node again is no error if this call may
// have added it: then it has looked what is there.
func (c *Client) AddMember(ctx context.Context, n NewMember) (Member, error) {
	body, err := json.Marshal(struct {
		ID      uint64 `json:"id,omitempty"`
		PeerURL string `json:"peer_url"`
		Role    string `json:"role,omitempty"`
	}{n.ID, n.PeerURL, n.Role})
	if err != nil {
		return Member{}, err
	}
	r := &request{op: "member add", key: n.PeerURL, method: http.MethodPost, path: "/v1/members", query: forced(n.Force), header: sendsJSON, body: body, effect: repeatable, wait: changeWait}
	return c.changeMember(ctx, r, func(m Member) bool {
		return m.PeerURL == n.PeerURL && (n.ID == 0 || m.ID == n.ID)
	})
}

// ChangeMember gives a member another peer URL, role, or both, and returns it. It can be done
// again without harm.
func (c *Client) ChangeMember(ctx context.Context, id uint64, ch MemberChange) (Member, error) {
	body, err := json.Marshal(struct {
		PeerURL string `json:"peer_url,omitempty"`
		Role    string `json:"role,omitempty"`
	}{ch.PeerURL, ch.Role})
	if err != nil {
		return Member{}, err
	}
	r := &request{op: "member update", key: strconv.FormatUint(id, 10), method: http.MethodPatch, path: memberPath(id), query: forced(ch.Force), header: sendsJSON, body: body, effect: repeatable, wait: changeWait}
	return c.changeMember(ctx, r, func(m Member) bool {
		return m.ID == id && (ch.PeerURL == "" || m.PeerURL == ch.PeerURL) && (ch.Role == "" || m.Role == ch.Role)
	})
}

// changeMember makes a change of a member. If it fails and may have happened, done tells by
// the members whether it has.
func (c *Client) changeMember(ctx context.Context, r *request, done func(Member) bool) (Member, error) {
	var got Member
	err := c.ask(ctx, r, &got)
	if e := (*Error)(nil); !errors.As(err, &e) || !e.Unknown {
		return got, err
	}
	members, fault := c.Members(ctx)
	if fault == nil {
		for _, m := range members.Members {
			if done(m) {
				return m, nil
			}
		}
	}
	return Member{}, err
}

// RemoveMember removes a node; its ID cannot be used again. One that was removed before is
// no error, an ID that never was a member's matches NotFound. force removes it also if no
// reachable majority is left.
func (c *Client) RemoveMember(ctx context.Context, id uint64, force bool) error {
	_, err := c.do(ctx, &request{op: "member remove", key: strconv.FormatUint(id, 10), method: http.MethodDelete, path: memberPath(id), query: forced(force), effect: repeatable, wait: changeWait})
	return err
}

// MoveLeader hands leadership to a voter, or with 0 to the best one, and returns who leads.
func (c *Client) MoveLeader(ctx context.Context, id uint64) (leader uint64, err error) {
	body := []byte("{}")
	if id > 0 {
		body = fmt.Appendf(nil, `{"id":%d}`, id)
	}
	var got struct {
		Leader uint64 `json:"leader"`
	}
	err = c.ask(ctx, &request{op: "leader move", method: http.MethodPost, path: "/v1/leader", header: sendsJSON, body: body, effect: repeatable, wait: changeWait}, &got)
	return got.Leader, err
}

// Status is what a node knows of itself; it asks no other for it.
type Status struct {
	ID            uint64     `json:"id"`
	ClusterID     string     `json:"cluster_id"`
	Role          string     `json:"role"`   // leader, candidate, follower or learner
	Leader        uint64     `json:"leader"` // 0: it knows of none
	Term          uint64     `json:"term"`
	CommitIndex   uint64     `json:"commit_index"`
	AppliedIndex  uint64     `json:"applied_index"`
	SnapshotIndex uint64     `json:"snapshot_index"`
	Revision      uint64     `json:"revision"`
	Keys          uint64     `json:"keys"`
	Bytes         uint64     `json:"bytes"` // of all keys and values
	Version       string     `json:"version"`
	BuildRevision string     `json:"build_revision"`
	UptimeSeconds int64      `json:"uptime_seconds"`
	Diverged      bool       `json:"diverged"` // its data is not that of the others, so it serves none
	Disputed      bool       `json:"disputed"`
	CheckedIndex  uint64     `json:"checked_index"`
	CheckedAt     *time.Time `json:"checked_at,omitempty"`
	Level         uint64     `json:"level"`
}

// Status asks one endpoint, which must be one of the client's, once: it says how that
// node is, not how the cluster is.
func (c *Client) Status(ctx context.Context, endpoint string) (Status, error) {
	e := c.endpoints.named(endpoint)
	if e == nil {
		return Status{}, invalid("status", endpoint, "it is none of this client's endpoints")
	}
	var got Status
	err := c.ask(ctx, &request{op: "status", method: http.MethodGet, path: "/v1/status", only: e, bare: true}, &got)
	return got, err
}

// Ready asks one endpoint, which must be one of the client's, once, whether it can serve: it
// has a leader, is a member, and has applied what was committed when it started. If not, the
// error matches NotReady and says why.
func (c *Client) Ready(ctx context.Context, endpoint string) error {
	e := c.endpoints.named(endpoint)
	if e == nil {
		return invalid("ready", endpoint, "it is none of this client's endpoints")
	}
	_, err := c.do(ctx, &request{op: "ready", method: http.MethodGet, path: "/readyz", only: e, bare: true})
	return err
}
