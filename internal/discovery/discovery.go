// Package discovery answers: whom does DNS name as the members of this cluster? It asks until
// the answer is whole, and puts the members into an order that does not depend on who asks
// or when. It does not know whether they agree; package boot sees to that.
package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Resolver is what is asked. A *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

const (
	// lookupLimit is how long one question may take, and askEvery the time from an answer
	// that is not whole to the next question. Negative answers are cached for seconds.
	lookupLimit = 5 * time.Second
	askEvery    = time.Second
	// sayEvery is the time between two lines of the log that say the same.
	sayEvery = 10 * time.Second
	// maxNamed is how many members an answer is taken to name. It is far beyond those
	// that a cluster can use.
	maxNamed = 4 * config.MaxFounders
)

// Members asks DNS until its answer is whole, and returns cfg with the founding members that
// it names (config.Found) or, with Join, whom to ask. Nothing is asked that cfg has already.
// The error is that of ctx.
func Members(ctx context.Context, cfg config.Config, log *zap.Logger, dns Resolver) (config.Config, error) {
	d := cfg.Discovery
	if d.Set != "" && !d.Service() {
		return cfg, nil // the names follow from that of the host
	}
	err := until(ctx, log, d, func(ctx context.Context) error {
		named, err := ask(ctx, dns, d)
		if err != nil {
			return err
		}
		return settle(&cfg, named)
	})
	return cfg, err
}

// Once is Members for a node that can do without: DNS is asked once.
func Once(ctx context.Context, cfg config.Config, log *zap.Logger, dns Resolver) config.Config {
	d := cfg.Discovery
	if d.Set != "" && !d.Service() {
		return cfg
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	named, err := ask(ctx, dns, d)
	if err == nil {
		err = settle(&cfg, named)
	}
	if err != nil {
		log.Warn("DNS does not name the members now; the data directory does", zap.Stringer("cluster", d), zap.Error(err))
	}
	return cfg
}

// OwnName waits until DNS knows the host of a peer URL, on which this node is to listen. A
// new pod's name is not known at once.
func OwnName(ctx context.Context, cfg config.Config, log *zap.Logger, dns Resolver) error {
	host := address.HostOf(cfg.PeerListener())
	if net.ParseIP(host) != nil || host == "" {
		return nil
	}
	return until(ctx, log, cfg.Discovery, func(ctx context.Context) error {
		_, err := dns.LookupNetIP(ctx, "ip", host)
		return err
	})
}

// until calls try until it succeeds, and says why it does not. Its error is that of ctx.
func until(ctx context.Context, log *zap.Logger, d config.Discovery, try func(context.Context) error) error {
	var said string
	var at time.Time
	for {
		limited, cancel := context.WithTimeout(ctx, lookupLimit)
		err := try(limited)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case reason(err) != said || time.Since(at) >= sayEvery:
			said, at = reason(err), time.Now()
			log.Warn("waiting until DNS names the members", zap.Stringer("cluster", d), zap.Int("cluster-size", d.Size), zap.NamedError("because", err))
		}
		select {
		case <-time.After(askEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reason tells errors apart that are worth a line each. The text of one that comes from a
// DNS server does not: it has the port from which this question was asked.
func reason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return fmt.Sprint(dns.Name, dns.IsNotFound, dns.IsTimeout)
	}
	return err.Error()
}

// place is where DNS says that a member is.
type place struct {
	addr netip.Addr // of an address
	name string     // of an SRV record's target
	port int
}

// host returns the host of a place's URL.
func (p place) host() string {
	if p.name != "" {
		return p.name
	}
	return p.addr.String()
}

// ask returns the places that DNS names, each once, in their order: by address, or by name.
func ask(ctx context.Context, dns Resolver, d config.Discovery) ([]place, error) {
	var named []place
	if d.Service() {
		labels := strings.SplitN(d.Name, ".", 3)
		_, records, err := dns.LookupSRV(ctx, labels[0][1:], labels[1][1:], labels[2])
		if err != nil {
			return nil, err // also when some of the records could be read
		}
		for _, r := range records {
			named = append(named, place{name: strings.ToLower(strings.TrimSuffix(r.Target, ".")), port: int(r.Port)})
		}
	} else {
		addrs, err := addresses(ctx, dns, d.Name)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			named = append(named, place{addr: a.Unmap().WithZone(""), port: d.Port})
		}
	}
	if len(named) > maxNamed {
		return nil, fmt.Errorf("%d members are more than %d", len(named), maxNamed)
	}
	slices.SortFunc(named, func(a, b place) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.name, b.name), cmp.Compare(a.port, b.port))
	})
	return slices.Compact(named), nil
}

// addresses returns those of one family: the IPv4 addresses and, only if DNS says that there
// are none, the IPv6 addresses. A host with both is one member.
func addresses(ctx context.Context, dns Resolver, name string) ([]netip.Addr, error) {
	four, err := dns.LookupNetIP(ctx, "ip4", name)
	var dnsErr *net.DNSError
	if err == nil && len(four) > 0 || err != nil && !(errors.As(err, &dnsErr) && dnsErr.IsNotFound) {
		return four, err
	}
	return dns.LookupNetIP(ctx, "ip6", name)
}

// settle puts what DNS names into cfg, unless it is not whole. Then cfg stays as it is.
func settle(cfg *config.Config, named []place) error {
	d, ownURL := cfg.Discovery, cfg.PeerURL
	var peers []address.Peer
	for _, p := range named {
		u := d.URLAt(p.host(), p.port)
		if u == "" {
			return fmt.Errorf("no node can have the host %q and the port %d", p.host(), p.port)
		}
		if d.Set != "" && ownURL == "" && d.IsAt(u, d.Host) {
			ownURL = u
		}
		peers = append(peers, address.Peer{URL: u})
	}
	if d.Set != "" && ownURL == "" {
		return fmt.Errorf("this host, %s, is not yet among %d targets", d.Host, len(peers))
	}
	if cfg.Join {
		if !slices.ContainsFunc(peers, func(p address.Peer) bool { return p.URL != ownURL }) {
			return errors.New("it names no other node")
		}
		cfg.PeerURL = ownURL
		cfg.Found(peers)
		return nil
	}
	founders, err := found(d, peers)
	if err != nil {
		return err
	}
	if u := founders[cfg.ID-1].URL; ownURL != "" && ownURL != u {
		return fmt.Errorf("this node is to be at %s, but what DNS names makes %s member %d", ownURL, u, cfg.ID)
	}
	cfg.Found(founders)
	return nil
}

// found returns the founding members among the nodes that DNS names in their order. In a set
// they are those with the ordinals below the size, whoever else is there; otherwise they
// are all, so that more of them than the size are as wrong as fewer.
func found(d config.Discovery, named []address.Peer) ([]address.Peer, error) {
	if d.Set == "" {
		if len(named) != d.Size {
			return nil, fmt.Errorf("it names %d, and --cluster-size is %d", len(named), d.Size)
		}
		for i := range named {
			named[i].ID = uint64(i + 1)
		}
		return named, nil
	}
	var founders []address.Peer
	for id := uint64(1); id <= uint64(d.Size); id++ {
		at := slices.IndexFunc(named, func(p address.Peer) bool { return d.IsAt(p.URL, d.HostOf(id)) })
		if at < 0 {
			return nil, fmt.Errorf("%s is not yet among %d targets", d.HostOf(id), len(named))
		}
		founders = append(founders, address.Peer{ID: id, URL: named[at].URL})
	}
	return founders, nil
}
