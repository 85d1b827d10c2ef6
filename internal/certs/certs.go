// Package certs answers: which certificates are in force, and what do they prove? It
// reads the files of one door, the client port or the peer port, checks that they fit
// together, looks for newer ones, and makes the configurations of TLS by which
// handshakes use what is in force then. Of a certificate it tells the names. It does
// not know who may have a name, or what a name may do.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Files are the files of one door, all of them in PEM.
type Files struct {
	Cert string // the certificate, and behind it those between it and the CA
	Key  string // its private key; may be the same file
	CA   string // who may sign the other side's certificate; "" for nobody
}

// Config is what a Keeper keeps, and for whom.
type Config struct {
	Log   *zap.Logger
	Door  string // "client" or "peer", in logs and metrics
	Files Files

	// Mutual says that both sides are nodes: there must be a CA, and the door's own
	// certificate must be signed by it, and must serve for both sides.
	Mutual bool
	// Name is a DNS name that the door's own certificate must have; "" for none.
	Name string
	// Accept is asked in a handshake about a client's certificate that was verified,
	// and again by StillValid; nil takes all.
	Accept func(*x509.Certificate) error
	// Copies is a directory for private copies of the files in force; "" for none.
	Copies string
	// Every is the time between two looks at the files; 0 for DefaultEvery.
	Every time.Duration
}

// DefaultEvery is the time between two looks at the files.
const DefaultEvery = 3 * time.Second

// readsOfOneLook bounds how often one look reads files that do not fit together, as
// long as they change meanwhile. Whoever swaps a directory of files by a symbolic
// link swaps them all at once, but the files are read one after the other.
const readsOfOneLook = 3

// Keeper keeps the certificates of one door. What is in force is replaced as a whole,
// and only by what is whole.
type Keeper struct {
	cfg   Config
	log   *zap.Logger
	files func(Files) (texts, error) // readFiles, but for tests

	inForce          atomic.Pointer[set]
	reloaded, failed atomic.Uint64

	looking sync.Mutex // held by the one look that there is at a time
	warned  warning    // guarded by looking
	copied  []string   // names of the copies that there are, oldest first; guarded by looking

	mu      sync.Mutex
	trouble error    // see Trouble
	changed []func() // see OnChange
}

// New reads the files and checks them. The error names the file and says what is
// wrong with it. A certificate that has expired, or is not valid yet, is in force all
// the same, with a warning: to stop would help nobody.
func New(cfg Config) (*Keeper, error) {
	if cfg.Every <= 0 {
		cfg.Every = DefaultEvery
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	k := &Keeper{cfg: cfg, log: cfg.Log.With(zap.String("door", cfg.Door)), files: readFiles}
	k.looking.Lock()
	defer k.looking.Unlock()
	s, err := k.read()
	if err != nil {
		return nil, err
	}
	if err := k.prepareCopies(); err != nil {
		return nil, err
	}
	if err := k.copyFiles(s); err != nil {
		return nil, err
	}
	k.inForce.Store(s)
	k.warn(s, time.Now())
	return k, nil
}

// Run looks at the files until ctx ends. Its error is nil.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(k.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			k.Look()
		}
	}
}

// OnChange has f called after each change of what is in force, by the goroutine that
// looks. f must not call Look. Whoever holds connections asks StillValid about them.
func (k *Keeper) OnChange(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed = append(k.changed, f)
}

// Trouble is nil, or says why newer files are not in force.
func (k *Keeper) Trouble() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trouble
}

// Own returns the door's own certificate in force. It is not to be changed.
func (k *Keeper) Own() *x509.Certificate { return k.inForce.Load().pair.Leaf }

// Look compares the files with what is in force, by content. Files that differ and
// are whole come into force; of others Trouble tells.
func (k *Keeper) Look() {
	k.looking.Lock()
	defer k.looking.Unlock()
	old := k.inForce.Load()
	next, err := k.newer(old)
	if err == nil && next != old {
		err = k.copyFiles(next)
	}
	now := time.Now()
	if k.note(err); err == nil && next != old {
		k.inForce.Store(next)
		k.reloaded.Add(1)
		k.log.Info("new certificates are in force", zap.Strings("names", Names(next.pair.Leaf)), zap.Time("until", next.ends()))
		k.warned = warning{}
		k.mu.Lock()
		changed := k.changed[:len(k.changed):len(k.changed)]
		k.mu.Unlock()
		for _, f := range changed {
			f()
		}
	}
	k.warn(k.inForce.Load(), now)
}

// newer returns what the files hold: old if that is the same.
func (k *Keeper) newer(old *set) (*set, error) {
	next, err := k.read()
	switch {
	case err != nil:
		return nil, err
	case next.text.equal(old.text):
		return old, nil
	}
	now := time.Now()
	if wrong := next.wrongAt(now); wrong != nil && old.wrongAt(now) == nil {
		return nil, wrong
	}
	return next, nil
}

