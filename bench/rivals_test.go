package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeRedis answers the few commands that the benchmark sends.
func fakeRedis(t *testing.T) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var mu sync.Mutex
	items := map[string]string{}
	answer := func(words []string) string {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case words[0] == "PING":
			return "+PONG\r\n"
		case words[0] == "SET" && len(words) == 3:
			items[words[1]] = words[2]
			return "+OK\r\n"
		case words[0] == "GET" && len(words) == 2:
			v, ok := items[words[1]]
			if !ok {
				return "$-1\r\n"
			}
			return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
		}
		return "-ERR unknown command\r\n"
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for in := bufio.NewReader(conn); ; {
					words, err := readRedis(in)
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, answer(words))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// readRedis reads one command.
func readRedis(in *bufio.Reader) (words []string, err error) {
	var count, length int
	if _, err := fmt.Fscanf(in, "*%d\r\n", &count); err != nil {
		return nil, err
	}
	for range count {
		if _, err := fmt.Fscanf(in, "$%d\r\n", &length); err != nil {
			return nil, err
		}
		word := make([]byte, length+2)
		if _, err := io.ReadFull(in, word); err != nil {
			return nil, err
		}
		words = append(words, string(word[:length]))
	}
	return words, nil
}

// Ensure that what a client of Redis writes is what it reads, for all sizes, that a
// value of another turn is found out, and that no answer but success passes.
func TestClientOfRedis(t *testing.T) {
	addr := fakeRedis(t)
	for _, size := range []int{16, 128, 64 << 10} {
		v := valueMaker{size: size, nonce: 7}
		clients, err := dialRedis(addr, 2, v, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		c := clients[0].(*redisClient)
		if err := c.ping(); err != nil {
			t.Error(err)
		}
		if err := c.do(get, uint64(size)); err == nil {
			t.Error("a key that is not there was read")
		}
		checkClient(t, clients, v)
		c.requests[put] = redisCommand("NONSENSE", appendKey(nil, 0))
		if err := c.do(put, 1); err == nil || !strings.Contains(err.Error(), "unknown") {
			t.Errorf("an error passed: %v", err)
		}
		closeAll(clients)
	}
}

// checkClient writes through one client and reads through another.
func checkClient(t *testing.T, clients []client, v valueMaker) {
	t.Helper()
	for _, key := range []uint64{1, 22, 999_999} {
		if err := clients[0].do(put, key); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []uint64{1, 22, 999_999} {
		if err := v.check(clients[1], key); err != nil {
			t.Error(err)
		}
	}
	if err := clients[1].do(getStale, 22); err != nil {
		t.Error(err)
	}
	v.nonce++
	if err := v.check(clients[0], 1); err == nil {
		t.Errorf("size %d: another turn's value passed", v.size)
	}
}

// Ensure that a node of NATS starts as the benchmark starts it, that its bucket has a
// leader, and that what a client writes is what it reads.
func TestNATS(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	if err := c.addNode(); err != nil {
		t.Fatal(err)
	}
	n := c.nodes[0]
	n.size = 1
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serveNATS(ctx, []string{"-name", natsName(n), "-dir", n.dir, "-client", n.client, "-monitor", n.monitor})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var b nats
	if err := waitFor(ctx, time.Minute, func() error { return b.ready(n) }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.state(n); err != nil {
		t.Error(err)
	}
	v := valueMaker{size: usualSize, nonce: 7}
	clients, err := dialNATS(2)(n.client, 3, v, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(clients)
	if clients[0].(*natsClient).conn != clients[1].(*natsClient).conn || clients[1].(*natsClient).conn == clients[2].(*natsClient).conn {
		t.Error("not two workers share a connection")
	}
	if err := clients[2].do(get, 5); err == nil {
		t.Error("a key that is not there was read")
	}
	checkClient(t, clients[1:], v)
}
