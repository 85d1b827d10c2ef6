package boot

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// foundingNode is the peer port of a node that may found a cluster, or is a member of one.
type foundingNode struct {
	*peerclient.Client
	info atomic.Pointer[reconfig.ClusterInfo]
	url  string
}

func (n *foundingNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info := n.info.Load()
	switch {
	case r.URL.Path == peerclient.WhoPath:
		n.Client.ServeHTTP(w, r)
	case r.URL.Path == reconfig.ClusterPath && info != nil:
		web.WriteJSON(w, http.StatusOK, info)
	default:
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// foundingNodes opens the peer ports of n nodes, and returns their list.
func foundingNodes(t *testing.T, n int) (nodes []*foundingNode, list []address.Peer) {
	t.Helper()
	for i := range n {
		node := &foundingNode{Client: peerclient.New()}
		srv := httptest.NewServer(node)
		t.Cleanup(srv.Close)
		node.url = srv.URL
		nodes, list = append(nodes, node), append(list, address.Peer{ID: uint64(i + 1), URL: srv.URL})
	}
	return nodes, list
}

func founderConfig(id uint64, list []address.Peer) config.Config {
	c := config.Config{ID: id, Cluster: list, Discovery: config.Discovery{Scheme: "http", Name: "raftkv.example", Port: 7, Size: len(list)}}
	for _, p := range list {
		if p.ID == id {
			c.PeerURL = p.URL
		}
	}
	return c
}

// Guarantee: nobody founds a cluster before all founding members have said that they found the
// same one, so that answers of DNS that differ make no two clusters.
func TestFoundersAgree(t *testing.T) {
	nodes, list := foundingNodes(t, 3)
	cfg := founderConfig(1, list)
	want := func(missing, wrong string) {
		t.Helper()
		got, err := askFounders(t.Context(), cfg, nodes[0].Client)
		if (err != nil) != (wrong != "") || err != nil && !strings.Contains(err.Error(), wrong) || (got == "") != (missing == "") || !strings.Contains(got, missing) {
			t.Fatalf("missing %q, error %v; want %q, %q", got, err, missing, wrong)
		}
	}
	want(list[1].URL, "")
	text := address.FormatPeers(list)
	nodes[1].SayFounders(text)
	want(list[2].URL, "")
	// One that has another list is no reason to wait, even while one is missing.
	nodes[1].SayFounders(address.FormatPeers(list[:2]))
	want("", "do not agree")
	nodes[1].SayFounders(text)
	nodes[2].SayFounders(text)
	want("", "")
	// One of these has founded it already: then all had agreed.
	nodes[2].SayFounders("")
	nodes[1].info.Store(&reconfig.ClusterInfo{ClusterID: address.ClusterIDOf(list)})
	want("", "")
	nodes[1].info.Store(&reconfig.ClusterInfo{ClusterID: 7})
	want("", "cluster 7")
	// A member of the cluster does not outweigh one of another.
	nodes[2].info.Store(&reconfig.ClusterInfo{ClusterID: address.ClusterIDOf(list)})
	want("", "cluster 7")
}

// Guarantee: a node that takes another's place in the list finds that out.
func TestFounderIsWhoAnswers(t *testing.T) {
	nodes, list := foundingNodes(t, 2)
	for _, n := range nodes {
		n.SayFounders(address.FormatPeers(list))
	}
	if missing, err := askFounders(t.Context(), founderConfig(2, list), nodes[0].Client); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("missing %q, error %v", missing, err)
	}
	if missing, err := askFounders(t.Context(), founderConfig(1, list), nodes[0].Client); err != nil || missing != "" {
		t.Errorf("missing %q, error %v", missing, err)
	}
}

// Guarantee: a founding member that waits leaves its directory empty, and says for whom it
// waits; its list does not change meanwhile.
func TestFounderWaits(t *testing.T) {
	nodes, list := foundingNodes(t, 2)
	cfg := founderConfig(1, list)
	cfg.DataDir = t.TempDir()
	core, logs := observer.New(zapcore.WarnLevel)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := PrepareDir(ctx, cfg, zap.New(core), nodes[0].Client)
		done <- err
	}()
	for logs.FilterMessageSnippet("waiting until all founding members").Len() == 0 {
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if _, said, err := nodes[1].WhoFounds(ctx, list[0].URL); err != nil || said != address.FormatPeers(list) {
		t.Errorf("it says %q, %v", said, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, problem.ErrStopping) {
		t.Errorf("it ended with %v", err)
	}
	if files, err := os.ReadDir(cfg.DataDir); err != nil || len(files) > 0 {
		t.Errorf("it has written %v, %v", files, err)
	}
}

// Guarantee: a pod that lost its disk is refused, and is told how it gets a new ID.
func TestFounderUsedID(t *testing.T) {
	nodes, list := foundingNodes(t, 2)
	cfg := founderConfig(1, list)
	cfg.DataDir, cfg.Discovery.Set = t.TempDir(), "raftkv"
	nodes[1].info.Store(&reconfig.ClusterInfo{ClusterID: address.ClusterIDOf(list), Members: []reconfig.MemberInfo{{ID: 1, Instance: 5}}})
	_, err := PrepareDir(t.Context(), cfg, zap.NewNop(), nodes[0].Client)
	if err == nil || !strings.Contains(err.Error(), "node 1 was part of this cluster before") ||
		!strings.Contains(err.Error(), "dns+http://raftkv.example:7,NEW-ID="+list[0].URL) {
		t.Errorf("the answer is %v", err)
	}
}

// Guarantee: after the first start DNS is not asked: the data directory knows the founding
// members and where this node is, whatever --cluster-size says by then.
func TestDiscoverAgain(t *testing.T) {
	list := []address.Peer{{ID: 1, URL: "http://10.0.0.1:7"}, {ID: 2, URL: "http://10.0.0.2:7"}}
	dir := t.TempDir()
	id := storage.Identity{Format: storage.DirFormat, Node: 2, Instance: 9, ClusterID: address.ClusterIDOf(list), Initial: address.FormatPeers(list)}
	testkit.Must(t, storage.Create(zap.NewNop(), dir, id, state.First(list)))
	cfg := founderConfig(2, nil)
	cfg.DataDir, cfg.Discovery.Size = dir, 5
	cfg, found := discover(t.Context(), cfg, zap.NewNop(), nil)
	if !found || cfg.PeerURL != list[1].URL || address.FormatPeers(cfg.Cluster) != id.Initial {
		t.Errorf("%v: %s, %v", found, cfg.PeerURL, cfg.Cluster)
	}
	// What is given beside counts for where this node is; checkPeerAddress compares.
	cfg = founderConfig(2, nil)
	cfg.DataDir, cfg.PeerURL = dir, "http://10.0.0.7:7"
	if cfg, _ = discover(t.Context(), cfg, zap.NewNop(), nil); cfg.PeerURL != "http://10.0.0.7:7" {
		t.Errorf("it is at %s", cfg.PeerURL)
	}
	// One that has joined stays one that has: it waits for no answer that has so many members.
	id.Node, id.Initial = 4, ""
	for name, known := range map[string][]address.Peer{"addresses": nil, "pods": list} {
		dir := t.TempDir()
		testkit.Must(t, storage.Create(zap.NewNop(), dir, id, state.First(nil)))
		cfg = founderConfig(4, known)
		cfg.DataDir, cfg.PeerURL, cfg.Discovery.Size = dir, "http://10.0.0.4:7", 4
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		cfg, found = discover(ctx, cfg, zap.NewNop(), deafDNS{})
		if !found || !cfg.Join || cfg.PeerURL != "http://10.0.0.4:7" || len(cfg.Cluster) != 0 || len(cfg.Seeds) != len(known) {
			t.Errorf("%s: %v: %+v", name, found, cfg)
		}
	}
}

// deafDNS does not answer.
type deafDNS struct{}

var errDeaf = &net.DNSError{Err: "i/o timeout", IsTimeout: true}

func (deafDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errDeaf
}
func (deafDNS) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errDeaf
}
