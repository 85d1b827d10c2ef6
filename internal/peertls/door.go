// Package peertls answers: which member is at the other end of a connection between
// nodes? It secures what the peer listener accepts and what this node dials, by
// certificates that both sides show, and says whom the certificate of a connection
// lets speak. It does not know what is said there.
package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/certs"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/refusal"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Who is who.
//
// The certificate of a member has a DNS name that the member's ID is part of
// (config.Doors.MemberName). Whoever dials a member demands that name, whatever
// the address is; so certificates need no addresses. Who is dialed demands a name of
// that form, and lets its owner speak for that member and for no other: for what
// raft's messages say of their sender, and for what requests of our own say of theirs
// (peerclient.SenderIs). Where the name has no ID, it proves membership alone.

const (
	// handshakeLimit is how long a handshake may take, and the wait for its first byte.
	handshakeLimit = 5 * time.Second
	// CopiesName is the directory, within the data directory, of copies of the
	// certificates, which rafthttp reads.
	CopiesName = "peer-tls"
)

// alpn is all that is spoken between nodes.
const alpn = "http/1.1"

// Door is the TLS of a node towards its peers. A nil Door speaks plain HTTP.
type Door struct {
	config.Doors
	tls *tlsport.Door
	// members returns where the members are, by ID.
	members atomic.Pointer[func() map[uint64]string]
}

// Open reads the node's certificates for its peers, and returns a client that asks as
// they want it. The door is nil if there are none to be read. The error says which file
// is wrong, and why. The files are followed until ctx ends: a node may wait long to join.
func Open(ctx context.Context, cfg config.Config, log *zap.Logger) (*peerclient.Client, *Door, error) {
	ask := peerclient.New()
	d, err := open(cfg, log)
	if d != nil {
		ask.Secure(d.dial, d.optional())
		d.OnChange(ask.Forget)
		go func() { _ = d.tls.Run(ctx) }() // its error is nil
	}
	return ask, d, err
}

func open(cfg config.Config, log *zap.Logger) (*Door, error) {
	if cfg.PeerCertFile == "" {
		return nil, nil
	}
	log = log.Named("peer-tls")
	d := &Door{Doors: cfg.Doors}
	keeper, err := certs.New(certs.Config{
		Log: log, Door: "peer", Mutual: true, Name: cfg.MemberName(cfg.ID), Accept: d.accept,
		Files: certs.Files{Cert: cfg.PeerCertFile, Key: cfg.PeerKeyFile, CA: cfg.PeerTrustedCAFile},
	})
	if err != nil {
		return nil, fmt.Errorf("TLS between members: %w", err)
	}
	d.tls = tlsport.NewDoor(tlsport.New(tlsport.Config{
		Log: log, Door: "peer", TLS: keeper.Server(tls.RequireAndVerifyClientCert, alpn), Optional: d.optional(),
		Names: func(c *x509.Certificate) []string { return c.DNSNames },
	}), keeper)
	d.KnowMembers(func() map[uint64]string {
		first := make(map[uint64]string)
		for _, p := range cfg.Cluster {
			first[p.ID] = p.URL // those of a --join have no ID
		}
		return first
	})
	if !d.NamesOneMember() {
		log.Warn("--peer-allowed-name has no {id}: a certificate proves that its holder is a member, not which one",
			zap.String("name", d.PeerAllowedName))
	}
	if d.optional() {
		log.Warn("the peer port takes plain HTTP beside TLS, so nothing is protected: " +
			"restart without --peer-tls=optional once all peer URLs are https")
	}
	return d, nil
}

func (d *Door) optional() bool { return d.PeerTLS == config.Optional }

// KnowMembers has the members be looked up where members says, by their URLs, to know
// what name to demand of whom.
func (d *Door) KnowMembers(members func() map[uint64]string) {
	if d != nil {
		d.members.Store(&members)
	}
}

// Copy keeps copies of the certificates in the data directory, for Files, or removes those of
// before if there are no certificates any more. It is called by whoever has its lock.
func (d *Door) Copy(dataDir string) error {
	if d == nil {
		return certs.RemoveCopies(filepath.Join(dataDir, CopiesName))
	}
	return d.tls.Certs.KeepCopies(filepath.Join(dataDir, CopiesName))
}

// Files names files with the certificate, the private key and the CAs in force, for
// rafthttp, which reads them by itself; ok is false if there are none.
func (d *Door) Files() (f certs.Files, ok bool) {
	if d == nil {
		return certs.Files{}, false
	}
	return d.tls.Certs.CopiedFiles(), true
}

