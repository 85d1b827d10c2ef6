package client

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// An endpoint that failed is asked last for a while, which doubles with each failure that
// follows.
const (
	leastRest = time.Second
	mostRest  = 30 * time.Second
)

// maxEndpoints bounds Config.Endpoints.
const maxEndpoints = 100

// endpoint is one base URL.
type endpoint struct {
	base    string // without a slash at the end
	scheme  string
	host    string // with the port
	private bool   // a token may go there

	// Guarded by endpoints.mu.
	rest  time.Duration // how long it rests after the next failure
	until time.Time     // asked last until then
	other string        // not "": it is of this other cluster, and never asked again
}

// endpoints are those of a client, and which of them is asked.
type endpoints struct {
	all []*endpoint

	mu  sync.Mutex
	now int // the one that is asked
}

// newEndpoints reads base URLs.
func newEndpoints(urls []string) (*endpoints, error) {
	if len(urls) == 0 || len(urls) > maxEndpoints {
		return nil, fmt.Errorf("client: %d endpoints; 1 to %d are needed", len(urls), maxEndpoints)
	}
	e := new(endpoints)
	for _, u := range urls {
		one, err := newEndpoint(u)
		if err != nil {
			return nil, fmt.Errorf("client: endpoint %q: %w", u, err)
		}
		if slices.ContainsFunc(e.all, func(o *endpoint) bool { return o.base == one.base }) {
			return nil, fmt.Errorf("client: endpoint %q is there twice", u)
		}
		e.all = append(e.all, one)
	}
	return e, nil
}

func newEndpoint(text string) (*endpoint, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("it must begin with http:// or https://")
	case u.Hostname() == "":
		return nil, errors.New("it has no host")
	case u.User != nil:
		return nil, errors.New("it has a user name, which is not supported: see Config.TokenSource")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("it must have a scheme, a host and a port alone")
	}
	e := &endpoint{base: u.Scheme + "://" + u.Host, scheme: u.Scheme, host: u.Host, rest: leastRest}
	e.private = u.Scheme == "https" || loopback(u.Hostname())
	return e, nil
}

// loopback reports whether a host is this machine by its name alone, without asking
// anybody for an address.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

func (e *endpoints) urls() []string {
	var urls []string
	for _, o := range e.all {
		urls = append(urls, o.base)
	}
	return urls
}

// pick returns the endpoint to ask: the one that is in use, unless it has failed lately or
// is one of those that are to be left out, else the next that has not, else of those that
// have the one whose rest ends first. It is nil if all are left out.
func (e *endpoints) pick(leaveOut func(*endpoint) bool) *endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	var best *endpoint
	now := time.Now()
	for i := range e.all {
		at := (e.now + i) % len(e.all)
		o := e.all[at]
		if o.other != "" || leaveOut != nil && leaveOut(o) {
			continue
		}
		if !now.Before(o.until) {
			return o
		}
		if best == nil || o.until.Before(best.until) {
			best = o
		}
	}
	return best
}

// failed notes that an endpoint did not do what it was asked: others come first for a while.
func (e *endpoints) failed(o *endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if now.Before(o.until) {
		return // many requests failed at the same time
	}
	o.until = now.Add(o.rest)
	o.rest = min(2*o.rest, mostRest)
	if e.all[e.now] == o {
		e.now = (e.now + 1) % len(e.all)
	}
}

// served notes that an endpoint did what it was asked: it stays in use.
func (e *endpoints) served(o *endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o.rest, o.until = leastRest, time.Time{}
	if i := slices.Index(e.all, o); i >= 0 {
		e.now = i
	}
}

// foreign notes that an endpoint is of another cluster.
func (e *endpoints) foreign(o *endpoint, cluster string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o.other = cluster
}

// named returns the endpoint of a base URL that New was given; nil if there is none.
func (e *endpoints) named(text string) *endpoint {
	for _, o := range e.all {
		if o.base == strings.TrimSuffix(text, "/") {
			return o
		}
	}
	return nil
}
