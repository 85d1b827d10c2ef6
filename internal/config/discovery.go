package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"raftkv/internal/address"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Discovery is where DNS tells of the members: a dns+http or dns+https URL in --cluster.
// The zero Discovery is that of a list that has none.
//
// How members are found follows from what this node was told alone, never from what DNS
// answers: an answer that fails or is partial must not lead to another kind of list.
type Discovery struct {
	// Scheme is that of the peer URLs, http or https. Empty: there is no Discovery.
	Scheme string
	// Name is the DNS name that is asked for. If it begins with an underscore, as
	// _raftkv-peer._tcp.raftkv.example, it is asked for SRV records, which have
	// targets and ports, else for addresses.
	Name string
	// Port is that of all peer URLs; 0 with SRV records.
	Port int
	// Size is --cluster-size, the number of founding members, 1 to MaxFounders. They
	// have the IDs 1 to Size, and none of them founds a cluster without all others.
	Size int
	// Set is the name without ordinal of this node's host: the ID is its ordinal plus 1,
	// as in a StatefulSet, where member 1 runs on raftkv-0. Empty with --id.
	Set string
	// Host is this node's host name, if Set is not empty.
	Host string
}

// MaxFounders is the largest --cluster-size.
const MaxFounders = 64

// dnsPrefix is what a URL begins with that tells of DNS.
const dnsPrefix = "dns+"

// ordinalHost is the host name of a pod of a StatefulSet: its set, and its ordinal.
var ordinalHost = regexp.MustCompile(`^([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)-(0|[1-9][0-9]{0,4})$`)

// Given reports whether the members are found by DNS.
func (d Discovery) Given() bool { return d.Scheme != "" }

// Service reports whether Name is one of SRV records.
func (d Discovery) Service() bool { return strings.HasPrefix(d.Name, "_") }

// HostOf returns the host name of a member in the set.
func (d Discovery) HostOf(id uint64) string { return fmt.Sprintf("%s-%d", d.Set, id-1) }

// URLAt returns the peer URL of a host; "" if no node can have it.
func (d Discovery) URLAt(host string, port int) string {
	u, err := address.CheckPeerURL(d.Scheme + "://" + address.JoinHostPort(host, port))
	if err != nil {
		return ""
	}
	return u
}

// String returns the URL of --cluster.
func (d Discovery) String() string {
	if d.Service() {
		return dnsPrefix + d.Scheme + "://" + d.Name
	}
	return dnsPrefix + d.Scheme + "://" + address.JoinHostPort(d.Name, d.Port)
}

// readCluster reads the text of --cluster, with what it says of DNS.
func (c *Config) readCluster(r *Review, text string, getenv func(string) (string, bool)) {
	list, dns := splitDNS(text)
	if len(dns) == 0 {
		peers, err := address.ParsePeers(text)
		r.Check("cluster", text, err)
		if c.Discovery.Size != 0 {
			r.Check("cluster-size", c.Discovery.Size, fmt.Errorf("expected only with a %shttp URL in %s", dnsPrefix, r.Name("cluster")))
		}
		if r.Sound("id", "join", "cluster") {
			r.Check("cluster", text, c.ResolveCluster(peers))
		}
		return
	}
	c.Cluster, c.PeerURL = nil, ""
	var pairs []address.Peer
	err := c.Discovery.parse(dns)
	if err == nil && list != "" {
		pairs, err = address.ParsePeers(list)
	}
	r.Check("cluster", text, err)
	if r.Sound("id", "join", "cluster", "cluster-size") {
		c.discover(r, text, pairs, hostName(getenv))
	}
}

// splitDNS takes the URLs that tell of DNS off a list.
func splitDNS(text string) (list string, dns []string) {
	var others []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); strings.HasPrefix(strings.ToLower(item), dnsPrefix) {
			dns = append(dns, item)
		} else {
			others = append(others, item)
		}
	}
	return strings.Join(others, ","), dns
}

// parse reads the URL that tells of DNS.
func (d *Discovery) parse(urls []string) error {
	if len(urls) > 1 {
		return fmt.Errorf("expected one %shttp URL", dnsPrefix)
	}
	var rest string
	d.Scheme, rest, _ = strings.Cut(strings.ToLower(urls[0])[len(dnsPrefix):], "://")
	if d.Scheme != "http" && d.Scheme != "https" {
		return fmt.Errorf("expected %shttp:// or %shttps://", dnsPrefix, dnsPrefix)
	}
	if d.Name = rest; d.Service() {
		labels := strings.SplitN(rest, ".", 3)
		if _, err := address.CheckHost(rest); err != nil || len(labels) < 3 || len(labels[0]) < 2 || len(labels[1]) < 2 || labels[1][0] != '_' {
			return errors.New("expected the name of SRV records without a port, as in dns+http://_raftkv-peer._tcp.raftkv.example")
		}
		return nil
	}
	u, err := address.CheckPeerURL(d.Scheme + "://" + rest)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(address.HostPortOf(u))
	if err != nil {
		return err
	}
	if net.ParseIP(host) != nil {
		return errors.New("expected a name that DNS knows, not an address")
	}
	d.Name = host
	d.Port, err = strconv.Atoi(port)
	return err
}

