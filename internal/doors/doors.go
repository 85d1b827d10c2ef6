// Package doors answers: how does each node of the cluster let others in, and do they agree?
// A node publishes what its flags and files say of its two ports and of the rights of
// clients. Others go by it where a mistake on one node would open all: a node without rights
// in a cluster that has them serves nobody, and a member gets a URL with https only once all
// can reach it. What is published is kept in the state, and decides nothing there.
package doors

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"strings"
)

// TLS is what a port asks for. The values are in what nodes publish, for ever.
type TLS uint64

// What a port asks for.
const (
	None     TLS = 0 // it speaks plain HTTP
	Required TLS = 1
	Optional TLS = 2 // it takes both
)

func (t TLS) String() string { return nameOf([]string{"none", "required", "optional"}, uint64(t)) }

// Rights is what a node goes by. The values are in what nodes publish, for ever.
type Rights uint64

// What a node goes by.
const (
	NoRights Rights = 0 // whoever comes may do all, and so it is on all nodes
	HasFile  Rights = 1 // it has an auth file
	Off      Rights = 2 // whoever comes may do all, because a flag says so
	Lacking  Rights = 3 // it has no file, in a cluster with rights: it serves nobody
	// Everybody: it has an auth file by which whoever comes may do all. That takes nothing
	// away on nodes that have none yet, so that rights can be switched on node by node.
	Everybody Rights = 4
)

func (r Rights) String() string {
	return nameOf([]string{"none", "on", "off", "lacking", "on for everybody"}, uint64(r))
}

// close reports whether a member that goes by it closes those that have no auth file. What a
// newer program goes by is not known here, so it does.
func (r Rights) close() bool { return r == HasFile || r == Lacking || r > Everybody }

// nameOf names a value that a newer program may have published.
func nameOf(names []string, value uint64) string {
	if value < uint64(len(names)) {
		return names[value]
	}
	return fmt.Sprintf("of a newer program (%d)", value)
}

// Doors is how a node lets others in.
type Doors struct {
	Clients TLS  // at the client port
	Peers   TLS  // at the peer port
	Dials   bool // it can reach members whose URL has https
	Rights  Rights
	File    uint64 // the beginning of the hash of its auth file; 0 without one
}

// File is what counts of an auth file that is in force.
type File struct {
	Hash      uint64 // its beginning; see HashOf
	Everybody bool   // whoever shows nothing may do all
}

// Of returns the doors that flags ask for, with the auth file that is in force.
func Of(flags *config.Doors, file File) Doors {
	d := Doors{Clients: tlsOf(flags.CertFile, flags.ClientTLS), Peers: tlsOf(flags.PeerCertFile, flags.PeerTLS)}
	d.Dials = d.Peers != None
	switch {
	case flags.Auth == config.AuthOff:
		d.Rights = Off
	case flags.AuthFile != "" && file.Everybody:
		d.Rights, d.File = Everybody, file.Hash
	case flags.AuthFile != "":
		d.Rights, d.File = HasFile, file.Hash
	}
	return d
}

func tlsOf(certFile, mode string) TLS {
	switch {
	case certFile == "":
		return None
	case mode == config.Optional:
		return Optional
	}
	return Required
}

// Encode returns what a node publishes: nothing without any doors, so that a plain cluster
// has nothing to say. A new field goes to the end: programs that do not know it pass over
// it.
func (d Doors) Encode() string {
	return string(record.AppendOptional(nil, uint64(d.Clients), uint64(d.Peers), uint64(record.BoolByte(d.Dials)), uint64(d.Rights), d.File))
}

// decode reads what a node has published. False: it cannot be read.
func decode(published string) (d Doors, ok bool) {
	if published == "" {
		return d, true
	}
	r := record.Reader{B: []byte(published)}
	d = Doors{Clients: TLS(r.Optional()), Peers: TLS(r.Optional()), Dials: r.Optional() == 1, Rights: Rights(r.Optional()), File: r.Optional()}
	return d, !r.Bad
}

// published returns the doors of a member. False: its program has not said any yet, or they
// cannot be read.
func published(mem membership.Member) (d Doors, ok bool) {
	d, ok = decode(mem.Doors)
	return d, ok && mem.Level >= state.DoorsLevel
}

// HashOf returns what stands for an auth file whose SHA-256 is sum.
func HashOf(sum [32]byte) uint64 { return binary.LittleEndian.Uint64(sum[:]) }

// against says in what d differs from a node's own doors, "" if in nothing.
func (d Doors) against(own Doors) string {
	var all []string
	differ := func(what string, its, ours fmt.Stringer) {
		if its != ours {
			all = append(all, fmt.Sprintf("%s: %v, here %v", what, its, ours))
		}
	}
	differ("TLS for clients", d.Clients, own.Clients)
	differ("TLS between members", d.Peers, own.Peers)
	if d.Peers == own.Peers && d.Dials != own.Dials {
		all = append(all, fmt.Sprintf("reaches members by https: %v, here %v", d.Dials, own.Dials))
	}
	differ("rights", d.Rights, own.Rights)
	if d.Rights == own.Rights && d.File != own.File {
		all = append(all, "another auth file")
	}
	return strings.Join(all, "; ")
}
