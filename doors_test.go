//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/doors"
	"raftkv/internal/listening"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// published has a member publish doors, as far as the node has applied the log.
func (at *apiTest) published(id uint64, d doors.Doors) {
	at.kv.mu.Lock()
	defer at.kv.mu.Unlock()
	at.kv.state.Membership.Publish(id, 100+id, "http://x", state.DoorsLevel)
	at.kv.state.Membership.PublishDoors(id, 100+id, d.Encode())
	at.kv.publish()
}

// Guarantee: a node without an auth file, in a cluster of which a member has published
// rights, answers clients nothing but whether it lives and is ready, on every way to it;
// nothing is proposed, and nobody is asked. And it says what to do.
func TestAPIFailsClosed(t *testing.T) {
	at := newTxnTest(t)
	at.do("PUT", "/k", "v")
	at.published(2, doors.Doors{Rights: doors.HasFile})
	proposed, asked := at.proposed, at.asked
	for _, tt := range []string{
		"GET /k", "HEAD /k", "PUT /k", "GET /v1/kv/k", "PUT /v1/kv/k", "DELETE /v1/kv/k", "GET /k?consistency=stale", "GET /v1/kv/k?consistency=stale",
		"GET /v1/kv", "GET /v1/kv?consistency=stale", "POST /v1/kv?prefix=p/", "DELETE /v1/kv?prefix=p/", "POST /v1/add?key=n", "POST /v1/txn",
		"GET /v1/leases", "POST /v1/leases", "GET /v1/leases/1", "PUT /v1/leases/1", "DELETE /v1/leases/1", "GET /v1/leases?consistency=stale",
		"GET /v1/members", "POST /v1/members", "GET /v1/members/1", "PATCH /v1/members/1", "DELETE /v1/members/1", "POST /v1/leader", "POST /4", "DELETE /4",
		"GET /v1/snapshot", "GET /v1/status", "GET /v1/errors", "GET /v1/openapi.yaml", "GET /metrics", "GET /readyz?verbose", "GET /", "GET /v1/nosuch",
	} {
		method, target, _ := strings.Cut(tt, " ")
		w := at.do(method, target, "1")
		if method == "HEAD" {
			if w.Code != 503 {
				t.Errorf("%s: %d", tt, w.Code)
			}
			continue
		}
		if detail := at.problem(tt, w, 503, "not_ready"); !strings.Contains(detail, "member 2") || !strings.Contains(detail, "--auth-file") {
			t.Errorf("%s says %q", tt, detail)
		}
	}
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		if status, err := at.plainBy(nil, api.KeyRequest{Method: method, Key: "k", Long: true}, "1"); err == nil || problem.Of(err).Code != "not_ready" {
			t.Errorf("%s by the front: %d, %v", method, status, err)
		}
	}
	if at.proposed != proposed || at.asked != asked {
		t.Errorf("%d proposals, %d reads", at.proposed-proposed, at.asked-asked)
	}
	at.want(at.do("GET", "/livez", ""), 200, "ok\n")
	if detail := at.problem("readiness", at.do("GET", "/readyz", ""), 503, "not_ready"); !strings.Contains(detail, "has the rights") {
		t.Errorf("it is not ready because %q", detail)
	}
	at.published(2, doors.Doors{Rights: doors.Off})
	if w := at.do("GET", "/k", ""); w.Code != 200 {
		t.Errorf("there are no rights any more: %d %s", w.Code, w.Body)
	}
}

// Guarantee: what began before the node knew of the rights of its cluster does not end with
// an answer that tells anything.
func TestAPIFailsClosedUnderWay(t *testing.T) {
	for _, tt := range []string{
		"GET /k", "GET /v1/kv/k", "PUT /k", "DELETE /v1/kv/k", "GET /v1/kv", "POST /v1/add?key=n", "POST /v1/leases", "GET /v1/leases", "PUT /v1/leases/1",
		"GET /v1/members", "GET /v1/snapshot", "POST /v1/kv?prefix=p/", `POST /v1/txn`,
	} {
		at := newTxnTest(t)
		at.do("PUT", "/k", "secret")
		rights := func() { at.published(2, doors.Doors{Rights: doors.HasFile}) }
		at.a.keys.Fresh.Confirm = func(context.Context) error { rights(); return nil }
		confirmBy(at.a.keys.Fresh)
		write := at.a.keys.Writes.(proposeFunc)
		slow := proposeFunc(func(ctx context.Context, cmd []byte) state.Result { rights(); return write(ctx, cmd) })
		at.a.keys.Writes, at.a.leases.Commands.Propose, at.a.txns.Commands.Propose = slow, slow, slow
		method, target, _ := strings.Cut(tt, " ")
		body := map[string]string{"POST /v1/leases": `{"ttl":"10s"}`, "PUT /v1/leases/1": "", "POST /v1/txn": `{"then":[{"get":{"key":"k"}}]}`}
		text, ok := body[tt]
		if !ok {
			text = "1"
		}
		at.problem(tt, at.do(method, target, text), 503, "not_ready")
	}
}

