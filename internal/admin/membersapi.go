package admin

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"raftkv/internal/address"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/wait"
	"raftkv/internal/web"
	"strconv"
	"strings"
)

// The routes that change the cluster: /v1/members and /v1/leader.

// MembersAPI serves what concerns the members.
type MembersAPI struct {
	Members *reconfig.Members
	Fresh   *api.Freshness
	Leaders *wait.Leadership
	Current func() membership.Membership // as applied here
	// IsKey reports whether there is a key of a name, as applied here.
	IsKey func(name string) bool
	// Differs says in what a member lets others in otherwise than this node, "" if in nothing.
	Differs func(id uint64) string
}

// roleOp returns the change that a role in a request stands for.
func roleOp(role *string, none, voter, learner membership.Op) (membership.Op, error) {
	switch {
	case role == nil:
		return none, nil
	case *role == "voter":
		return voter, nil
	case *role == "learner":
		return learner, nil
	}
	return 0, fmt.Errorf("%w: role is %q, not voter or learner", problem.ErrBadRequest, web.Clip(*role))
}

// readChange reads the query and the body of a request that changes a member.
func readChange(w http.ResponseWriter, r *http.Request, body any) (force bool, err error) {
	if force, err = web.ParseForce(r, true); err != nil {
		return false, err
	}
	return force, web.ReadJSON(w, r, api.MaxMemberBytes, body)
}

// ServeAddMember serves POST /v1/members.
func (a *MembersAPI) ServeAddMember(w http.ResponseWriter, r *http.Request) error {
	if err := web.NoIdempotencyKey(r); err != nil {
		return err
	}
	var body struct {
		PeerURL string  `json:"peer_url"`
		ID      *uint64 `json:"id"`
		Role    *string `json:"role"`
	}
	force, err := readChange(w, r, &body)
	if err != nil {
		return err
	}
	req := reconfig.Request{Force: force}
	if req.PeerURL, err = address.CheckPeerURL(body.PeerURL); err != nil {
		return fmt.Errorf("%w: %w", problem.ErrBadPeerURL, err)
	}
	if req.Op, err = roleOp(body.Role, membership.OpAdd, membership.OpAddVoter, membership.OpAddLearner); err != nil {
		return err
	}
	if body.ID != nil {
		if err := address.CheckID(*body.ID); err != nil {
			return fmt.Errorf("%w: id: %w", problem.ErrBadRequest, err)
		}
		req.ID = *body.ID
	}
	id, err := a.change(r.Context(), req)
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/v1/members/%d", id))
	return a.answerMember(w, r, id, http.StatusCreated)
}

// change has the cluster make a change of its members or its leader.
func (a *MembersAPI) change(ctx context.Context, req reconfig.Request) (uint64, error) {
	audit.NoteOf(ctx).Member(req.ID, req.PeerURL)
	return a.Members.Change(ctx, req)
}

// ServeMember serves GET, PATCH and DELETE of /v1/members/ID.
func (a *MembersAPI) ServeMember(w http.ResponseWriter, r *http.Request, path string) error {
	id, err := ParseMemberID(path)
	if err != nil {
		return fmt.Errorf("%w: /v1/members/%s: expected a node ID, a positive decimal number", problem.ErrBadRequest, web.Clip(path))
	}
	if err := web.NoIdempotencyKey(r); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		want, err := api.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return err
		}
		if err := a.Fresh.Prepare(w.Header(), r, want); err != nil {
			return err
		}
		return a.answerMember(w, r, id, http.StatusOK)
	case http.MethodPatch:
		return a.patchMember(w, r, id)
	case http.MethodDelete:
		force, err := web.ParseForce(r, true)
		if err != nil {
			return err
		}
		if _, err := a.change(r.Context(), reconfig.Request{Op: membership.OpRemove, ID: id, Force: force}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return web.NotAllowed(w, "GET, HEAD, PATCH, DELETE")
}

// patchMember gives a member another URL or role, or both in one step.
func (a *MembersAPI) patchMember(w http.ResponseWriter, r *http.Request, id uint64) error {
	var body struct {
		PeerURL *string `json:"peer_url"`
		Role    *string `json:"role"`
	}
	force, err := readChange(w, r, &body)
	if err != nil {
		return err
	}
	if body.PeerURL == nil && body.Role == nil {
		return fmt.Errorf("%w: nothing to change; give peer_url or role", problem.ErrBadRequest)
	}
	req := reconfig.Request{ID: id, Force: force}
	if req.Op, err = roleOp(body.Role, membership.OpMove, membership.OpMakeVoter, membership.OpMakeLearner); err != nil {
		return err
	}
	if body.PeerURL != nil {
		if req.PeerURL, err = address.CheckPeerURL(*body.PeerURL); err != nil {
			return fmt.Errorf("%w: %w", problem.ErrBadPeerURL, err)
		}
	}
	if _, err := a.change(r.Context(), req); err != nil {
		return err
	}
	return a.answerMember(w, r, id, http.StatusOK)
}

