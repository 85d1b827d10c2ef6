package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultTimeout bounds a call, with all its attempts, if Config.Timeout is 0.
const DefaultTimeout = 30 * time.Second

// Config says where the cluster is and how a client proves who it is. Only Endpoints
// is required.
type Config struct {
	// Endpoints are the base URLs of nodes, such as http://127.0.0.1:12380, in the order
	// in which they are tried: the first one that answers is used until it fails. A URL has a
	// scheme, a host and a port, and nothing else. Only these are ever asked: what the
	// cluster says of its members' addresses is not followed.
	Endpoints []string

	// TokenSource returns the token that goes with each attempt, and is asked for each, so
	// that tokens can rotate; it should keep what is costly to get. Nil, or an empty token,
	// sends none. A token goes over https or to a loopback address, and nowhere else.
	TokenSource func(context.Context) (string, error)

	// TLS returns the configuration of a new connection to an https endpoint, and is
	// asked for each, so that files can rotate. Nil trusts the system's roots and shows no
	// certificate.
	TLS func() (*tls.Config, error)

	// Transport sends the requests; TLS is then its own affair. Nil is a transport of this
	// client alone, which keeps connections open, opens as many as there are requests at
	// the same time, and goes through no proxy, whatever the environment says.
	Transport http.RoundTripper

	// Timeout bounds a call with all its attempts, where its context does not end sooner; 0
	// is DefaultTimeout. Watches, backups and lists of one revision take as long as their
	// context lets them: they end when nothing more comes.
	Timeout time.Duration
}

// Client is a client of one cluster. Its methods may be called from many goroutines. A
// program needs one, and passes it around: connections are kept in it.
type Client struct {
	endpoints *endpoints
	transport http.RoundTripper
	own       bool // transport was made here, and reports what was sent
	token     func(context.Context) (string, error)
	timeout   time.Duration

	revision atomic.Uint64
	cluster  atomic.Pointer[string] // the Raftkv-Cluster-Id of the first answer

	closing context.Context // done once Close was called
	closed  context.CancelCauseFunc
	once    sync.Once
}

// New makes a client. It connects to nothing yet: an error is one of the configuration.
func New(cfg Config) (*Client, error) {
	e, err := newEndpoints(cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout < 0 {
		return nil, errors.New("client: Config.Timeout is negative")
	}
	c := &Client{endpoints: e, transport: cfg.Transport, token: cfg.TokenSource, timeout: cfg.Timeout}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.transport == nil {
		c.transport, c.own = newTransport(cfg.TLS), true
	} else if cfg.TLS != nil {
		return nil, errors.New("client: Config.TLS is for the client's own transport, and Config.Transport is another")
	}
	c.closing, c.closed = context.WithCancelCause(context.Background())
	return c, nil
}

// Close closes idle connections, and ends watches and what keeps leases alive. Calls that
// are under way go on; later ones fail with ErrClosed. Leases are not revoked: they end
// when their time has passed.
func (c *Client) Close() {
	c.once.Do(func() {
		c.closed(ErrClosed)
		if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
	})
}

// Endpoints returns the endpoints as New was given them.
func (c *Client) Endpoints() []string { return c.endpoints.urls() }

// Revision returns the highest revision of the store that any answer to this client has
// told of; 0 before the first one. ReadYourWrites reads at least that.
func (c *Client) Revision() uint64 { return c.revision.Load() }

// sawRevision takes in the revision that an answer tells of.
func (c *Client) sawRevision(r uint64) {
	for {
		was := c.revision.Load()
		if r <= was || c.revision.CompareAndSwap(was, r) {
			return
		}
	}
}