// CheckURL says why this node does not dial a URL; nil: it does.
func (d *Door) CheckURL(url string) error {
	switch https := address.IsHTTPS(url); {
	case https && d == nil:
		return fmt.Errorf("%s needs TLS, and this node has no --peer-cert-file", url)
	case !https && d != nil && !d.optional():
		return fmt.Errorf("%s is without TLS, and this node has no --peer-tls=optional", url)
	}
	return nil
}

// CheckOwn says so where the other members cannot reach this node at its own peer URL: that
// of the members, or, before it is one, that of --cluster. It is no reason not to start: what
// a start knows of the members may be old.
func (d *Door) CheckOwn(own address.Peer, m membership.Membership, log *zap.Logger) {
	if me, ok := m.Members[own.ID]; ok {
		own.URL = me.PeerURL
	}
	if err := d.CheckURL(own.URL); err != nil {
		log.Warn("the other members do not reach this node at its own peer URL: PATCH /v1/members/ID changes it, "+
			"and --peer-tls=optional takes both schemes meanwhile", zap.Error(err))
	}
}

// Listen secures what a listener accepts.
func (d *Door) Listen(l net.Listener) net.Listener {
	if d == nil {
		return l
	}
	return d.tls.Listen(l, handshakeLimit)
}

// OnChange has f called after each change of the certificates in force.
func (d *Door) OnChange(f func()) {
	if d != nil {
		d.tls.Certs.OnChange(f)
	}
}

// Run does nothing: Open has begun to follow the files.
func (d *Door) Run(context.Context) error { return nil }

// Notes are the lines of /readyz?verbose about what is to be seen to.
func (d *Door) Notes() string {
	if d == nil {
		return ""
	}
	return d.tls.Notes()
}

// Register adds what there is to count.
func (d *Door) Register(reg prometheus.Registerer) {
	if d != nil {
		d.tls.Register(reg)
	}
}

// accept takes a certificate that was verified if it has the name of any member.
func (d *Door) accept(c *x509.Certificate) error {
	if slices.ContainsFunc(c.DNSNames, d.isMembers) {
		return nil
	}
	return fmt.Errorf("the certificate is for %.300q, and members have the name %s", certs.Names(c), d.PeerAllowedName)
}

func (d *Door) isMembers(name string) bool {
	if !d.NamesOneMember() {
		return strings.EqualFold(name, d.PeerAllowedName)
	}
	_, ok := d.memberOf(name)
	return ok
}

// memberOf returns the member whose name a DNS name is.
func (d *Door) memberOf(name string) (id uint64, ok bool) {
	before, after, _ := strings.Cut(d.PeerAllowedName, config.IDPlace)
	name = strings.ToLower(name)
	name, ok = strings.CutPrefix(name, before)
	if ok {
		name, ok = strings.CutSuffix(name, after)
	}
	if !ok {
		return 0, false
	}
	id, err := address.ParseID(name)
	return id, err == nil && d.MemberName(id) == before+name+after
}

// dial opens a secured connection. If a member is known to be at the address, its name
// is demanded, else that of any member. It has a limit of its own: net/http goes on dialing
// for whoever asks next, although the question's time is up.
func (d *Door) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	conn, err := peerclient.NewDialer().DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(conn, d.clientConfig(addr))
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, fmt.Errorf("TLS with %s: %w", addr, err)
	}
	return secured, nil
}

func (d *Door) clientConfig(addr string) *tls.Config {
	cfg := d.tls.Certs.ClientAccepting(d.accept)
	for id, url := range (*d.members.Load())() {
		if id != 0 && address.HostPortOf(url) == addr {
			cfg = d.tls.Certs.Client(d.MemberName(id))
		}
	}
	if !d.NamesOneMember() {
		cfg = d.tls.Certs.Client(d.PeerAllowedName)
	}
	cfg.NextProtos = []string{alpn}
	return cfg
}

// Identify has the requests that h serves know whose they are (peerclient.SenderIs).
func (d *Door) Identify(h http.Handler) http.Handler {
	if d == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(peerclient.WithSender(r.Context(), func(is func(id uint64) bool) error {
			return d.speaks(web.ClientOf(r.Context()), is)
		})))
	})
}

// speaks says why nobody of those whom is names can be at the other end of a
// connection; nil: one can.
func (d *Door) speaks(c *web.Client, is func(id uint64) bool) error {
	refused := refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedIdentity}
	switch {
	case (c == nil || !c.TLS) && d.optional():
		return nil
	case c == nil || !c.TLS:
		refused.Reason = "the connection is without TLS"
		return refused
	case !d.NamesOneMember():
		return nil // the handshake has seen to it
	}
	for _, name := range c.Names {
		if id, ok := d.memberOf(name); ok && is(id) {
			return nil
		}
	}
	refused.Reason = fmt.Sprintf("the certificate, for %.300q, does not let its holder speak for that member", c.Names)
	return refused
}
