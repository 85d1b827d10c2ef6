// Package address answers: is this an ID or an address that a node can have? It
// checks and normalizes IDs, peer URLs and listen addresses, and derives a
// cluster's ID from the list of its first members. It opens no connection and asks
// no resolver.
package address

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

// Peer is one member of the cluster: its raft ID and the URL at which the
// other members reach its peer server.
type Peer struct {
	ID  uint64
	URL string
}

// MaxID is the largest usable raft ID: raft takes those above for itself.
const MaxID = math.MaxUint64 - 2

// CheckID says whether an ID can be the ID of a raft node.
func CheckID(id uint64) error {
	if id == 0 || id > MaxID {
		return fmt.Errorf("expected 1 to %d, because raft keeps the others for itself", uint64(MaxID))
	}
	return nil
}

// ParseID reads a decimal raft ID. Its error says which IDs there can be, also when
// the text is no number at all.
func ParseID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		id = 0 // what is no number is no ID either
	}
	return id, CheckID(id)
}

// ParsePeers reads a list of `id=url` pairs and bare URLs, whose ID is then 0.
// Its error names all that is wrong with the list.
func ParsePeers(list string) ([]Peer, error) {
	var peers []Peer
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

func parsePeer(item string) (p Peer, err error) {
	id, rest, isPair := strings.Cut(item, "=")
	if !isPair {
		rest = item
	} else if p.ID, err = ParseID(id); err != nil {
		return p, fmt.Errorf("ID %q of %q: %w", id, item, err)
	}
	p.URL, err = CheckPeerURL(rest)
	return p, err
}

// FormatPeers returns the canonical text of a list of members, sorted by ID:
// "1=http://127.0.0.1:12379,2=http://127.0.0.1:22379". ParsePeers reads it.
func FormatPeers(peers []Peer) string {
	var pairs []string
	for _, p := range SortedPeers(peers) {
		pairs = append(pairs, fmt.Sprintf("%d=%s", p.ID, p.URL))
	}
	return strings.Join(pairs, ",")
}

// ClusterIDOf derives the cluster ID from the initial members. All of them
// must arrive at the same number, in any order of the list and in every
// version of this program, so it must never change. It is never 0.
func ClusterIDOf(peers []Peer) uint64 {
	var text []byte
	for _, p := range SortedPeers(peers) {
		text = fmt.Appendf(text, "%d=%s\n", p.ID, p.URL)
	}
	sum := sha256.Sum256(text)
	return max(1, binary.BigEndian.Uint64(sum[:])) // 0 means "not set" elsewhere
}

// SortedPeers returns a copy of a list, in the order of the IDs. Peers with the same
// ID, as bare URLs have, are in the order of their URLs.
func SortedPeers(peers []Peer) []Peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.URL, b.URL))
	})
}

// CheckPeerURL returns a peer URL in lower case: http or https, an IP address in its
// shortest form or a DNS name, a port, and nothing else.
//
// It is strict because rafthttp panics on a URL with a path or without a port,
// because a URL that one node accepts is put into the log for all of them, and
// because two spellings of one URL must not look like two members.
func CheckPeerURL(raw string) (string, error) {
	u, err := CheckURL(raw)
	if err != nil {
		// Quoted and cut, what comes from the network cannot flood the log.
		return "", fmt.Errorf("peer URL %.300q: %w", raw, err)
	}
	return u, nil
}

// plainPeerURL is the form that a peer URL has wherever the replicas see it.
var plainPeerURL = regexp.MustCompile(`^https?://(?:[a-z0-9_.-]{1,253}|\[[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*\]):([1-9][0-9]{0,4})$`)

// IsPlainPeerURL says whether a URL of the scheme http may get into the membership, whoever put it
// into the log: rafthttp does not panic on it. It is asked when a change is
// applied, where all replicas must answer alike for ever, whatever they were
// built with. So it knows no more than a form of its own, and what CheckPeerURL
// asks for beyond, the leader asks for before it proposes.
func IsPlainPeerURL(peerURL string) bool {
	return !IsHTTPS(peerURL) && IsPlainURL(peerURL)
}

// IsPlainURL is IsPlainPeerURL for the schemes http and https.
func IsPlainURL(peerURL string) bool {
	m := plainPeerURL.FindStringSubmatch(peerURL)
	if m == nil {
		return false
	}
	port, err := strconv.Atoi(m[1])
	return err == nil && port <= math.MaxUint16
}

// CheckURL does the work of CheckPeerURL, for the URLs of clients as well.
func CheckURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Port() == "":
		return "", errors.New("expected http://host:port or https://host:port, as in http://127.0.0.1:12379")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", errors.New("expected the scheme http or https")
	}
	host, err := CheckHost(u.Hostname())
	if err != nil {
		return "", err
	}
	if IsUnspecified(host) {
		return "", fmt.Errorf("expected an address to reach a node at, and %s is one to listen on", host)
	}
	if err := checkPort(u.Port()); err != nil {
		return "", err
	}
	canonical := u.Scheme + "://" + net.JoinHostPort(host, u.Port())
	if strings.ToLower(raw) != canonical {
		return "", fmt.Errorf("expected only %s", canonical)
	}
	return canonical, nil
}

// dnsName matches a DNS name in lower case. Underscores are allowed, because
// the names of containers have them.
var dnsName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// CheckHost returns the canonical form of an IP address or a DNS name.
func CheckHost(host string) (string, error) {
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

// CheckListen checks a host:port to listen on; no host means all addresses.
func CheckListen(hostPort string) error {
	_, port, err := net.SplitHostPort(hostPort)
	if err != nil || checkPort(port) != nil {
		return errors.New("expected host:port, as in 0.0.0.0:12379")
	}
	return nil
}

// SameListener says, without DNS, whether two host:port are one place.
func SameListener(a, b string) bool {
	aHost, aPort, _ := net.SplitHostPort(a)
	bHost, bPort, _ := net.SplitHostPort(b)
	return aPort == bPort && aPort != "0" && (aHost == bHost || IsUnspecified(aHost) || IsUnspecified(bHost))
}

// IsUnspecified says whether a host means all addresses of the machine.
func IsUnspecified(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || (err == nil && addr.Unmap().IsUnspecified())
}

// HostPortOf returns the host:port of a URL that CheckPeerURL has returned.
func HostPortOf(peerURL string) string {
	_, hostPort, _ := strings.Cut(peerURL, "://")
	return hostPort
}

// IsHTTPS says whether a URL that CheckURL has returned asks for TLS.
func IsHTTPS(url string) bool { return strings.HasPrefix(url, "https://") }

// JoinHostPort returns host:port, with an IPv6 address in brackets.
func JoinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// IsLoopback says whether a host is localhost or a loopback IP address, without
// brackets. It looks no name up.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// HostOf returns the host of a host:port, without brackets. A text that has no port
// comes back as it is.
func HostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// HostOfURL returns the host of a URL in lower case, without port and brackets. It is
// empty if the URL has none or cannot be parsed.
func HostOfURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return strings.ToLower(u.Hostname())
}
