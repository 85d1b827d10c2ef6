package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// changes are the changes of the hot key in a turn. Each has a number, which is in its value:
// so whoever sees it finds when its PUT was sent, and a client needs to read no more of it.
type changes struct {
	next atomic.Uint32
	at   []atomic.Int64 // when the PUT of each was sent, in nanoseconds
}

func newChanges(most int) *changes { return &changes{at: make([]atomic.Int64, most)} }

// begin returns the number of a change that is about to be sent.
func (c *changes) begin() (number uint32, err error) {
	number = c.next.Add(1) - 1
	if int(number) >= len(c.at) {
		return 0, fmt.Errorf("more than %d changes in one turn", len(c.at))
	}
	c.at[number].Store(time.Now().UnixNano())
	return number, nil
}

// audience is all that the watchers of a turn have seen.
type audience struct {
	*changes
	from, until time.Time // of the part that counts
	shards      [8]sightings
}

// sightings are what some watchers have seen: one histogram for all would be a place to
// queue.
type sightings struct {
	*audience
	mu     sync.Mutex
	seen   int64 // changes
	inTime int64 // of them, in the part that counts
	delay  *hdrhistogram.Histogram
}

func newAudience(c *changes, warm, length time.Duration) *audience {
	a := &audience{changes: c, from: time.Now().Add(warm)}
	a.until = a.from.Add(length)
	for i := range a.shards {
		a.shards[i].audience, a.shards[i].delay = a, newResult().latency
	}
	return a
}

// shardOf returns where a watcher notes what it sees.
func (a *audience) shardOf(watcher int) *sightings { return &a.shards[watcher%len(a.shards)] }

// see notes that changes have arrived.
func (s *sightings) see(now time.Time, numbers []uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen += int64(len(numbers))
	if now.After(s.from) && now.Before(s.until) {
		s.inTime += int64(len(numbers))
	}
	at, from := now.UnixNano(), s.from.UnixNano()
	for _, n := range numbers {
		if int(n) >= len(s.at) {
			return fmt.Errorf("a watcher saw change %d, which nobody made", n)
		}
		sent := s.at[n].Load()
		if sent < from {
			continue
		}
		took := min(time.Duration(at-sent), longest)
		_ = s.delay.RecordValue(max(1, took.Microseconds())) // cannot be out of range
	}
	return nil
}

// sum returns what all watchers have seen.
func (a *audience) sum() (seen, inTime int64, delay *hdrhistogram.Histogram) {
	delay = newResult().latency
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		seen, inTime = seen+s.seen, inTime+s.inTime
		delay.Merge(s.delay)
		s.mu.Unlock()
	}
	return seen, inTime, delay
}

const (
	watchSize    = usualSize // of the hot key's values
	numberDigits = 9
	// hotKey is the key that is watched and changed, and firstIdle the first of those
	// that are watched and never changed. They are far from the keys of all rows.
	hotKey    = 5_000_000
	firstIdle = 6_000_000
)

// marker is how the number of a change is found in a stream: behind a byte that stands
// nowhere else in it.
type marker struct {
	front  string // of a value, before the number
	first  byte   // of what the front is in the stream
	width  int    // of what is behind that byte, up to the end of the number
	decode func(text []byte) (number uint64, err error)
}

var (
	plainMarker = marker{front: "~", first: '~', width: numberDigits, decode: parseDigits}
	// base64Marker: these three bytes are ++++, and no digit, letter or blank has a + in its
	// base64.
	base64Marker = marker{front: "\xfb\xef\xbe", first: '+', width: 3 + numberDigits*4/3, decode: func(text []byte) (uint64, error) {
		var digits [numberDigits]byte
		if _, err := base64.StdEncoding.Decode(digits[:], text[3:]); err != nil {
			return 0, err
		}
		return parseDigits(digits[:])
	}}
)

func parseDigits(text []byte) (n uint64, err error) {
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%q is no number", text)
		}
		n = 10*n + uint64(c-'0')
	}
	return n, nil
}

// value returns a value with a place for a number, and where that is.
func (m marker) value() (value []byte, numberAt int) {
	value = append([]byte(m.front), "000000000"...)
	for i := len(value); i < watchSize; i++ {
		value = append(value, byte('a'+i%26))
	}
	return value, len(m.front)
}

// stream reads the body of one answer that does not end, in chunks: it finds the numbers
// and looks at nothing else.
type stream struct {
	marker
	left  int    // of the chunk
	size  int    // of the next chunk, as far as it was read
	sized bool   // some of that was
	need  int    // bytes up to the end of a number
	text  []byte // of that number
}

var errStreamEnded = errors.New("the server has ended the stream")

