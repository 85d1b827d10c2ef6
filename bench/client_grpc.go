package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// grpcClient is a worker of etcd's own client. Some workers share a connection.
type grpcClient struct {
	conn   *clientv3.Client
	ctx    context.Context // ends when the clients' time is over
	key    []byte
	buffer []byte // the value
	size   int
	cancel context.CancelFunc
}

// dialGRPC returns a dialer of etcd's own client, with so many workers on one
// connection.
func dialGRPC(perConn int) dialer {
	return func(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
		var clients []client
		var conn *clientv3.Client
		for i := range n {
			if i%perConn == 0 {
				var err error
				if conn, err = clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()}); err != nil {
					closeAll(clients)
					return nil, fmt.Errorf("etcd's client: %w", err)
				}
			}
			clients = append(clients, newGRPCClient(conn, v, limit))
		}
		return clients, nil
	}
}

func newGRPCClient(conn *clientv3.Client, v valueMaker, limit time.Duration) *grpcClient {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	return &grpcClient{conn: conn, ctx: ctx, cancel: cancel, key: appendKey(nil, 0), buffer: v.make(0), size: v.size}
}

func (c *grpcClient) do(op operation, key uint64) error {
	setKey(c.key, key)
	if op == put {
		setHead(c.buffer, key)
		_, err := c.conn.Put(c.ctx, string(c.key), string(c.buffer))
		return err
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

func (c *grpcClient) close() {
	_ = c.conn.Close() // closed before by another worker of the connection, perhaps
	c.cancel()
}
