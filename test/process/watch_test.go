//go:build unix

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// watchAtOnce is the time for what has to come at once: a loaded machine, and the race detector. It is less than the
	// 15 s after which a watch says something in any case, which might push out what something between has held back.
	watchAtOnce = 8 * time.Second
	// watchWithin is the time for a client to come back, which waits for up to three seconds, and to read all.
	watchWithin = 20 * time.Second
	// watchHistory is how much the nodes of these tests remember.
	watchHistory = 256 << 10
)

// watchItem is a key as clients have to know it in the end.
type watchItem struct {
	Key            string  `json:"key"`
	Value          *string `json:"value"`
	ValueBase64    []byte  `json:"value_base64"`
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
	Lease          uint64  `json:"lease"`
}

// watchCopy makes a map of items, each with its value in one form.
func watchCopy(items []watchItem) map[string]watchItem {
	all := make(map[string]watchItem, len(items))
	for _, item := range items {
		if item.Value != nil {
			item.ValueBase64, item.Value = []byte(*item.Value), nil
		}
		all[item.Key] = item
	}
	return all
}

// held is what the store holds under a prefix.
func (c *procCluster) held(i int, prefix string) map[string]watchItem {
	c.t.Helper()
	var page struct {
		Items []watchItem
		Next  string
	}
	r := c.do(http.MethodGet, i, "/v1/kv?limit=10000&prefix="+prefix, nil)
	if err := json.Unmarshal([]byte(r.body), &page); r.err != nil || r.status != http.StatusOK || err != nil || page.Next != "" {
		c.t.Fatalf("the list at node %d: %v, %v", i, r, err)
	}
	return watchCopy(page.Items)
}

// watchDiffers returns nil if a client's copy is what the store holds.
func watchDiffers(got, want map[string]watchItem) error {
	if reflect.DeepEqual(got, want) {
		return nil
	}
	for key := range maps.Keys(want) {
		if !reflect.DeepEqual(got[key], want[key]) {
			return fmt.Errorf("%d keys, %d in the store; %q is\n%.200v, want\n%.200v", len(got), len(want), key, got[key], want[key])
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			return fmt.Errorf("%q is not in the store", key)
		}
	}
	return errors.New("they differ")
}

// watchGate passes connections on to an address for as long as it is open. Clients always find somebody behind its own one.
type watchGate struct {
	l     net.Listener
	mu    sync.Mutex
	to    string
	bytes int64         // how many of the node's the next connection gets; 0: all
	cuts  chan struct{} // closed when that connection is to be cut
	next  string        // to whom connections are passed on from then
	shut  bool
	conns map[net.Conn]bool
	ended sync.WaitGroup
}

func newWatchGate(t *testing.T, to string) *watchGate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(procFreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	g := &watchGate{l: l, to: strings.TrimPrefix(to, "http://"), conns: make(map[net.Conn]bool)}
	g.ended.Go(g.accept)
	t.Cleanup(func() {
		_ = l.Close() // ends accept
		g.close()
		g.ended.Wait()
	})
	return g
}

func (g *watchGate) url() string { return "http://" + g.l.Addr().String() }

func (g *watchGate) accept() {
	for {
		conn, err := g.l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		address, bytes, cuts := g.to, g.bytes, g.cuts
		g.mu.Unlock()
		node, err := net.Dial("tcp", address)
		if err != nil || !g.add(conn, node) {
			_ = conn.Close() // the client sees that, which is all that is wanted
			if node != nil {
				_ = node.Close()
			}
			continue
		}
		pass := func(to io.Writer, from io.Reader) {
			_, _ = io.Copy(to, from) // until one of them is closed
			_ = conn.Close()
			_ = node.Close()
		}
		g.ended.Go(func() { pass(node, conn) })
		g.ended.Go(func() {
			if bytes == 0 {
				pass(conn, node)
				return
			}
			if _, err := io.CopyN(conn, node, bytes); err == nil {
				<-cuts
				g.mu.Lock()
				g.to, g.bytes = g.next, 0
				g.mu.Unlock()
			}
			_ = conn.Close()
			_ = node.Close()
		})
	}
}

// cut has the next connection get so many bytes of what the node says. end ends it, and passes others on to another node.
func (g *watchGate) cut(bytes int64, next string) (end func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes, g.cuts, g.next = bytes, make(chan struct{}), strings.TrimPrefix(next, "http://")
	return sync.OnceFunc(func() { close(g.cuts) })
}

func (g *watchGate) add(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range conns {
		g.conns[conn] = true
	}
	return !g.shut
}

// close cuts all connections, and lets no other in.
func (g *watchGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for conn := range g.conns {
		_ = conn.Close() // it may have ended
	}
	clear(g.conns)
}

