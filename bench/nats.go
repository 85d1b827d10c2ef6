package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsclient "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// nats is a rival: a bucket of NATS JetStream, with a replica on each node, this
// program again with serveNATS in each process.
type nats struct {
	self string // path of this program
}

const (
	bucket       = "bench"
	bucketStream = "KV_" + bucket // under which JetStream keeps it
	bucketKeys   = "$KV." + bucket + "."
)

func (b nats) command(c *cluster, n *node) []string {
	return []string{b.self, natsCommand, "-name", natsName(n), "-dir", n.dir,
		"-client", n.client, "-peer", n.peer, "-monitor", n.monitor,
		"-routes", c.peerList(func(n *node) string { return "nats://" + n.peer })}
}

func natsName(n *node) string { return "n" + strconv.Itoa(n.id) }

// ready: a node is ready once it is healthy; the first one makes the bucket.
func (b nats) ready(n *node) error {
	if err := ask("GET", "http://"+n.monitor+"/healthz", "", nil); err != nil || n.id > 1 {
		return err
	}
	if _, err := b.state(n); err == nil {
		return nil
	}
	conn, err := natsclient.Connect("nats://" + n.client)
	if err != nil {
		return err
	}
	defer conn.Close()
	return makeBucket(conn, n.size)
}

// makeBucket makes the bucket, unless it is there.
func makeBucket(conn *natsclient.Conn, replicas int) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, Replicas: replicas})
	return err
}

// state asks a node who leads the bucket. NATS does not say its term.
func (b nats) state(n *node) (nodeState, error) {
	var js struct {
		Accounts []struct {
			Streams []struct {
				Name    string
				Cluster struct{ Leader string }
			} `json:"stream_detail"`
		} `json:"account_details"`
	}
	if err := ask("GET", "http://"+n.monitor+"/jsz?streams=true", "", &js); err != nil {
		return nodeState{}, err
	}
	for _, a := range js.Accounts {
		for _, s := range a.Streams {
			if s.Name == bucketStream {
				return nodeState{leads: s.Cluster.Leader == natsName(n)}, nil
			}
		}
	}
	return nodeState{}, errors.New("there is no bucket yet")
}

// serveNATS is a node of NATS as it comes, but for what it must be told and
// sync_interval: always, without which it acknowledges what is on no disk.
func serveNATS(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet(natsCommand, flag.ContinueOnError)
	name := fs.String("name", "", "name of the node")
	dir := fs.String("dir", "", "data directory")
	client := fs.String("client", "", "host:port for clients")
	peer := fs.String("peer", "", "host:port for the other nodes")
	monitor := fs.String("monitor", "", "host:port for questions about the node")
	routes := fs.String("routes", "", "all nodes, URLs of their peer addresses; empty: a node alone")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o := &server.Options{ServerName: *name, NoSigs: true, JetStream: true, StoreDir: *dir, SyncAlways: true}
	var errs [3]error
	o.Host, o.Port, errs[0] = splitAddr(*client)
	o.HTTPHost, o.HTTPPort, errs[1] = splitAddr(*monitor)
	if *routes != "" {
		o.Cluster.Name, o.Routes = "bench", server.RoutesFromStr(*routes)
		o.Cluster.Host, o.Cluster.Port, errs[2] = splitAddr(*peer)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("starting NATS: %w", err)
	}
	s.ConfigureLogger()
	s.Start()
	stop := context.AfterFunc(ctx, s.Shutdown)
	defer stop()
	s.WaitForShutdown()
	return nil
}

func splitAddr(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	return host, port, err
}

// natsClient is a worker of NATS' own client. Some workers share a connection.
type natsClient struct {
	conn   *natsclient.Conn
	kv     jetstream.KeyValue
	leader natsclient.JetStreamContext // reads from the bucket's leader
	ctx    context.Context             // ends when the clients' time is over
	cancel context.CancelFunc
	key    []byte
	buffer []byte // the value
	size   int
}

// dialNATS returns a dialer of NATS' own client, with so many workers on one
// connection.
func dialNATS(perConn int) dialer {
	return func(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
		var clients []client
		var last *natsClient
		for i := range n {
			var shared *natsClient
			if i%perConn > 0 {
				shared = last
			}
			c, err := newNATSClient(addr, shared, v, limit)
			if err != nil {
				closeAll(clients)
				return nil, fmt.Errorf("NATS' client: %w", err)
			}
			clients, last = append(clients, c), c
		}
		return clients, nil
	}
}

// newNATSClient makes a worker, on the connection of another one unless that is nil.
func newNATSClient(addr string, shared *natsClient, v valueMaker, limit time.Duration) (_ *natsClient, err error) {
	c := &natsClient{key: appendKey(nil, 0), buffer: v.make(0), size: v.size}
	c.ctx, c.cancel = context.WithTimeout(context.Background(), limit)
	if shared != nil {
		c.conn, c.kv, c.leader = shared.conn, shared.kv, shared.leader
		return c, nil
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	// Without a second try elsewhere: the lane is about this node.
	if c.conn, err = natsclient.Connect((&url.URL{Scheme: "nats", Host: addr}).String(),
		natsclient.NoReconnect(), natsclient.IgnoreDiscoveredServers()); err != nil {
		return nil, err
	}
	js, err := jetstream.New(c.conn)
	if err != nil {
		return nil, err
	}
	if c.kv, err = js.KeyValue(c.ctx, bucket); err != nil {
		return nil, err
	}
	c.leader, err = c.conn.JetStream()
	return c, err
}

// do reads from any replica, which may be behind: NATS has no read that is
// certain to be up to date.
func (c *natsClient) do(op operation, key uint64) error {
	setKey(c.key, key)
	if op == put {
		setHead(c.buffer, key)
		_, err := c.kv.Put(c.ctx, string(c.key), c.buffer)
		return err
	}
	item, err := c.kv.Get(c.ctx, string(c.key))
	if err == nil && len(item.Value()) != c.size {
		err = fmt.Errorf("a value of %d bytes", len(item.Value()))
	}
	return err
}

// value reads from the leader of the bucket.
func (c *natsClient) value(key uint64) ([]byte, error) {
	setKey(c.key, key)
	m, err := c.leader.GetLastMsg(bucketStream, bucketKeys+string(c.key), natsclient.Context(c.ctx))
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

func (c *natsClient) close() {
	if c.conn != nil {
		c.conn.Close() // closed before by another worker of the connection, perhaps
	}
	c.cancel()
}
