package main

import (
	"fmt"
	"net/http"
)

// The routes that change the cluster: /v1/members and /v1/leader.

// roleOp returns the change that a role in a request stands for.
func roleOp(role *string, none, voter, learner changeOp) (changeOp, error) {
	switch {
	case role == nil:
		return none, nil
	case *role == "voter":
		return voter, nil
	case *role == "learner":
		return learner, nil
	}
	return 0, fmt.Errorf("%w: role is %q, not voter or learner", errBadRequest, clip(*role))
}

// readChange reads the query and the body of a request that changes a member.
func readChange(w http.ResponseWriter, r *http.Request, body any) (force bool, err error) {
	if force, err = parseForce(r, true); err != nil {
		return false, err
	}
	return force, readJSON(w, r, maxMemberBytes, body)
}

// serveAddMember serves POST /v1/members.
func (a *api) serveAddMember(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		PeerURL string  `json:"peer_url"`
		ID      *uint64 `json:"id"`
		Role    *string `json:"role"`
	}
	force, err := readChange(w, r, &body)
	if err != nil {
		return err
	}
	req := memberRequest{Force: force}
	if req.PeerURL, err = checkPeerURL(body.PeerURL); err != nil {
		return fmt.Errorf("%w: %w", errBadPeerURL, err)
	}
	if req.Op, err = roleOp(body.Role, opAdd, opAddVoter, opAddLearner); err != nil {
		return err
	}
	if body.ID != nil {
		if err := checkID(*body.ID); err != nil {
			return fmt.Errorf("%w: id: %w", errBadRequest, err)
		}
		req.ID = *body.ID
	}
	id, err := a.members.change(r.Context(), req)
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/v1/members/%d", id))
	return a.answerMember(w, r, id, http.StatusCreated)
}

// serveMember serves GET, PATCH and DELETE of /v1/members/ID.
func (a *api) serveMember(w http.ResponseWriter, r *http.Request, path string) error {
	id, err := parseMemberID(path)
	if err != nil {
		return fmt.Errorf("%w: /v1/members/%s: expected a node ID, a positive decimal number", errBadRequest, clip(path))
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		stale, err := parseQuery(r, true)
		if err != nil {
			return err
		}
		if err := a.prepareRead(w.Header(), r, stale); err != nil {
			return err
		}
		return a.answerMember(w, r, id, http.StatusOK)
	case http.MethodPatch:
		return a.patchMember(w, r, id)
	case http.MethodDelete:
		force, err := parseForce(r, true)
		if err != nil {
			return err
		}
		if _, err := a.members.change(r.Context(), memberRequest{Op: opRemove, ID: id, Force: force}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return notAllowed(w, "GET, HEAD, PATCH, DELETE")
}

// patchMember gives a member another URL or role, or both in one step.
func (a *api) patchMember(w http.ResponseWriter, r *http.Request, id uint64) error {
	var body struct {
		PeerURL *string `json:"peer_url"`
		Role    *string `json:"role"`
	}
	force, err := readChange(w, r, &body)
	if err != nil {
		return err
	}
	if body.PeerURL == nil && body.Role == nil {
		return fmt.Errorf("%w: nothing to change; give peer_url or role", errBadRequest)
	}
	req := memberRequest{ID: id, Force: force}
	if req.Op, err = roleOp(body.Role, opMove, opMakeVoter, opMakeLearner); err != nil {
		return err
	}
	if body.PeerURL != nil {
		if req.PeerURL, err = checkPeerURL(*body.PeerURL); err != nil {
			return fmt.Errorf("%w: %w", errBadPeerURL, err)
		}
	}
	if _, err := a.members.change(r.Context(), req); err != nil {
		return err
	}
	return a.answerMember(w, r, id, http.StatusOK)
}

// answerMember answers with one member as this node now knows it.
func (a *api) answerMember(w http.ResponseWriter, r *http.Request, id uint64, status int) error {
	m, _ := a.kv.membership()
	mem, ok := m.members[id]
	if !ok {
		return errMemberUnknown
	}
	leader, _, _ := a.members.leaders.get()
	writeJSON(w, status, a.newMemberStatus(mem, leader, a.members.view(r.Context())))
	return nil
}

// serveLeader serves POST /v1/leader.
func (a *api) serveLeader(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		ID *uint64 `json:"id"`
	}
	if err := readJSON(w, r, maxMemberBytes, &body); err != nil {
		return err
	}
	req := memberRequest{Op: opLead}
	if body.ID != nil {
		if err := checkID(*body.ID); err != nil {
			return fmt.Errorf("%w: id: %w", errBadRequest, err)
		}
		req.ID = *body.ID
	}
	leader, err := a.members.change(r.Context(), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Leader uint64 `json:"leader"`
	}{leader})
	return nil
}