// feed reads on, and appends the numbers that it finds.
func (s *stream) feed(b []byte, numbers []uint32) ([]uint32, error) {
	for len(b) > 0 {
		if s.left > 0 {
			n := min(s.left, len(b))
			var err error
			if numbers, err = s.scan(b[:n], numbers); err != nil {
				return numbers, err
			}
			s.left -= n
			b = b[n:]
			continue
		}
		c := b[0]
		b = b[1:]
		switch {
		case c == '\n' && s.sized && s.size == 0:
			return numbers, errStreamEnded
		case c == '\n':
			s.left, s.size, s.sized = s.size, 0, false
		case c == '\r':
		default:
			digit, err := strconv.ParseUint(string(c), 16, 4)
			if err != nil {
				return numbers, fmt.Errorf("no size of a chunk: %q", c)
			}
			s.size, s.sized = s.size<<4|int(digit), true
		}
	}
	return numbers, nil
}

// scan finds numbers in a part of the body.
func (s *stream) scan(b []byte, numbers []uint32) ([]uint32, error) {
	for {
		if s.need == 0 {
			i := bytes.IndexByte(b, s.first)
			if i < 0 {
				return numbers, nil
			}
			b, s.need, s.text = b[i+1:], s.width, s.text[:0]
		}
		n := min(s.need, len(b))
		s.text = append(s.text, b[:n]...)
		b = b[n:]
		if s.need -= n; s.need > 0 {
			return numbers, nil
		}
		number, err := s.decode(s.text)
		if err != nil {
			return numbers, err
		}
		numbers = append(numbers, uint32(number))
	}
}

// watching is watches that have all begun.
type watching interface {
	// lost returns an error once one of them has ended.
	lost() error
	close()
}

// watchDialer begins n watches at a node, of the keys that key names, and has them tell an
// audience what they see.
type watchDialer func(ctx context.Context, addr string, n int, key func(i int) uint64, a *audience) (watching, error)

// The requests for watches, and what in an answer says that a watch has begun: everything
// that is written from then on, it sees.

func watchRaftkv(ctx context.Context, addr string, n int, key func(i int) uint64, a *audience) (watching, error) {
	return openStreams(ctx, n, a, plainMarker, func(i int) (net.Conn, []byte, error) {
		request := fmt.Sprintf("GET /v1/watch?key=%s HTTP/1.1\r\nHost: %s\r\n\r\n", appendKey(nil, key(i)), addr)
		return beginStream(addr, request, "\nid: ")
	})
}

func watchGateway(ctx context.Context, addr string, n int, key func(i int) uint64, a *audience) (watching, error) {
	return openStreams(ctx, n, a, base64Marker, func(i int) (net.Conn, []byte, error) {
		request, _ := posted("POST", "/v3/watch", addr, fmt.Sprintf(`{"create_request":{"key":"%s"}}`, encodedKey(key(i))))
		return beginStream(addr, request, `"created":true`)
	})
}

// beginStream sends a request, and reads the answer until it says that the watch has begun.
// It returns what was read of the body.
func beginStream(addr, request, begun string) (conn net.Conn, body []byte, err error) {
	const limit = time.Minute
	if conn, err = dialTCP(addr, limit); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if _, err := conn.Write([]byte(request)); err != nil {
		return nil, nil, err
	}
	var text []byte
	buf := make([]byte, 4<<10)
	for {
		n, err := conn.Read(buf)
		text = append(text, buf[:n]...)
		head, body, whole := bytes.Cut(text, []byte("\r\n\r\n"))
		switch {
		case whole && !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")):
			return conn, nil, fmt.Errorf("no watch: %s", clip(text))
		case whole && !bytes.Contains(bytes.ToLower(head), []byte("transfer-encoding: chunked")):
			return conn, nil, errors.New("a watch that is not sent in chunks")
		case whole && bytes.Contains(body, []byte(begun)):
			return conn, bytes.Clone(body), nil
		case err != nil:
			return conn, nil, fmt.Errorf("a watch that did not begin: %w: %s", err, clip(body))
		}
	}
}

// openTogether calls open for 0 to n-1, many at a time.
func openTogether(ctx context.Context, n int, open func(i int) error) error {
	const together = 32
	var next atomic.Int64
	var running sync.WaitGroup
	errs := make([]error, together)
	for w := range together {
		running.Go(func() {
			for errs[w] == nil && ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				errs[w] = open(i)
			}
		})
	}
	running.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// grpcWatching is watches of etcd's own client.
type grpcWatching struct {
	conns   []*clientv3.Client
	cancel  context.CancelFunc
	running sync.WaitGroup
	failed  atomic.Pointer[error]
}