// Guarantee: a stream and a read that waits end when the node learns that its cluster has
// rights and it has none.
func TestWatchFailsClosed(t *testing.T) {
	wt := &watchTest{apiTest: newTxnTest(t)} // whose hub asks as that of a node does
	wt.watches()
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()))
	testkit.Must(t, err)
	var h http.Handler = wt.a
	l.handler.Store(&h)
	t.Cleanup(func() { testkit.Must(t, l.close()) })
	wt.stoppableListener = l
	wt.do("PUT", "/k", "v")
	stream := wt.watch("key=k")
	poll := wt.poll("GET", "/k?wait=20s", "If-None-Match", `"1"`)
	wt.waits(2)
	wt.published(2, doors.Doors{Rights: doors.HasFile})
	e := stream.next()
	for e.Event == "" { // where it is
		e = stream.next()
	}
	if e.String() != "unavailable not_ready" {
		t.Errorf("the stream says %v", e)
	}
	stream.ends()
	for _, query := range []string{"key=k", "key=k&state=true", "prefix=&after_revision=0"} {
		if w := wt.watch(query); w.next().String() != "unavailable not_ready" {
			t.Errorf("a watch of %s says something else", query)
		}
	}
	wantPolled(t, "a read that waits", poll, 503, "not_ready")
}

// simAuthFile writes a file of rights in which everybody may do everything.
func simAuthFile(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "rights.yaml")
	testkit.Must(t, os.WriteFile(name, []byte("anonymous: all\n"), 0o600))
	return name
}

// answers returns what a node answers to a request of a client.
func (c *simCluster) answers(id uint64, method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "http://127.0.0.1:9121"+target, strings.NewReader(body))
	c.Nodes[id].Life.api.ServeHTTP(w, r)
	return w
}

// differ returns in what the members differ from a node, as that tells it.
func (c *simCluster) differ(id uint64) map[uint64]string {
	var got struct {
		Members []struct {
			ID     uint64
			Differ string `json:"doors_differ"`
		}
	}
	w := c.answers(id, "GET", "/v1/members?consistency=stale", "")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		c.T.Fatalf("node %d: %d %s", id, w.Code, w.Body)
	}
	all := make(map[uint64]string)
	for _, m := range got.Members {
		if m.Differ != "" {
			all[m.ID] = m.Differ
		}
	}
	return all
}

