package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strconv"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcd is the rival: this program again, with serveEtcd in each process.
type etcd struct {
	self  string   // path of this program
	quota int64    // of the backend; 0 is etcd's default
	tls   *secured // nil: it speaks plain HTTP
}

func (e etcd) command(c *cluster, n *node) []string {
	state := embed.ClusterStateFlagNew
	if n.joined {
		state = embed.ClusterStateFlagExisting
	}
	args := []string{e.self, etcdCommand, "-name", etcdName(n), "-dir", n.dir,
		"-client", e.tls.scheme() + n.client, "-peer", e.tls.scheme() + n.peer, "-state", state,
		"-quota", strconv.FormatInt(e.quota, 10),
		"-cluster", c.peerList(func(n *node) string { return etcdName(n) + "=" + e.tls.scheme() + n.peer })}
	if e.tls != nil {
		args = append(args, "-cert", e.tls.cert(n), "-key", e.tls.key(n), "-ca", e.tls.ca())
	}
	return args
}

func etcdName(n *node) string { return "n" + strconv.Itoa(n.id) }

// ready: etcd answers so once a read that asks the leader succeeds.
func (e etcd) ready(n *node) error { return e.tls.ask("GET", n, "/health", "", nil) }

func (e etcd) state(n *node) (nodeState, error) {
	var st struct {
		Header struct {
			Member string `json:"member_id"`
		}
		Leader  string
		Term    uint64 `json:"raftTerm,string"`
		Applied uint64 `json:"raftAppliedIndex,string"`
	}
	err := e.tls.ask("POST", n, "/v3/maintenance/status", "{}", &st)
	return nodeState{leads: err == nil && st.Header.Member == st.Leader, term: st.Term, applied: st.Applied}, err
}

// serveEtcd is a node of etcd as it comes: only what it must be told is set.
func serveEtcd(ctx context.Context, args []string) error {
	cfg := embed.NewConfig()
	fs := flag.NewFlagSet(etcdCommand, flag.ContinueOnError)
	fs.StringVar(&cfg.Name, "name", "", "name of the node")
	fs.StringVar(&cfg.Dir, "dir", "", "data directory")
	fs.StringVar(&cfg.InitialCluster, "cluster", "", "all nodes, name=URL")
	fs.StringVar(&cfg.ClusterState, "state", "", "new or existing")
	fs.Int64Var(&cfg.QuotaBackendBytes, "quota", 0, "bytes, 0 for etcd's default")
	client := fs.String("client", "", "URL for clients")
	peer := fs.String("peer", "", "URL for the other nodes")
	fs.StringVar(&cfg.ClientTLSInfo.CertFile, "cert", "", "certificate, at both ports")
	fs.StringVar(&cfg.ClientTLSInfo.KeyFile, "key", "", "its key")
	fs.StringVar(&cfg.PeerTLSInfo.TrustedCAFile, "ca", "", "CA of the peers")
	if err := fs.Parse(args); err != nil {
		return err
	}
	clientURL, err := url.Parse(*client)
	peerURL, err2 := url.Parse(*peer)
	if err = errors.Join(err, err2); err != nil {
		return err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	cfg.PeerTLSInfo.CertFile, cfg.PeerTLSInfo.KeyFile = cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile
	cfg.PeerTLSInfo.ClientCertAuth = cfg.PeerTLSInfo.TrustedCAFile != ""
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}

	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	defer server.Close()
	select {
	case err := <-server.Err():
		return err
	case <-ctx.Done():
		return nil
	}
}

// self returns the path of this program.
func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	return path, nil
}
