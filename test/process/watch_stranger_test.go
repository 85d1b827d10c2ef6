//go:build unix

package process

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stranger is testdata/watch_stranger.pl, a client that was written from docs/watch.md alone.
type stranger struct {
	name string
	in   io.Writer
	out  *bufio.Reader
}

// strangerRests is how long it waits at most before it begins another stream.
const strangerRests = 3 * time.Second

// strangerReport is what it answers.
type strangerReport struct {
	Position uint64
	Whole    bool
	Wrong    []string       // what was against the protocol
	Seen     map[string]int // events and the like
	Items    []watchItem
}

func startStranger(t *testing.T, name string, args ...string) *stranger {
	t.Helper()
	cmd := exec.Command("perl", append([]string{"test/process/testdata/watch_stranger.pl"}, args...)...)
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, procAttr(syscall.SIGKILL)
	if !testing.Verbose() {
		cmd.Stderr = nil
	}
	in, err := cmd.StdinPipe()
	testkit.Must(t, err)
	out, err := cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, procStartCmd(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // by the signal
	})
	return &stranger{name, in, bufio.NewReader(out)}
}

func (p *stranger) report() (r strangerReport, err error) {
	if _, err = io.WriteString(p.in, "\n"); err != nil {
		return r, err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

// strangerRun is a cluster under load, with faults.
type strangerRun struct {
	*watchScene
	t     *testing.T
	rng   *rand.Rand
	quiet sync.RWMutex // held by each write; locked, there is none under way
	ended chan struct{}
}

// write writes at random until the run ends.
func (r *strangerRun) write(rng *rand.Rand) {
	client := procClient(5 * time.Second)
	defer client.CloseIdleConnections()
	keys := []string{"odd/\n", "odd/\r\nid: 7", "odd/\u2028", "odd/\"\\", "odd/\u00fc\U0001f600", "a//b/../c", " ", strings.Repeat("x", 4096)}
	for n := range 150 {
		keys = append(keys, fmt.Sprintf("p%d/%d", n%6, n))
	}
	value := func() []byte {
		b := make([]byte, rng.IntN(60))
		switch rng.IntN(12) {
		case 0:
			return []byte("\n\nevent: reset\rdata: {}\r\n\r\n\x00")
		case 1:
			b = make([]byte, rng.IntN(100_000))
		case 2:
			return []byte("text \u2028 \"and\" \\ more")
		}
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for {
		select {
		case <-r.ended:
			return
		case <-time.After(time.Duration(rng.IntN(30)) * time.Millisecond): // the rhythm of the load
		}
		key := "/v1/kv?key=" + url.QueryEscape(keys[rng.IntN(len(keys))])
		method, path, body := http.MethodPut, key, value()
		switch rng.IntN(10) {
		case 0:
			path += fmt.Sprintf("&ttl=%dms", 100+rng.IntN(2000))
		case 1, 2:
			method, body = http.MethodDelete, nil
		case 3:
			method, path, body = http.MethodDelete, fmt.Sprintf("/v1/kv?prefix=p%d/", rng.IntN(6)), nil
		case 4, 5, 6:
			var then []map[string]any
			for _, k := range rng.Perm(len(keys))[:1+rng.IntN(40)] {
				if rng.IntN(3) == 0 {
					then = append(then, map[string]any{"delete": map[string]any{"key": keys[k]}})
				} else {
					then = append(then, map[string]any{"put": map[string]any{"key": keys[k], "value_base64": value()}})
				}
			}
			method, path = http.MethodPost, "/v1/txn"
			body, _ = json.Marshal(map[string]any{"then": then}) // it is no channel
		}
		r.quiet.RLock()
		_ = procDo(client, method, procURL(r.c.nodes[1+rng.IntN(3)].clientPort)+path, body) // the nodes are killed
		r.quiet.RUnlock()
	}
}

// fault makes one.
func (r *strangerRun) fault(n int) {
	length := time.Duration(r.rng.Int64N(int64(testkit.SoakOr(2*time.Second, 12*time.Second))))
	node := 1 + r.rng.IntN(3)
	if leader := r.c.status(node).Leader; leader != 0 && r.rng.IntN(2) == 0 {
		node = leader
	}
	switch kind := r.rng.IntN(5); kind {
	case 0:
		r.t.Logf("%d: SIGKILL to node %d for %v", n, node, length)
		r.c.kill(node)
		time.Sleep(length)
		r.c.launch(node)
	case 1:
		r.t.Logf("%d: SIGSTOP to node %d for %v", n, node, length)
		r.c.pause(node)
		time.Sleep(length)
		r.c.resume(node)
	case 2:
		r.t.Logf("%d: node %d is stopped for %v", n, node, length)
		r.c.stop(node)
		time.Sleep(length)
		r.c.launch(node)
	default: // connections break at any byte
		for range testkit.SoakOr(1, 3) {
			bytes := 1 + r.rng.Int64N([]int64{600, 5000, 200_000}[r.rng.IntN(3)])
			r.t.Logf("%d: connections break, and the next ones after %d bytes", n, bytes)
			for i, gate := range r.gates {
				gate.cut(bytes, r.c.url(i))() // as soon as there are as many
				gate.close()
				gate.open()
			}
			time.Sleep(strangerRests)
		}
		for i, gate := range r.gates {
			gate.cut(0, r.c.url(i))
		}
	}
}

// equal waits until the clients' copies are what the store holds at the same revision.
func (r *strangerRun) equal(when string, clients []*stranger) {
	r.t.Helper()
	r.quiet.Lock()
	defer r.quiet.Unlock()
	r.c.waitReady(1, 2, 3)
	for _, p := range clients {
		procEventually(r.t, 3*watchWithin, fmt.Sprintf("%s: %s has what the store holds", when, p.name), func() error {
			got, err := p.report()
			if err != nil {
				r.t.Fatalf("%s: %v", p.name, err)
			}
			if len(got.Wrong) > 0 {
				r.t.Fatalf("%s, %s: %q", when, p.name, got.Wrong)
			}
			revision, want := r.pages(1 + r.rng.IntN(3))
			if !got.Whole || got.Position != revision {
				return fmt.Errorf("it is at %d, whole: %v; the store is at %d", got.Position, got.Whole, revision)
			}
			if err := watchDiffers(watchCopy(got.Items), want); err != nil {
				r.t.Fatalf("%s, %s at %d: %v", when, p.name, revision, err)
			}
			return nil
		})
	}
}

// pages is what the store holds; the revision is 0 if it has changed meanwhile.
func (r *strangerRun) pages(node int) (revision uint64, all map[string]watchItem) {
	var items []watchItem
	for after := ""; ; {
		var page struct {
			Revision uint64
			Items    []watchItem
			Next     string
		}
		reply := r.c.do(http.MethodGet, node, "/v1/kv?limit=37&values=base64&start_after="+url.QueryEscape(after), nil)
		if err := json.Unmarshal([]byte(reply.body), &page); err != nil || reply.status != http.StatusOK || revision != 0 && page.Revision != revision {
			return 0, nil
		}
		revision, items, after = page.Revision, append(items, page.Items...), page.Next
		if after == "" {
			return revision, watchCopy(items)
		}
	}
}

// Guarantee: a client that somebody wrote from docs/watch.md alone has a copy that is, byte for byte, what the store holds at
// its position, and sees nothing that the page does not promise, whichever faults there are, one after another.
func TestSoakWatchStranger(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	testkit.NeedTools(t, "perl")
	if exec.Command("perl", "-MJSON::PP", "-MIO::Socket::INET", "-e1").Run() != nil {
		testkit.CannotRun(t, "perl is without its core modules")
	}
	t.Parallel() // it mostly waits
	seed := rand.Uint64()
	if s := os.Getenv("RAFTKV_STRANGER_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		testkit.Must(t, err)
	}
	t.Logf("RAFTKV_STRANGER_SEED=%d", seed)
	r := &strangerRun{watchScene: newWatchScene(t, "--snapshot-count", "50"), t: t, rng: rand.New(rand.NewPCG(seed, 0)), ended: make(chan struct{})}
	var addresses []string
	for _, u := range r.nodes() {
		addresses = append(addresses, strings.TrimPrefix(u, "http://"))
	}
	clients := []*stranger{startStranger(t, "server-sent events", addresses...), startStranger(t, "lines", append([]string{"--ndjson"}, addresses...)...)}
	var load sync.WaitGroup
	for n := range 3 {
		load.Go(func() { r.write(rand.New(rand.NewPCG(seed, 1+uint64(n)))) })
	}
	defer load.Wait()
	defer close(r.ended)
	for n := range testkit.SoakOr(2, 30) {
		time.Sleep(time.Duration(r.rng.IntN(1000)) * time.Millisecond) // the rhythm of the faults
		r.fault(n)
		r.equal(fmt.Sprintf("after fault %d", n), clients)
	}
	for _, p := range clients {
		got, err := p.report()
		testkit.Must(t, err)
		t.Logf("%s: %v", p.name, got.Seen)
	}
}
