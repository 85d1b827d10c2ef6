//go:build unix

package process

import (
	"fmt"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/peerclient"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: a second name of a member's address is refused, whoever is asked, and nothing changes; a member that moves to
// its own other name is not.
func TestProcTwoNamesOneNode(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	named := func(i int) string { return fmt.Sprintf("http://localhost:%d", c.nodes[i].peerPort) }
	if resp, err := http.Get(named(1) + peerclient.WhoPath); err != nil {
		testkit.CannotRun(t, "localhost does not lead to 127.0.0.1: "+err.Error())
	} else {
		resp.Body.Close()
	}
	before := c.do(http.MethodGet, 1, "/v1/members", nil).body
	for via := 1; via <= 3; via++ {
		for of := 1; of <= 3; of++ {
			what := fmt.Sprintf("node %d by another name, at node %d", of, via)
			r := c.do(http.MethodPost, via, "/4", []byte(named(of)))
			procWantProblem(t, what, r, http.StatusConflict, "member_exists")
			if !strings.Contains(r.body, fmt.Sprintf("leads to member %d, which is at %s", of, procURL(c.nodes[of].peerPort))) {
				t.Errorf("%s: %v", what, r)
			}
		}
	}
	r := c.do(http.MethodPost, 1, "/v1/members", fmt.Appendf(nil, `{"peer_url":%q}`, named(2)), "Content-Type", "application/json")
	procWantProblem(t, "POST /v1/members", r, http.StatusConflict, "member_exists")
	r = c.do(http.MethodPatch, 1, "/v1/members/3", fmt.Appendf(nil, `{"peer_url":%q}`, named(2)), "Content-Type", "application/json")
	procWantProblem(t, "PATCH to another member's address", r, http.StatusConflict, "member_exists")
	for i := 1; i <= 3; i++ {
		c.put(i, "k", "v")
	}
	if after := c.do(http.MethodGet, 1, "/v1/members", nil).body; strings.Count(after, `"id"`) != 3 || strings.Contains(after, "localhost") {
		t.Errorf("the members were\n%s\nand are\n%s", before, after)
	}
	r = c.do(http.MethodPatch, 1, "/v1/members/3", fmt.Appendf(nil, `{"peer_url":%q}`, named(3)), "Content-Type", "application/json")
	if r.status != http.StatusOK {
		t.Errorf("PATCH to its own other name: %v", r)
	}
}

// Guarantee: a --cluster that names one node twice founds no cluster, on the node that it names and on one that sees it run.
func TestProcTwoNamesInCluster(t *testing.T) {
	c := newProcCluster(t, 2)
	one, three := c.nodes[1], c.newNode(3)
	list := fmt.Sprintf("http://127.0.0.1:%d,http://localhost:%d,%s", one.peerPort, one.peerPort, procURL(three.peerPort))
	one.args, three.args = c.args(one, list), c.args(three, list)
	c.launch(1)
	if out := c.waitExit(1, config.ExitFault, 20*time.Second); !strings.Contains(out, "names one node twice") || !strings.Contains(out, "localhost") {
		t.Errorf("node 1 says\n%s", out)
	}
	if dir := procTree(t, one.dataDir); len(dir) > 1 { // the lock
		t.Errorf("it has made %v", dir)
	}
	// Something runs at that address, and node 3 asks it.
	one.args = c.args(one, procURL(one.peerPort)+","+procURL(three.peerPort))
	c.launch(1)
	procEventually(t, procReadyWithin, "node 1 says who it is", func() error {
		resp, err := http.Get(procURL(one.peerPort) + peerclient.WhoPath)
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	c.launch(3)
	if out := c.waitExit(3, config.ExitFault, 20*time.Second); !strings.Contains(out, "names one node twice") {
		t.Errorf("node 3 says\n%s", out)
	}
}
