package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// grpcClient is a worker of etcd's own client. Some workers share a connection.
type grpcClient struct {
	conn   *clientv3.Client
	users  *int            // of conn; the last closes it
	ctx    context.Context // ends when the clients' time is over
	key    []byte
	buffer []byte // the value
	size   int
	cancel context.CancelFunc

	guard    string // the key that its transactions compare
	revision int64  // of that; 0 before the first
	lease    clientv3.LeaseID
	keeping  pb.Lease_LeaseKeepAliveClient // nil before the first
}

// dialGRPC returns a dialer of etcd's own client, with so many workers on one
// connection.
func dialGRPC(perConn int) dialer { return grpcOver(nil, perConn) }

// grpcOver is dialGRPC over TLS, unless s is nil.
func grpcOver(s *secured, perConn int) dialer {
	return func(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
		cfg, err := s.client()
		if err != nil {
			return nil, err
		}
		var clients []client
		var conn *clientv3.Client
		var users *int
		for i := range n {
			if i%perConn == 0 {
				var err error
				users = new(int)
				if conn, err = clientv3.New(clientv3.Config{Endpoints: []string{s.scheme() + addr}, TLS: cfg, Logger: zap.NewNop()}); err != nil {
					closeAll(clients)
					return nil, fmt.Errorf("etcd's client: %w", err)
				}
			}
			clients = append(clients, newGRPCClient(conn, users, v, limit, i))
		}
		return clients, nil
	}
}

func newGRPCClient(conn *clientv3.Client, users *int, v valueMaker, limit time.Duration, i int) *grpcClient {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	*users++
	return &grpcClient{conn: conn, users: users, ctx: ctx, cancel: cancel, key: appendKey(nil, 0), buffer: v.make(0), size: v.size,
		guard: string(appendKey(nil, firstGuard+uint64(i)))}
}

func (c *grpcClient) do(op operation, key uint64) error {
	setKey(c.key, key)
	switch op {
	case put:
		setHead(c.buffer, key)
		_, err := c.conn.Put(c.ctx, string(c.key), string(c.buffer))
		return err
	case txn:
		setHead(c.buffer, key)
		return c.txn()
	case list:
		return c.list(key)
	case keepAlive:
		return c.keepAlive()
	}
	value, err := c.read(op == getStale)
	if err == nil && len(value) != c.size {
		err = fmt.Errorf("a value of %d bytes", len(value))
	}
	return err
}

func (c *grpcClient) read(stale bool) ([]byte, error) {
	var opts []clientv3.OpOption
	if stale {
		opts = append(opts, clientv3.WithSerializable())
	}
	resp, err := c.conn.Get(c.ctx, string(c.key), opts...)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) != 1 {
		return nil, fmt.Errorf("%d keys in the answer", len(resp.Kvs))
	}
	return resp.Kvs[0].Value, nil
}

func (c *grpcClient) value(key uint64) ([]byte, error) {
	setKey(c.key, key)
	return c.read(false)
}

// txn writes its own key and another if its own has the revision that it should.
func (c *grpcClient) txn() error {
	if c.revision == 0 {
		resp, err := c.conn.Put(c.ctx, c.guard, string(c.buffer))
		if err != nil {
			return err
		}
		c.revision = resp.Header.Revision
	}
	value := string(c.buffer)
	resp, err := c.conn.Txn(c.ctx).If(clientv3.Compare(clientv3.ModRevision(c.guard), "=", c.revision)).
		Then(clientv3.OpPut(c.guard, value), clientv3.OpPut(string(c.key), value)).Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return fmt.Errorf("%s does not have revision %d", c.guard, c.revision)
	}
	c.revision = resp.Header.Revision
	return nil
}

func (c *grpcClient) list(key uint64) error {
	first, end := appendKey(nil, thousand(key)), appendKey(nil, thousand(key)+listed)
	resp, err := c.conn.Get(c.ctx, string(first), clientv3.WithRange(string(end)), clientv3.WithLimit(listed))
	if err == nil && len(resp.Kvs) != listed {
		err = fmt.Errorf("%d keys in the answer", len(resp.Kvs))
	}
	return err
}

// keepAlive sends one message on a stream of its own, as etcd's client does for a lease,
// but without waiting for a third of the lease's time.
func (c *grpcClient) keepAlive() error {
	if c.keeping == nil {
		grant, err := c.conn.Grant(c.ctx, leaseSeconds)
		if err != nil {
			return err
		}
		c.lease = grant.ID
		if c.keeping, err = pb.NewLeaseClient(c.conn.ActiveConnection()).LeaseKeepAlive(c.ctx); err != nil {
			return err
		}
	}
	if err := c.keeping.Send(&pb.LeaseKeepAliveRequest{ID: int64(c.lease)}); err != nil {
		return err
	}
	resp, err := c.keeping.Recv()
	if err == nil && resp.TTL != leaseSeconds {
		err = fmt.Errorf("the lease has %d s", resp.TTL)
	}
	return err
}

func (c *grpcClient) close() {
	if c.lease != 0 {
		_, _ = c.conn.Revoke(c.ctx, c.lease) // one that is not revoked runs out
	}
	if *c.users--; *c.users == 0 {
		_ = c.conn.Close() // all that was sent has been answered
	}
	c.cancel()
}
