package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cluster is some nodes of one system, one process each.
type cluster struct {
	system
	name  string
	dir   string
	nodes []*node
}

// node is one of them.
type node struct {
	id      int
	size    int    // of the cluster at its start
	client  string // host:port for clients
	peer    string // host:port for the other nodes
	monitor string // host:port for questions about the node, where a system has one
	dir     string
	joined  bool // it came later
	*process
}

// system is what differs between raftkv, its rivals and the bare handler.
type system interface {
	// command returns the command line of a node.
	command(c *cluster, n *node) []string
	// ready returns nil once a node serves.
	ready(n *node) error
	// state tells what a node says of itself.
	state(n *node) (nodeState, error)
}

type nodeState struct {
	leads   bool
	term    uint64
	applied uint64 // index of the log
}

// newCluster starts a cluster in a directory of its own, and waits until it
// serves.
func newCluster(ctx context.Context, s system, name, dir string, size int) (*cluster, error) {
	c := &cluster{system: s, name: name, dir: filepath.Join(dir, name)}
	for range size {
		if err := c.addNode(); err != nil {
			return nil, err
		}
	}
	for _, n := range c.nodes {
		n.size = size
		if err := c.start(n); err != nil {
			return c, err
		}
	}
	return c, c.waitReady(ctx)
}

// addNode makes up a node, without starting it.
func (c *cluster) addNode() error {
	n := &node{id: len(c.nodes) + 1}
	n.dir = filepath.Join(c.dir, strconv.Itoa(n.id))
	c.nodes = append(c.nodes, n)
	for _, addr := range []*string{&n.client, &n.peer, &n.monitor} {
		free, err := c.freeAddr()
		if err != nil {
			return err
		}
		*addr = free
	}
	return nil
}

// freeAddr returns an address on which nothing listens, and which no node of the
// cluster has, whether it runs or not. Its port is below those of outgoing
// connections: one of them could take it before its node does.
func (c *cluster) freeAddr() (string, error) {
	const first, count, tries = 10000, 20000, 1000
	for range tries {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(count)))
		if slices.ContainsFunc(c.nodes, func(n *node) bool { return n.client == addr || n.peer == addr || n.monitor == addr }) {
			continue
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", fmt.Errorf("no free port in %d tries", tries)
}

func (c *cluster) start(n *node) error {
	if err := makeDir(n.dir); err != nil {
		return err
	}
	p, err := startProcess(n.dir+".log", c.command(c, n)...)
	n.process = p
	return err
}

// stop kills what runs of the cluster, and removes its files.
func (c *cluster) stop() error {
	if c == nil {
		return nil
	}
	for _, n := range c.nodes {
		if n.process != nil {
			n.kill()
		}
	}
	return removeDir(c.dir)
}

// startLimit is how long a node may take until it serves.
const startLimit = 2 * time.Minute

func (c *cluster) waitReady(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := c.waitNode(ctx, n); err != nil {
			return err
		}
	}
	_, err := c.leader(ctx)
	return err
}

// waitNode waits until a node is ready.
func (c *cluster) waitNode(ctx context.Context, n *node) error {
	var dead error
	err := waitFor(ctx, startLimit, func() error {
		if dead = n.alive(); dead != nil {
			return nil
		}
		return c.ready(n)
	})
	if err = errors.Join(dead, err); err != nil {
		return fmt.Errorf("%s, node %d: %w", c.name, n.id, err)
	}
	return nil
}

// leader returns the node that leads, and waits until there is one.
func (c *cluster) leader(ctx context.Context) (*node, error) {
	var leader *node
	err := waitFor(ctx, startLimit, func() error {
		var newest uint64
		for _, n := range c.nodes {
			st, err := c.state(n)
			if err == nil && st.leads && st.term >= newest {
				leader, newest = n, st.term
			}
		}
		if leader == nil {
			return fmt.Errorf("%s: no node leads", c.name)
		}
		return nil
	})
	return leader, err
}

// follower returns a node that does not lead; the only node, if there is one.
func (c *cluster) follower(ctx context.Context) (*node, error) {
	leader, err := c.leader(ctx)
	for _, n := range c.nodes {
		if n != leader {
			return n, err
		}
	}
	return leader, err
}

// other returns the node after n.
func (c *cluster) other(n *node) *node { return c.nodes[n.id%len(c.nodes)] }

// term returns the term of a leader, which rises with each election.
func (c *cluster) term(ctx context.Context) (uint64, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return 0, err
	}
	st, err := c.state(leader)
	return st.term, err
}

func (c *cluster) pids() []int {
	var pids []int
	for _, n := range c.nodes {
		pids = append(pids, n.pid())
	}
	return pids
}

// peerList returns the nodes in the form of a command line.
func (c *cluster) peerList(item func(n *node) string) string {
	var items []string
	for _, n := range c.nodes {
		items = append(items, item(n))
	}
	return strings.Join(items, ",")
}

// control asks nodes how they are. It is not what is measured.
var plainControl = control(nil)

// control makes a client for questions that are not measured.
func control(cfg *tls.Config) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: cfg != nil}}
}

// ask sends a request, and decodes the answer unless out is nil.
func ask(method, url, body string, out any) error {
	return askBy(plainControl, method, url, body, out)
}

func askBy(by *http.Client, method, url, body string, out any) error {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := by.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, strings.TrimSpace(string(text)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}
