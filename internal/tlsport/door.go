package tlsport

import (
	"context"
	"crypto/tls"
	"fmt"
	"raftkv/internal/certs"
	"raftkv/internal/config"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Door is a port with the certificates that are in force at it. A nil Door is one that
// nothing secures: its methods do nothing.
type Door struct {
	*Port
	Certs *certs.Keeper
}

// expiredEvery is how often connections are looked for whose certificate has expired.
const expiredEvery = time.Second

// ForClients returns the door of the client port, nil if that is not secured. The error says
// which file is wrong.
func ForClients(d config.Doors, log *zap.Logger) (*Door, error) {
	if d.CertFile == "" {
		return nil, nil
	}
	keeper, err := certs.New(certs.Config{
		Log: log, Door: "client", Files: certs.Files{Cert: d.CertFile, Key: d.KeyFile, CA: d.TrustedCAFile},
	})
	if err != nil {
		return nil, fmt.Errorf("TLS of the client port: %w", err)
	}
	auth := tls.NoClientCert
	switch {
	case d.ClientCertAuth:
		auth = tls.RequireAndVerifyClientCert
	case d.TrustedCAFile != "":
		auth = tls.VerifyClientCertIfGiven
	}
	if d.ClientTLS == config.Optional {
		log.Warn("the client port takes plain HTTP beside TLS: what comes that way anybody on its way can read and change; " +
			"restart without --client-tls=optional once all clients use https")
	}
	return NewDoor(New(Config{
		Log: log, Door: "client", TLS: keeper.Server(auth, "h2", "http/1.1"), Optional: d.ClientTLS == config.Optional, Names: certs.Names,
	}), keeper), nil
}

// NewDoor returns a door. When what the keeper has in force changes, connections that would
// not come in any more are ended.
func NewDoor(p *Port, keeper *certs.Keeper) *Door {
	d := &Door{p, keeper}
	p.valid = keeper.StillValid
	keeper.OnChange(func() {
		p.changes.Add(1) // first: each connection is looked at here, or where its handshake ends
		p.Recheck(keeper.StillValid)
	})
	return d
}

// Run looks for new files, and for connections whose certificate has expired, until ctx
// ends. Its error is nil.
func (d *Door) Run(ctx context.Context) error {
	if d == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- d.Certs.Run(ctx) }()
	tick := time.NewTicker(expiredEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			d.Recheck(func(cs *tls.ConnectionState) error {
				if now.Before(certs.Until(cs)) {
					return nil
				}
				return d.Certs.StillValid(cs)
			})
		case <-ctx.Done():
			return <-done
		}
	}
}

// Notes are the lines of /readyz?verbose about what is to be seen to.
func (d *Door) Notes() (text string) {
	if d == nil {
		return ""
	}
	if d.Optional {
		text = fmt.Sprintf("note the %s port takes plain HTTP beside TLS\n", d.Door)
	}
	if err := d.Certs.Trouble(); err != nil {
		text += fmt.Sprintf("note the %s port goes on with the certificates that it had: %v\n", d.Door, err)
	}
	return text
}

// Serves reports whether the port's certificate is for a host.
func (d *Door) Serves(host string) bool {
	return d != nil && d.Certs.Own().VerifyHostname(host) == nil
}

// Register adds what there is to count.
func (d *Door) Register(reg prometheus.Registerer) {
	if d != nil {
		d.Port.Register(reg)
		d.Certs.Register(reg)
	}
}