// note notes what a look has found; err says why newer files are not in force. The
// log has a line when that changes.
func (k *Keeper) note(err error) {
	k.mu.Lock()
	was := k.trouble
	k.trouble = err
	k.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		k.failed.Add(1)
		k.log.Warn("the files of certificates have changed and cannot be used; the old ones stay in force", zap.Error(err))
	case err == nil && was != nil:
		k.log.Info("the files of certificates can be used again")
	}
}

// read reads the files until they fit together, or do not change any more.
func (k *Keeper) read() (*set, error) {
	text, err := k.files(k.cfg.Files)
	for reads := 1; ; reads++ {
		var s *set
		if err == nil {
			if s, err = k.cfg.judge(text, time.Now()); err == nil {
				return s, nil
			}
		}
		if reads == readsOfOneLook {
			return nil, err
		}
		again, errAgain := k.files(k.cfg.Files)
		if errAgain != nil || again.equal(text) {
			return nil, err
		}
		text, err = again, nil
	}
}

// Names returns by which names a certificate can be known: its DNS and URI names, and
// only without any its common name.
func Names(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 && c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	return names
}

// errNoName is the end of a handshake whose caller did not say whom it expects.
var errNoName = errors.New("no name was demanded of the server; a fault in the program")

// Server returns a configuration for whoever accepts connections. Each handshake uses
// what is in force when it begins. Certificates of clients are always verified against
// the CA in force, also when auth alone would not demand it; without a CA none passes.
// There are no session tickets, so nobody comes back past that.
func (k *Keeper) Server(auth tls.ClientAuthType, alpn ...string) *tls.Config {
	switch auth {
	case tls.RequestClientCert:
		auth = tls.VerifyClientCertIfGiven
	case tls.RequireAnyClientCert:
		auth = tls.RequireAndVerifyClientCert
	}
	of := func(s *set) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: alpn, SessionTicketsDisabled: true,
			Certificates: []tls.Certificate{s.pair}, ClientCAs: s.pool, ClientAuth: auth,
			VerifyConnection: func(cs tls.ConnectionState) error { return k.accept(&cs) },
		}
	}
	type made struct {
		of  *set
		cfg *tls.Config
	}
	var last atomic.Pointer[made]
	outer := of(k.inForce.Load())
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s, m := k.inForce.Load(), last.Load()
		if m == nil || m.of != s {
			m = &made{s, of(s)}
			last.Store(m)
		}
		return m.cfg, nil
	}
	return outer
}

func (k *Keeper) accept(cs *tls.ConnectionState) error {
	if k.cfg.Accept == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	return k.cfg.Accept(cs.PeerCertificates[0])
}

// Client returns a configuration for whoever dials a server that must have this name,
// a DNS name or an IP address. A DNS name must be in the server's certificate as it
// is: a wildcard would stand for all members. With an empty name no handshake
// succeeds. Each handshake uses what is in force when it takes place.
func (k *Keeper) Client(serverName string) *tls.Config {
	cfg := k.ClientAccepting(func(c *x509.Certificate) error {
		if serverName == "" {
			return errNoName
		}
		return hasName(c, serverName)
	})
	cfg.ServerName = serverName
	return cfg
}

// ClientAccepting is Client for whoever does not know the server's name but its form:
// accept is asked about the server's certificate once it was verified against the CA
// in force. With nil no handshake succeeds.
func (k *Keeper) ClientAccepting(accept func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &k.inForce.Load().pair, nil
		},
		// crypto/tls verifies against roots that are fixed when the configuration is
		// made, and those here are replaced. So it is told not to, and VerifyConnection,
		// which it calls in every handshake, verifies chain, time, usage and name.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if accept == nil {
				return errNoName
			}
			if err := k.inForce.Load().verify(&cs, x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			return accept(cs.PeerCertificates[0])
		},
	}
}

// StillValid says whether the certificate that a client came with would let it in now:
// nil, or why not. One that came without a certificate has nothing that can end.
func (k *Keeper) StillValid(cs *tls.ConnectionState) error {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return nil
	}
	if err := k.inForce.Load().verify(cs, x509.ExtKeyUsageClientAuth); err != nil {
		return err
	}
	return k.accept(cs)
}

// Until returns when the certificate that a client came with stops being valid by
// time alone: the zero time if it came without one. StillValid has the last word.
func Until(cs *tls.ConnectionState) time.Time {
	var until time.Time
	for _, chain := range cs.VerifiedChains {
		if _, end := span(chain); end.After(until) {
			until = end
		}
	}
	return until
}

// verify verifies the certificates of the other side as of now.
func (s *set) verify(cs *tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the other side has shown no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: s.pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("certificate of %q: %w", Names(cs.PeerCertificates[0]), err)
	}
	return nil
}
