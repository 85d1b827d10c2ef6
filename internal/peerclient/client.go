// Package peerclient answers: how does one node ask another, beside raft? It has
// the client of the routes of our own on the peer listener, the limits of its
// connections, and the question which process an address leads to. It does not
// know what is asked; the packages that ask have the rest.
package peerclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// ClusterHeader names the cluster that a request is for, in hexadecimal.
const ClusterHeader = "Raftkv-Cluster-Id"

// ViewPath is the route by which a node tells how it sees others: the leader its
// members, and any node where its log stands against that of the one who asks.
const ViewPath = "/raftkv/view"

// MaxBody is how long what one node tells another may be, in bytes.
const MaxBody = 1 << 20

// AskTimeout is how long a question whose answer is at hand may take.
const AskTimeout = time.Second

// Client asks other nodes.
type Client struct {
	http    *http.Client
	Process Process // this one
	secured bool    // only what is secured is asked

	founders atomic.Pointer[string] // see SayFounders
}

// New returns a client for a process that has just been given a number. It asks
// without TLS.
func New() *Client {
	return &Client{Process: newProcess(), http: &http.Client{
		Transport:     newTransport(func(context.Context, string, string) (net.Conn, error) { return nil, errNoCertificate }),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // no node sends one on
	}}
}

// errNoCertificate: between nodes TLS is always mutual.
var errNoCertificate = errors.New("this node has no certificate for its peers (--peer-cert-file)")

// errPlain: nothing proves then who answers.
var errPlain = errors.New("it is without TLS, and this node has no --peer-tls=optional")

// newTransport makes what carries requests. No proxy has any business between nodes.
func newTransport(dialTLS func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		Proxy: nil, DialContext: NewDialer().DialContext, DialTLSContext: dialTLS, MaxIdleConnsPerHost: 2, IdleConnTimeout: idleLimit,
	}
}

// Secure has URLs with https be asked over connections that dial opens, and others
// only if plain says so. It is called before the client is used.
func (c *Client) Secure(dial func(ctx context.Context, network, addr string) (net.Conn, error), plain bool) {
	c.http.Transport, c.secured = newTransport(dial), !plain
}

// Forget closes connections that wait for the next question.
func (c *Client) Forget() { c.http.CloseIdleConnections() }

// Get asks for what is at a URL. The cluster is named unless it is 0.
func (c *Client) Get(ctx context.Context, url string, cluster uint64, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return c.do(req, cluster, into)
}

// Post sends a body as JSON to the cluster's node at a URL.
func (c *Client) Post(ctx context.Context, url string, cluster uint64, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.do(req, cluster, into)
}

func (c *Client) do(req *http.Request, cluster uint64, into any) error {
	if cluster != 0 {
		req.Header.Set(ClusterHeader, strconv.FormatUint(cluster, 16))
	}
	if c.secured && req.URL.Scheme != "https" {
		return fmt.Errorf("%s: %w", req.URL, errPlain)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &AnswerError{req.URL.String(), resp.Status, string(bytes.TrimSpace(body))}
	}
	return json.Unmarshal(body, into)
}

// AnswerError is an answer that is not the one asked for.
type AnswerError struct {
	url, status, text string
}

func (e *AnswerError) Error() string {
	return fmt.Sprintf("%s answered %s: %s", e.url, e.status, e.text)
}

// IsFor reports whether a request names a cluster as the one that it is for.
func IsFor(r *http.Request, cluster uint64) bool {
	return r.Header.Get(ClusterHeader) == strconv.FormatUint(cluster, 16)
}

// Receive reads what Post has sent. If it cannot, or if the request is for
// another cluster, or does not come from whom it says, it answers the request and
// reports false.
func Receive(w http.ResponseWriter, r *http.Request, cluster uint64, limit int64, into any) bool {
	if !IsFor(r, cluster) {
		http.Error(w, "this is another cluster", http.StatusPreconditionFailed)
		return false
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, limit)).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	if said, ok := into.(interface{ SaidBy() uint64 }); ok {
		if err := SenderIs(r.Context(), said.SaidBy()); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return false
		}
	}
	return true
}