func (g *watchGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

// watchScene is what clients have to get through with a copy of what is under w/.
type watchScene struct {
	c     *procCluster
	node  int // whom clients with one address ask, through its gate
	gates map[int]*watchGate
}

// newWatchScene starts three nodes with gates in front. origin is the one of a page that may call them.
func newWatchScene(t *testing.T, flags ...string) *watchScene {
	t.Helper()
	c := newProcCluster(t, 3, append(flags, "--watch-history", strconv.Itoa(watchHistory>>10)+"KiB")...)
	c.start()
	s := &watchScene{c: c, node: c.follower(), gates: make(map[int]*watchGate)}
	for _, i := range c.ids() {
		s.gates[i] = newWatchGate(t, c.url(i))
	}
	for key, value := range map[string]string{
		"w/text": "two\nlines \"and\" \u00fc \u2028 \U0001f600", "w/bytes": "\x00\xff\r\n", "w/empty": "", "w/%C3%BC%2F%2F%3F": "odd key", "w/gone": "soon",
		"w/large": strings.Repeat("0123456789abcdef", 9<<10), "x/other": "not asked for",
	} {
		c.put(1, key, value)
	}
	return s
}

// nodes are the addresses of all gates, that of node first.
func (s *watchScene) nodes() []string {
	urls := []string{s.gates[s.node].url()}
	for _, i := range s.c.ids() {
		if i != s.node {
			urls = append(urls, s.gates[i].url())
		}
	}
	return urls
}

// other is a node that runs, and is not the one of clients with one address.
func (s *watchScene) other() int {
	for _, i := range s.c.ids() {
		if i != s.node && s.c.nodes[i].running() {
			return i
		}
	}
	s.c.t.Fatal("no other node runs")
	return 0
}

// write makes changes of all kinds, with as many keys of 1 KiB in one revision besides.
func (s *watchScene) write(round string, many int) {
	s.c.t.Helper()
	at := s.other()
	s.c.put(at, "w/round", round)
	s.c.put(at, "w/"+round, round)
	for _, path := range []string{"/v1/kv/w/gone", "/v1/kv?prefix=w/many/"} {
		if r := s.c.do(http.MethodDelete, at, path, nil); r.status/100 != 2 && r.status != http.StatusNotFound {
			s.c.t.Fatalf("DELETE %s: %v", path, r)
		}
	}
	if r := s.c.do(http.MethodPut, at, "/v1/kv/w/short?ttl=100ms", []byte(round)); r.status/100 != 2 {
		s.c.t.Fatalf("PUT with a time to live: %v", r)
	}
	var puts []string
	for n := range many {
		puts = append(puts, fmt.Sprintf(`{"put":{"key":"w/many/%d","value":"%s%s"}}`, n, round, strings.Repeat("x", 1<<10)))
	}
	puts = append(puts, `{"add":{"key":"w/number","delta":"1"}}`)
	if r := s.c.json(http.MethodPost, at, "/v1/txn", `{"then":[`+strings.Join(puts, ",")+`]}`); r.status != http.StatusOK {
		s.c.t.Fatalf("the transaction: %v", r)
	}
}

// run goes through everything. equal has to wait until the clients' copies are what the store holds.
func (s *watchScene) run(equal func(when string)) {
	c := s.c
	c.t.Helper()
	equal("at the beginning")
	s.write("written", 100) // a revision in parts
	equal("after writes")
	c.kill(c.leader())
	s.write("without the leader", 2)
	equal("after the leader's death")
	c.start(s.down())
	c.stop(s.node)
	s.write("while the node is down", 3)
	c.start(s.node)
	equal("after the node has been started again")
	s.forgotten("too long away", "w/written")
	equal("after a reset")
	s.write("end", 1)
	equal("at the end")
}

func (s *watchScene) down() int {
	for _, i := range s.c.ids() {
		if !s.c.nodes[i].running() {
			return i
		}
	}
	s.c.t.Fatal("all nodes run")
	return 0
}

// forgotten cuts all clients off until no node remembers what they have read last. Meanwhile a key that they know goes.
func (s *watchScene) forgotten(round, gone string) {
	s.c.t.Helper()
	s.away(round, gone)
	for _, gate := range s.gates {
		gate.open()
	}
}

// away is forgotten while the clients are still cut off.
func (s *watchScene) away(round, gone string) {
	s.c.t.Helper()
	for _, gate := range s.gates {
		gate.close()
	}
	if r := s.c.do(http.MethodDelete, s.other(), "/v1/kv/"+gone, nil); r.status != http.StatusNoContent {
		s.c.t.Fatalf("DELETE %s: %v", gone, r)
	}
	s.write(round, 5)
	for n := range 2 * watchHistory >> 16 {
		s.c.put(s.other(), "x/fill", strconv.Itoa(n)+strings.Repeat("x", 1<<16))
	}
	tag := s.c.put(s.other(), "w/after", round)
	for _, i := range s.c.ids() { // all nodes have applied it
		revision, _ := strconv.Unquote(tag)
		procEventually(s.c.t, watchWithin, "a node has it", func() error {
			if r := s.c.do(http.MethodGet, i, "/w/after?min_revision="+revision, nil); r.status != http.StatusOK {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
}