// answerMember answers with one member as this node now knows it.
func (a *MembersAPI) answerMember(w http.ResponseWriter, r *http.Request, id uint64, status int) error {
	m := a.Current()
	mem, ok := m.Members[id]
	if !ok {
		return problem.ErrMemberUnknown
	}
	leader, _, _ := a.Leaders.Get()
	web.WriteJSON(w, status, a.newMemberStatus(mem, leader, a.Members.View(r.Context())))
	return nil
}

// ServeLeader serves POST /v1/leader.
func (a *MembersAPI) ServeLeader(w http.ResponseWriter, r *http.Request) error {
	if err := web.NoConditions(r); err != nil {
		return err
	}
	if err := web.NoIdempotencyKey(r); err != nil {
		return err
	}
	var body struct {
		ID *uint64 `json:"id"`
	}
	if err := web.ReadJSON(w, r, api.MaxMemberBytes, &body); err != nil {
		return err
	}
	req := reconfig.Request{Op: membership.OpLead}
	if body.ID != nil {
		if err := address.CheckID(*body.ID); err != nil {
			return fmt.Errorf("%w: id: %w", problem.ErrBadRequest, err)
		}
		req.ID = *body.ID
	}
	leader, err := a.change(r.Context(), req)
	if err != nil {
		return err
	}
	web.WriteJSON(w, http.StatusOK, struct {
		Leader uint64 `json:"leader"`
	}{leader})
	return nil
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
	// Version is that of the member's program; see package observe.
	Version string `json:"version,omitempty"`
	// Differs is missing unless the member has let others in otherwise than this node for a while.
	Differs string `json:"doors_differ,omitempty"`
}

// ServeMembers answers GET /v1/members with the members and the removed IDs, as
// applied here. It waits until that is as fresh as the request wants it. Then it asks
// the leader how it sees the members; without an answer it leaves out whether they are
// reachable and how far their logs match.
func (a *MembersAPI) ServeMembers(w http.ResponseWriter, r *http.Request) error {
	want, err := api.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if err := a.Fresh.Prepare(w.Header(), r, want); err != nil {
		return err
	}
	m := a.Current()
	leader, _, _ := a.Leaders.Get()
	view := a.Members.View(r.Context())
	out := struct {
		Members []memberStatus `json:"members"`
		Removed []uint64       `json:"removed"`
	}{Removed: append([]uint64{}, membership.SortedKeys(m.Removed)...)}
	for _, mem := range m.Sorted() {
		out.Members = append(out.Members, a.newMemberStatus(mem, leader, view))
	}
	web.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (a *MembersAPI) newMemberStatus(mem membership.Member, leader uint64, view map[uint64]reconfig.View) memberStatus {
	ms := memberStatus{
		ID: mem.ID, PeerURL: mem.PeerURL, ClientURL: mem.ClientURL, Role: mem.Role(), Leader: mem.ID == leader,
		Version: cmp.Or(a.Members.Version(mem.ID), view[mem.ID].Version), Differs: a.Differs(mem.ID),
	}
	if p, ok := view[mem.ID]; ok {
		ms.Reachable, ms.MatchIndex = &p.Reachable, &p.Match
	}
	return ms
}

// ServeShort serves POST /ID and DELETE /ID.
func (a *MembersAPI) ServeShort(w http.ResponseWriter, r *http.Request, path string) error {
	id, err := ParseMemberID(path)
	if err != nil {
		return fmt.Errorf("%w: %s /%s: POST and DELETE here add and remove nodes and take a node ID, a positive decimal number; "+
			"a key is deleted with DELETE /v1/kv/%s", problem.ErrBadRequest, r.Method, web.Clip(path), url.PathEscape(web.Clip(path)))
	}
	if err := web.NoIdempotencyKey(r); err != nil {
		return err
	}
	req := reconfig.Request{Op: membership.OpRemove, ID: id}
	if req.Force, err = web.ParseForce(r, r.Method == http.MethodDelete); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.Members.Timeout)
	defer cancel()
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxMemberBytes))
		if err != nil {
			return web.BodyError(err)
		}
		req.Op = membership.OpAdd
		if req.PeerURL, err = address.CheckPeerURL(strings.TrimSpace(string(body))); err != nil {
			return fmt.Errorf("%w: %w", problem.ErrBadPeerURL, err)
		}
	} else if !req.Force {
		if err := a.checkNoKey(ctx, path); err != nil {
			return err
		}
	}
	if _, err := a.change(ctx, req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// checkNoKey refuses to remove a node by a number that is also a key: the node
// would be gone for good, and the key may have been meant.
func (a *MembersAPI) checkNoKey(ctx context.Context, path string) error {
	if err := a.Fresh.Now(ctx); err != nil {
		return err
	}
	if !a.IsKey(path) {
		return nil
	}
	return fmt.Errorf("%w: there is a key %s; DELETE /v1/kv/%s deletes the key, DELETE /v1/members/%s removes the node",
		problem.ErrAmbiguous, path, path, path)
}

// ParseMemberID reads a node's ID as it stands in a path.
func ParseMemberID(path string) (uint64, error) {
	id, err := strconv.ParseUint(path, 10, 64)
	if err == nil && strconv.FormatUint(id, 10) != path {
		err = strconv.ErrSyntax
	}
	if err == nil {
		err = address.CheckID(id)
	}
	return id, err
}
