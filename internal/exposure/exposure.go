// Package exposure answers: what of this node is open, and is that said? It looks at
// what the node was told alone: which ports the network reaches, and what stands before
// them. What is open by default, or on purpose, is warned of and not refused, except
// where rights were asked for that the network could read and take.
package exposure

import (
	"context"
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// sayEvery is the time between two warnings of the same. A log that is kept for a day
// has all of them.
const sayEvery = time.Hour

// The openings that there can be; values of the metric's label.
const (
	clientPlain    = "client_plain"
	clientOptional = "client_optional"
	noRights       = "no_rights"
	peerPlain      = "peer_plain"
	peerOptional   = "peer_optional"
)

// openings are all of them, with what they mean for whoever reaches the port.
var openings = []struct{ name, means string }{
	{clientPlain, "the client port is open to the network without TLS: whoever is on the way reads and changes keys, values and tokens"},
	{clientOptional, "the client port takes plain HTTP beside TLS, because of --client-tls=optional: while it does, nothing is protected there"},
	{noRights, "the client port is open to the network without rights: whoever reaches it can read, write, and add and remove nodes"},
	{peerPlain, "the peer port is open to the network without mutual TLS: whoever reaches it can read all data and write raft messages; " +
		"keep it on a private network"},
	{peerOptional, "the peer port takes plain HTTP beside TLS, because of --peer-tls=optional: while it does, nothing is protected there"},
}

// Exposure is what is open of one node. It does not change while the node runs.
type Exposure struct {
	log  *zap.Logger
	open map[string]string // by name: the address that is open
	cfg  config.Config
}

// Of finds out what a node with these settings leaves open.
func Of(cfg config.Config, log *zap.Logger) *Exposure {
	e := &Exposure{log: log, open: make(map[string]string), cfg: cfg}
	client, peer := address.JoinHostPort(cfg.Host, cfg.Port), cfg.PeerListener()
	note := func(name, where string, is bool) {
		if is {
			e.open[name] = where
		}
	}
	beyond := !address.IsLoopback(cfg.Host)
	note(clientPlain, client, beyond && cfg.CertFile == "")
	note(clientOptional, client, cfg.CertFile != "" && cfg.ClientTLS == config.Optional)
	note(noRights, client, beyond && cfg.AuthFile == "")
	note(peerPlain, peer, !address.IsLoopback(address.HostOf(peer)) && cfg.PeerCertFile == "")
	note(peerOptional, peer, cfg.PeerCertFile != "" && cfg.PeerTLS == config.Optional)
	return e
}

// Check returns an error if rights are asked for that would be worth nothing: tokens
// could be read on the way to the client port, or data at the peer port. A port that takes
// plain HTTP as well counts as one without TLS. --insecure-tokens lets all of that be.
func (e *Exposure) Check() error {
	if e.cfg.AuthFile == "" || e.cfg.InsecureTokens {
		return nil
	}
	var wrong []string
	beyond := func(where string) bool { return !address.IsLoopback(address.HostOf(where)) }
	if where := e.open[clientPlain] + e.open[clientOptional]; where != "" && beyond(where) {
		wrong = append(wrong, fmt.Sprintf("the client port %s is reached from the network without TLS, so that tokens can be read on their way "+
			"(--cert-file and --key-file, and no --client-tls=optional)", where))
	}
	if where := e.open[peerPlain] + e.open[peerOptional]; where != "" && beyond(where) {
		wrong = append(wrong, fmt.Sprintf("the peer port %s is reached from the network without mutual TLS, so that whoever reaches it needs no rights "+
			"(--peer-cert-file, --peer-key-file and --peer-trusted-ca-file, and no --peer-tls=optional)", where))
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("--auth-file is given, and %s; listen on loopback, use TLS, or say --insecure-tokens where the network itself is trusted",
		strings.Join(wrong, ", and "))
}

// Run warns of each opening at once, and every hour until ctx ends.
func (e *Exposure) Run(ctx context.Context) error {
	every := time.NewTicker(sayEvery)
	defer every.Stop()
	for {
		e.say()
		select {
		case <-every.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (e *Exposure) say() {
	for _, o := range openings {
		if where, ok := e.open[o.name]; ok {
			e.log.Warn(o.means, zap.String("address", where))
		}
	}
	if e.cfg.AuthFile != "" && e.cfg.InsecureTokens && e.plain() {
		e.log.Warn("tokens may be sent without TLS, because of --insecure-tokens: whoever is on the way can take them")
	}
}

// plain reports whether the client port takes plain HTTP.
func (e *Exposure) plain() bool { return e.cfg.CertFile == "" || e.cfg.ClientTLS == config.Optional }

// Notes returns the lines of GET /readyz?verbose about what is open.
func (e *Exposure) Notes() string {
	var b strings.Builder
	for _, o := range openings {
		if _, ok := e.open[o.name]; ok {
			b.WriteString("note " + o.means + "\n")
		}
	}
	return b.String()
}

// Register adds which openings there are: 1 for each that there is, 0 for the others.
func (e *Exposure) Register(reg prometheus.Registerer) {
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "raftkv_open", Help: "1 if this is open to the network, or would be: see SECURITY.md for what that means.",
	}, []string{"what"})
	for _, o := range openings {
		open.WithLabelValues(o.name).Set(0)
		if _, ok := e.open[o.name]; ok {
			open.WithLabelValues(o.name).Set(1)
		}
	}
	reg.MustRegister(open)
}