// Guarantee: a node publishes its doors, and those that lack what others have serve nobody:
// also one that joins, one that gets the state by a snapshot, and one that was restarted
// without its file, from its first moment. Whoever differs is named after a minute.
func TestSimDoors(t *testing.T) {
	file := simAuthFile(t)
	flags := map[uint64]config.Doors{}
	simulateWith(t, 3, func(cfg *config.Config) {
		if d, ok := flags[cfg.ID]; ok {
			cfg.Doors = d
		}
		cfg.SnapshotCount = 20
	}, func(c *simCluster) {
		with := func(id uint64, change func(d *config.Doors)) {
			d := config.DefaultConfig().Doors
			change(&d)
			flags[id] = d
			if n, ok := c.Nodes[id]; ok && n != nil {
				c.Stop(id)
				c.Start(id)
			}
		}
		none := func(*config.Doors) {}
		hasFile := func(d *config.Doors) { d.AuthFile = file }
		off := func(d *config.Doors) { d.Auth = config.AuthOff }
		serves := func(when string, want ...uint64) {
			t.Helper()
			c.Leader()
			time.Sleep(5 * time.Second)
			for _, id := range c.Up() {
				open := false
				for _, w := range want {
					open = open || w == id
				}
				w := c.answers(id, "GET", "/v1/kv?limit=1", "")
				if open != (w.Code == 200) || !open && !strings.Contains(w.Body.String(), "not_ready") {
					t.Errorf("%s: node %d answers %d %s", when, id, w.Code, w.Body)
				}
			}
		}
		c.Await("the level", func() bool { return c.Nodes[c.Leader()].Life.kv.Status().Level >= state.DoorsLevel })
		serves("a plain cluster", 1, 2, 3)
		if d := c.Nodes[1].Life.kv.members().Members[1].Doors; d != "" {
			t.Errorf("a plain node has published %x", d)
		}
		with(2, off)
		with(1, hasFile)
		serves("one has rights, one is told to serve", 1, 2)
		time.Sleep(doors.Patience + time.Second)
		if got := c.differ(1); !strings.Contains(got[2], "rights: off, here on") || !strings.Contains(got[3], "rights: lacking") || len(got) != 2 {
			t.Errorf("to node 1 differ %v", got)
		}
		if w := c.answers(2, "GET", "/readyz?verbose", ""); !strings.Contains(w.Body.String(), "note member 1 lets others in otherwise") {
			t.Errorf("node 2 notes %s", w.Body)
		}
		if w := c.answers(2, "GET", "/metrics", ""); !strings.Contains(w.Body.String(), "raftkv_doors_differ 2") {
			t.Error("the metric does not count members 1 and 3")
		}

		testkit.Must(t, c.change(c.Leader(), addRequest(4)))
		c.Join(4)
		serves("one joins without", 1, 2)
		with(4, hasFile)
		with(3, hasFile)
		with(2, hasFile)
		serves("all have rights", 1, 2, 3, 4)
		time.Sleep(time.Second)
		if got := c.differ(3); len(got) != 0 {
			t.Errorf("all have the same, and to node 3 differ %v", got)
		}

		c.Stop(3)
		for i := range 100 {
			c.Put(c.Leader(), fmt.Sprint("k", i%7), c.Value())
		}
		flags[3] = config.DefaultConfig().Doors
		c.Start(3)
		if err := c.Nodes[3].Life.kv.doors.MayServe(); err == nil {
			t.Error("a node that lost its file is open until it has caught up")
		}
		serves("one has lost its file", 1, 2, 4)
		for _, id := range []uint64{1, 2, 4} {
			with(id, none)
		}
		serves("all have")
		for _, id := range []uint64{1, 2, 3, 4} {
			with(id, off)
		}
		serves("all are told to serve", 1, 2, 3, 4)
		for _, id := range []uint64{1, 2, 3, 4} {
			with(id, none)
		}
		serves("without rights again", 1, 2, 3, 4)
	})
}

// Guarantee: the URL of a member becomes one with https only once all have said that they
// can reach it, and no member is asked for what it cannot do.
func TestSimSchemeIsGuarded(t *testing.T) {
	certs := map[uint64]bool{}
	simulateWith(t, 3, func(cfg *config.Config) {
		if certs[cfg.ID] {
			cfg.PeerCertFile, cfg.PeerKeyFile, cfg.PeerTrustedCAFile, cfg.PeerTLS = "c", "k", "ca", config.Optional
		}
	}, func(c *simCluster) {
		url := strings.Replace(c.Nodes[1].Life.cfg.PeerURL, "http:", "https:", 1)
		move := func() error {
			return c.change(c.Leader(), reconfig.Request{Op: membership.OpMove, ID: 1, PeerURL: url})
		}
		c.Await("the level", func() bool { return c.Nodes[c.Leader()].Life.kv.Status().Level >= state.DoorsLevel })
		for id := uint64(1); id <= 3; id++ {
			if err := move(); err == nil || problem.CodeOf(err) != "upgrading" || !strings.Contains(err.Error(), fmt.Sprintf("member %d", id)) {
				t.Errorf("member %d cannot: %v", id, err)
			}
			certs[id] = true
			c.Stop(id)
			c.Start(id)
			c.Await("its doors", func() bool {
				m := c.Nodes[c.Leader()].Life.kv.members()
				return m.Members[id].Doors != ""
			})
		}
	})
}