// watchGRPC begins watches with etcd's own client, perConn of them on each connection.
func watchGRPC(perConn int) watchDialer {
	return func(ctx context.Context, addr string, n int, key func(i int) uint64, a *audience) (watching, error) {
		ctx, cancel := context.WithCancel(ctx)
		w := &grpcWatching{cancel: cancel}
		for range (n + perConn - 1) / perConn {
			conn, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
			if err != nil {
				w.close()
				return nil, fmt.Errorf("etcd's client: %w", err)
			}
			w.conns = append(w.conns, conn)
		}
		err := openTogether(ctx, n, func(i int) error {
			events := w.conns[i/perConn].Watch(ctx, string(appendKey(nil, key(i))), clientv3.WithCreatedNotify())
			select {
			case first, ok := <-events:
				if !ok || !first.Created {
					return fmt.Errorf("a watch that did not begin: %w", first.Err())
				}
			case <-time.After(time.Minute):
				return errors.New("a watch that did not begin within a minute")
			}
			s := a.shardOf(i)
			w.running.Go(func() {
				if err := s.follow(events); err != nil && ctx.Err() == nil {
					w.failed.CompareAndSwap(nil, &err)
				}
			})
			return nil
		})
		if err != nil {
			w.close()
			return nil, err
		}
		return w, nil
	}
}

// follow notes what comes of a watch.
func (s *sightings) follow(events clientv3.WatchChan) error {
	var numbers []uint32
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		now := time.Now()
		numbers = numbers[:0]
		for _, e := range resp.Events {
			front := len(plainMarker.front)
			if len(e.Kv.Value) < front+numberDigits {
				return fmt.Errorf("an event with the value %q", clip(e.Kv.Value))
			}
			number, err := parseDigits(e.Kv.Value[front : front+numberDigits])
			if err != nil {
				return err
			}
			numbers = append(numbers, uint32(number))
		}
		if err := s.see(now, numbers); err != nil {
			return err
		}
	}
	return errStreamEnded
}

func (w *grpcWatching) lost() error {
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (w *grpcWatching) close() {
	w.cancel()
	for _, c := range w.conns {
		_ = c.Close() // its watches are over
	}
	w.running.Wait()
}

// hotWriter is a client that writes the hot key, each time with the number of the change.
type hotWriter struct {
	client
	*changes
	write func(number uint32) error
}

func (w *hotWriter) do(operation, uint64) error {
	number, err := w.begin()
	if err != nil {
		return err
	}
	return w.write(number)
}

// hotDialer makes clients that write the hot key.
type hotDialer func(addr string, n int, c *changes, limit time.Duration) ([]client, error)

// hotWriters gives clients that a dialer has made a way to write the hot key.
func hotWriters(dial dialer, c *changes, addr string, n int, limit time.Duration, write func(client) func(number uint32) error) ([]client, error) {
	clients, err := dial(addr, n, valueMaker{size: watchSize}, limit)
	for i, each := range clients {
		clients[i] = &hotWriter{each, c, write(each)}
	}
	return clients, err
}

func hotRaftkv(addr string, n int, c *changes, limit time.Duration) ([]client, error) {
	value, numberAt := plainMarker.value()
	head := fmt.Sprintf("PUT /%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", appendKey(nil, hotKey), addr, len(value))
	return hotWriters(dialRaftkv, c, addr, n, limit, func(each client) func(uint32) error {
		request := append([]byte(head), value...)
		return func(number uint32) error {
			setDigits(request[len(head)+numberAt:][:numberDigits], uint64(number))
			return each.(*httpClient).sendPut(request)
		}
	})
}

func hotGateway(addr string, n int, c *changes, limit time.Duration) ([]client, error) {
	value, numberAt := base64Marker.value()
	front := fmt.Sprintf(`{"key":"%s","value":"`, encodedKey(hotKey))
	text, bodyAt := posted("POST", "/v3/kv/put", addr, front+base64.StdEncoding.EncodeToString(value)+`"}`)
	return hotWriters(dialGateway, c, addr, n, limit, func(each client) func(uint32) error {
		request, value := []byte(text), bytes.Clone(value)
		return func(number uint32) error {
			setDigits(value[numberAt:][:numberDigits], uint64(number))
			base64.StdEncoding.Encode(request[bodyAt+len(front):], value[:numberAt+numberDigits])
			return each.(*httpClient).sendPut(request)
		}
	})
}

// sendPut sends a PUT that was made elsewhere.
func (c *httpClient) sendPut(request []byte) error {
	if err := c.send(request); err != nil {
		return err
	}
	if !c.success[put](&c.resp) {
		return statusError{c.resp.StatusCode(), clip(c.resp.Body())}
	}
	return nil
}

// hotGRPC writes with etcd's own client, perConn writers on a connection.
func hotGRPC(perConn int) hotDialer {
	return func(addr string, n int, c *changes, limit time.Duration) ([]client, error) {
		key := string(appendKey(nil, hotKey))
		return hotWriters(dialGRPC(perConn), c, addr, n, limit, func(each client) func(uint32) error {
			value, numberAt := plainMarker.value()
			conn := each.(*grpcClient)
			return func(number uint32) error {
				setDigits(value[numberAt:][:numberDigits], uint64(number))
				_, err := conn.conn.Put(conn.ctx, key, string(value))
				return err
			}
		})
	}
}
