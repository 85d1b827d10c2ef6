package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// peer is one member of the cluster: its raft ID and the URL at which the
// other members reach its peer server.
type peer struct {
	ID  uint64
	URL string
}

// maxID is the largest usable raft ID: raft takes those above for itself.
const maxID = math.MaxUint64 - 2

// checkID says whether an ID can be the ID of a raft node.
func checkID(id uint64) error {
	if id == 0 || id > maxID {
		return fmt.Errorf("expected 1 to %d, because raft keeps the others for itself", uint64(maxID))
	}
	return nil
}

func parseID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		id = 0 // what is no number is no ID either
	}
	return id, checkID(id)
}

// parsePeers reads a list of `id=url` pairs and bare URLs, whose ID is then 0.
// Its error names all that is wrong with the list.
func parsePeers(list string) ([]peer, error) {
	var peers []peer
	var wrong []string
	for item := range strings.SplitSeq(list, ",") {
		p, err := parsePeer(strings.TrimSpace(item))
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		for _, q := range peers {
			if p.ID != 0 && p.ID == q.ID {
				wrong = append(wrong, fmt.Sprintf("ID %d twice", p.ID))
			}
			if p.URL == q.URL {
				wrong = append(wrong, p.URL+" twice")
			}
		}
		peers = append(peers, p)
	}
	if wrong != nil {
		return nil, errors.New(strings.Join(wrong, "; "))
	}
	return peers, nil
}

func parsePeer(item string) (p peer, err error) {
	id, rest, isPair := strings.Cut(item, "=")
	if !isPair {
		rest = item
	} else if p.ID, err = parseID(id); err != nil {
		return p, fmt.Errorf("ID %q of %q: %w", id, item, err)
	}
	p.URL, err = checkPeerURL(rest)
	return p, err
}

// formatPeers returns the canonical text of a list of members, sorted by ID:
// "1=http://127.0.0.1:12379,2=http://127.0.0.1:22379". parsePeers reads it.
func formatPeers(peers []peer) string {
	var pairs []string
	for _, p := range sortedPeers(peers) {
		pairs = append(pairs, fmt.Sprintf("%d=%s", p.ID, p.URL))
	}
	return strings.Join(pairs, ",")
}

// clusterIDOf derives the cluster ID from the initial members. All of them
// must arrive at the same number, in any order of the list and in every
// version of this program, so it must never change. It is never 0.
func clusterIDOf(peers []peer) uint64 {
	var text []byte
	for _, p := range sortedPeers(peers) {
		text = fmt.Appendf(text, "%d=%s\n", p.ID, p.URL)
	}
	sum := sha256.Sum256(text)
	return max(1, binary.BigEndian.Uint64(sum[:])) // 0 means "not set" elsewhere
}

func sortedPeers(peers []peer) []peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b peer) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.URL, b.URL))
	})
}

// checkPeerURL returns a peer URL in lower case: http, an IP address in its
// shortest form or a DNS name, a port, and nothing else.
//
// It is strict because rafthttp panics on a URL with a path or without a port,
// because a URL that one node accepts is put into the log for all of them, and
// because two spellings of one URL must not look like two members.
func checkPeerURL(raw string) (string, error) {
	u, err := checkURL(raw)
	if err != nil {
		// Quoted and cut, what comes from the network cannot flood the log.
		return "", fmt.Errorf("peer URL %.300q: %w", raw, err)
	}
	return u, nil
}

// plainPeerURL is the form that a peer URL has wherever the replicas see it.
var plainPeerURL = regexp.MustCompile(`^http://(?:[a-z0-9_.-]{1,253}|\[[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*\]):([1-9][0-9]{0,4})$`)

// isPlainPeerURL says whether a URL may get into the membership, whoever put it
// into the log: rafthttp does not panic on it. It is asked when a change is
// applied, where all replicas must answer alike for ever, whatever they were
// built with. So it knows no more than a form of its own, and what checkPeerURL
// asks for beyond, the leader asks for before it proposes.
func isPlainPeerURL(peerURL string) bool {
	m := plainPeerURL.FindStringSubmatch(peerURL)
	if m == nil {
		return false
	}
	port, err := strconv.Atoi(m[1])
	return err == nil && port <= math.MaxUint16
}

// checkURL does the work of checkPeerURL, for the URLs of clients as well.
func checkURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Port() == "":
		return "", errors.New("expected http://host:port, as in http://127.0.0.1:12379")
	case u.Scheme != "http":
		return "", errors.New("expected the scheme http")
	}
	host, err := checkHost(u.Hostname())
	if err != nil {
		return "", err
	}
	if isUnspecified(host) {
		return "", fmt.Errorf("expected an address to reach a node at, and %s is one to listen on", host)
	}
	if err := checkPort(u.Port()); err != nil {
		return "", err
	}
	canonical := "http://" + net.JoinHostPort(host, u.Port())
	if strings.ToLower(raw) != canonical {
		return "", fmt.Errorf("expected only %s", canonical)
	}
	return canonical, nil
}

// dnsName matches a DNS name in lower case. Underscores are allowed, because
// the names of containers have them.
var dnsName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// checkHost returns the canonical form of an IP address or a DNS name.
func checkHost(host string) (string, error) {
	// A zone (fe80::1%eth0) means nothing on another machine.
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		return addr.String(), nil
	}
	name := strings.ToLower(host)
	// "0x7f000001" and "10.1" are addresses to some resolvers, names to others.
	_, err := strconv.ParseUint(name[strings.LastIndex(name, ".")+1:], 0, 64)
	if err == nil || len(name) > 253 || !dnsName.MatchString(name) {
		return "", errors.New("expected an IP address or a DNS name as the host")
	}
	return name, nil
}

// checkPort checks a port that a node can be reached at.
func checkPort(port string) error {
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || port[0] == '0' {
		return errors.New("expected a port from 1 to 65535")
	}
	return nil
}

// checkListen checks a host:port to listen on; no host means all addresses.
func checkListen(hostPort string) error {
	_, port, err := net.SplitHostPort(hostPort)
	if err != nil || checkPort(port) != nil {
		return errors.New("expected host:port, as in 0.0.0.0:12379")
	}
	return nil
}

// sameListener says, without DNS, whether two host:port are one place.
func sameListener(a, b string) bool {
	aHost, aPort, _ := net.SplitHostPort(a)
	bHost, bPort, _ := net.SplitHostPort(b)
	return aPort == bPort && aPort != "0" && (aHost == bHost || isUnspecified(aHost) || isUnspecified(bHost))
}

// isUnspecified says whether a host means all addresses of the machine.
func isUnspecified(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || (err == nil && addr.Unmap().IsUnspecified())
}

// hostPortOf returns the host:port of a URL that checkPeerURL has returned.
func hostPortOf(peerURL string) string { return strings.TrimPrefix(peerURL, "http://") }
