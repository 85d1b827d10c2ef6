package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// redis is what many have already: one node, which writes each command into a
// file and syncs it before it answers. There is no second copy, so it does less
// than the others. It is measured where it is installed.
type redis struct{}

const redisProgram = "redis-server"

// installed returns an error unless there is a program to start.
func (redis) installed() error {
	if _, err := exec.LookPath(redisProgram); err != nil {
		return fmt.Errorf("there is no %s here", redisProgram)
	}
	return nil
}

// version returns which Redis there is, or nothing.
func (r redis) version() string {
	for _, word := range strings.Fields(output("", redisProgram, "--version")) {
		if v, ok := strings.CutPrefix(word, "v="); ok {
			return v
		}
	}
	return ""
}

// command: Redis as it comes, but for the log of commands and its syncs.
func (redis) command(_ *cluster, n *node) []string {
	_, port, _ := net.SplitHostPort(n.client)
	return []string{redisProgram, "--bind", "127.0.0.1", "--port", port, "--dir", n.dir,
		"--appendonly", "yes", "--appendfsync", "always"}
}

func (redis) ready(n *node) error {
	clients, err := dialRedis(n.client, 1, valueMaker{size: usualSize}, time.Second)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	return clients[0].(*redisClient).ping()
}

func (redis) state(*node) (nodeState, error) { return nodeState{leads: true}, nil }

// redisClient is one connection, as lean as the HTTP clients are.
type redisClient struct {
	conn     net.Conn
	in       *bufio.Reader
	requests [3]request
	body     []byte // of the value that was read last, with its end of line
}

// dialRedis makes clients of Redis.
func dialRedis(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	key, value := appendKey(nil, 0), v.make(0)
	read := redisCommand("GET", key)
	write := redisCommand("SET", key, value)
	write.value = value
	write.valueAt = len(write.bytes) - len(value) - len("\r\n")
	var clients []client
	for range n {
		conn, err := dialTCP(addr, limit)
		if err != nil {
			closeAll(clients)
			return nil, err
		}
		c := &redisClient{conn: conn, in: bufio.NewReader(conn), body: make([]byte, v.size+len("\r\n")),
			requests: [3]request{put: write.clone(), get: read.clone(), getStale: read.clone()}}
		clients = append(clients, c)
	}
	return clients, nil
}

// redisCommand makes a request of words, the second of which is the key.
func redisCommand(words ...any) request {
	var r request
	r.bytes = fmt.Appendf(nil, "*%d\r\n", len(words))
	for i, word := range words {
		text := fmt.Sprintf("%s", word)
		r.bytes = fmt.Appendf(r.bytes, "$%d\r\n", len(text))
		if i == 1 {
			r.keyAt = len(r.bytes)
		}
		r.bytes = append(append(r.bytes, text...), "\r\n"...)
	}
	return r
}

func (c *redisClient) do(op operation, key uint64) error {
	r := &c.requests[op]
	r.set(key)
	line, err := c.ask(r.bytes)
	if err != nil {
		return err
	}
	if op == put {
		if line != "+OK" {
			return errors.New(line)
		}
		return nil
	}
	if line != "$"+strconv.Itoa(len(c.body)-len("\r\n")) {
		return fmt.Errorf("%s in place of a value", line)
	}
	_, err = io.ReadFull(c.in, c.body)
	return err
}

// ask sends a request and returns the first line of the answer.
func (c *redisClient) ask(request []byte) (string, error) {
	if _, err := c.conn.Write(request); err != nil {
		return "", err
	}
	line, err := c.in.ReadSlice('\n')
	return string(bytes.TrimRight(line, "\r\n")), err
}

// ping returns nil once Redis serves: while it loads its file it answers otherwise.
func (c *redisClient) ping() error {
	line, err := c.ask(redisCommand("PING").bytes)
	if err == nil && line != "+PONG" {
		err = errors.New(line)
	}
	return err
}

func (c *redisClient) value(key uint64) ([]byte, error) {
	if err := c.do(get, key); err != nil {
		return nil, err
	}
	return bytes.Clone(c.body[:len(c.body)-len("\r\n")]), nil
}

func (c *redisClient) close() { _ = c.conn.Close() } // all that was sent has been answered
