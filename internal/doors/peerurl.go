package doors

import (
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
)

// CheckURL returns nil, or why a change may not give a member the URL that it names. With
// https, all members have to know what that is and to be able to go there; a member that
// takes nothing but TLS cannot be reached by http, and dials nobody there. It is asked by the leader before it
// proposes a change: what nodes publish may change at any time, so apply does not go by it.
func CheckURL(m membership.Membership, level uint64, c membership.Change) error {
	switch {
	case c.PeerURL == "" || c.Op == membership.OpRemove:
		return nil
	case !address.IsHTTPS(c.PeerURL):
		return checkPlain(m, c)
	case level < state.DoorsLevel:
		return fmt.Errorf("%w: a peer URL with https takes level %d, and the cluster is at %d; it rises once every member runs, with a program that knows it",
			problem.ErrUpgrading, state.DoorsLevel, level)
	}
	for _, mem := range m.Sorted() {
		switch d, ok := published(mem); {
		case !ok:
			return fmt.Errorf("%w: member %d has not said yet whether it can reach a peer URL with https; it does once it runs", problem.ErrUpgrading, mem.ID)
		case !d.Dials:
			return fmt.Errorf("%w: member %d has no certificate for other members, and could not reach %s; start it with --peer-cert-file, --peer-key-file and --peer-trusted-ca-file",
				problem.ErrUpgrading, mem.ID, c.PeerURL)
		}
	}
	return nil
}

// checkPlain is CheckURL of a URL with http: the member must answer there, if it is there
// already, and the others must dial it.
func checkPlain(m membership.Membership, c membership.Change) error {
	for _, mem := range m.Sorted() {
		switch d, ok := published(mem); {
		case !ok || d.Peers != Required || !address.IsHTTPS(mem.PeerURL):
		case mem.ID == c.ID:
			return fmt.Errorf("%w: member %d takes nothing but TLS, and could not be reached at %s; start it with --peer-tls=optional first",
				problem.ErrBadPeerURL, mem.ID, c.PeerURL)
		default:
			return fmt.Errorf("%w: member %d dials nobody without TLS, and could not reach %s; use https, or start all members with --peer-tls=optional first",
				problem.ErrBadPeerURL, mem.ID, c.PeerURL)
		}
	}
	return nil
}
