package command

import (
	"errors"
	"raftkv/client"
)

// What commands need of package client.

// isNo reports whether an error of a client says no, without anything being wrong.
func isNo(err error) bool {
	return errors.Is(err, client.NotFound) || errors.Is(err, client.PreconditionFailed) || errors.Is(err, client.NoSuchLease)
}

// Client returns a client for the cluster that the flags of a Remote command name. The
// caller closes it.
func (o *Call) Client() (*client.Client, error) {
	c := &o.Connection
	cfg := client.Config{Endpoints: c.Endpoints, Timeout: c.Timeout}
	switch {
	case c.TokenFile != "":
		cfg.TokenSource = client.TokenFile(c.TokenFile)
	case c.Token != "":
		cfg.TokenSource = client.Token(c.Token)
	}
	if c.CACert != "" || c.Cert != "" {
		cfg.TLS = client.TLSFiles(c.CACert, c.Cert, c.Key)
	}
	return client.New(cfg)
}