// hostName returns the first label of this machine's name, "" if it has none.
func hostName(getenv func(string) (string, bool)) string {
	name, _ := getenv("HOSTNAME")
	if name == "" {
		name, _ = os.Hostname() // without one, --id is asked for
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}

// discover sets what follows from what this node was told: its ID, and, where DNS need not
// be asked for them, URLs. Otherwise PeerURL stays empty until Found.
func (c *Config) discover(r *Review, text string, pairs []address.Peer, host string) {
	wrong := func(format string, args ...any) { r.Check("cluster", text, fmt.Errorf(format, args...)) }
	d := &c.Discovery
	if d.Size == 0 {
		wrong("expected also %s, the number of founding members, because of the %shttp URL", r.Name("cluster-size"), dnsPrefix)
		return
	}
	if m := ordinalHost.FindStringSubmatch(host); r.Names["id"] == "" && m != nil {
		ordinal, _ := strconv.ParseUint(m[2], 10, 64) // it has few digits
		d.Set, d.Host, c.ID = m[1], host, ordinal+1
	} else if r.Names["id"] == "" {
		wrong("expected also %s, because the name of this host, %q, does not end in an ordinal as raftkv-0 does", r.Name("id"), host)
		return
	}
	if d.Set != "" && !d.Service() {
		c.PeerURL = d.URLAt(host+"."+d.Name, d.Port)
	}
	founder := c.ID <= uint64(d.Size)
	for _, p := range pairs {
		switch {
		case p.ID == 0:
			wrong("expected only id=url pairs beside the %shttp URL, as in %d=%s", dnsPrefix, c.ID, p.URL)
			return
		case d.Set != "" && p.ID <= uint64(d.Size):
			wrong("expected IDs above %d in pairs, since the others are the founders'", d.Size)
			return
		case d.Set != "" && d.IsAt(p.URL, host):
			// Another node in the place of one that lost its disk.
			c.ID, c.PeerURL, founder = p.ID, p.URL, false
		case d.Set == "" && p.ID == c.ID:
			c.PeerURL = p.URL
		}
	}
	c.Join = c.Join || !founder
	if c.Join && d.Set == "" && c.PeerURL == "" {
		wrong("expected also this node's own URL, as in %s,%d=http://10.0.0.4:12379, because it joins", d, c.ID)
		return
	}
	if d.Set == "" || d.Service() {
		return // DNS says where they are
	}
	var founders []address.Peer
	for id := range uint64(d.Size) {
		founders = append(founders, address.Peer{ID: id + 1, URL: d.URLAt(d.HostOf(id+1)+"."+d.Name, d.Port)})
	}
	if slices.ContainsFunc(append(founders, address.Peer{URL: c.PeerURL}), func(p address.Peer) bool { return p.URL == "" }) {
		wrong("expected a shorter name, since %s.%s is no name of a host", host, d.Name)
		return
	}
	c.Found(founders)
}

// IsAt reports whether a peer URL leads to a host, by the first label of its name.
func (d Discovery) IsAt(peerURL, host string) bool {
	label, _, _ := strings.Cut(address.HostOfURL(peerURL), ".")
	return label == host
}

// Found takes over the founding members, or with Join those that may be asked: what
// --cluster would have said.
func (c *Config) Found(peers []address.Peer) {
	if !c.Join {
		c.Cluster = address.SortedPeers(peers)
		for _, p := range peers {
			if p.ID == c.ID {
				c.PeerURL = p.URL
			}
		}
		return
	}
	c.Seeds = nil
	for _, p := range peers {
		if p.URL != c.PeerURL {
			c.Seeds = append(c.Seeds, p.URL)
		}
	}
}

// validateDiscovery notes how what is said of DNS contradicts what else is set. What a list
// of members could have at this point is looked at where it can be known.
func (c *Config) validateDiscovery(r *Review) {
	if c.Discovery.Scheme == "https" && c.PeerCertFile == "" && !address.IsHTTPS(c.PeerURL) { // else validateDoors says it
		r.Check("cluster", c.Discovery, fmt.Errorf("expected also %s, %s and %s, because of the scheme https",
			r.Name("peer-cert-file"), r.Name("peer-key-file"), r.Name("peer-trusted-ca-file")))
	}
}

// parseFounders reads a --cluster-size.
func parseFounders(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		n = 0
	}
	return n, within(n, 1, MaxFounders)
}
