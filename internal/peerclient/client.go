// Package peerclient answers: how does one node ask another, beside raft? It has
// the client of the routes of our own on the peer listener, the limits of its
// connections, and the question which process an address leads to. It does not
// know what is asked; the packages that ask have the rest.
package peerclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
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
}

// New returns a client for a process that has just been given a number.
func New() *Client {
	return &Client{Process: newProcess(), http: &http.Client{Transport: &http.Transport{
		Proxy: nil, DialContext: NewDialer().DialContext, MaxIdleConnsPerHost: 2, IdleConnTimeout: idleLimit,
	}}}
}

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
// another cluster, it answers the request and reports false.
func Receive(w http.ResponseWriter, r *http.Request, cluster uint64, limit int64, into any) bool {
	if !IsFor(r, cluster) {
		http.Error(w, "this is another cluster", http.StatusPreconditionFailed)
		return false
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, limit)).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}
