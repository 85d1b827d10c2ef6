package command

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"raftkv/internal/config"
	"slices"
	"strings"
	"time"
)

// How a command reaches a cluster.

// DefaultEndpoints are asked when no others were given: the three nodes of the README,
// and a node without flags.
const DefaultEndpoints = "http://127.0.0.1:12380,http://127.0.0.1:22380,http://127.0.0.1:32380,http://127.0.0.1:9121"

// TokenVariable is the environment variable with the token itself. There is no such flag:
// everybody on a machine sees the command lines of all.
const TokenVariable = "RAFTKV_TOKEN"

// DefaultTimeout is how long a request may take, with all that is tried again: some elections,
// and no longer than somebody waits to hear that no node runs.
const DefaultTimeout = 10 * time.Second

// Connection is what the flags of every Remote command say.
type Connection struct {
	Endpoints     []string      // base URLs of nodes; never none
	TokenFile     string        // a file with the token; "" for none
	Token         string        // the token itself; "" for none. TokenFile counts more
	CACert        string        // a file with the CAs of the nodes' certificates; "" for the system's
	Cert, Key     string        // files with the own certificate and its key; "" for none
	Timeout       time.Duration // of one request
	endpointsText string
}

// newConnection returns the connection without any flags.
func newConnection() Connection {
	return Connection{endpointsText: DefaultEndpoints, Timeout: DefaultTimeout}
}

// Settings returns the flags of c.
func (c *Connection) Settings() []config.Setting {
	file := func(field *string) func(string) error { return config.Into(field, config.ParseText, "") }
	return []config.Setting{
		{Flag: "endpoints", Arg: "LIST", Env: "RAFTKV_ENDPOINTS", Set: config.Into(&c.endpointsText, config.ParseText, ""),
			Help: "base URLs of nodes; the next one is asked when one fails (those of the README, and port 9121)"},
		{Flag: "token-file", Arg: "FILE", Env: "RAFTKV_TOKEN_FILE", Help: "the token is in this file (that in " + TokenVariable + ")", Set: file(&c.TokenFile)},
		{Flag: "cacert", Arg: "FILE", Env: "RAFTKV_CACERT", Help: "CAs of the nodes' certificates, in PEM (the system's)", Set: file(&c.CACert)},
		{Flag: "cert", Arg: "FILE", Env: "RAFTKV_CLIENT_CERT", Help: "certificate of this client, in PEM (none)", Set: file(&c.Cert)},
		{Flag: "key", Arg: "FILE", Env: "RAFTKV_CLIENT_KEY", Help: "its private key", Set: file(&c.Key)},
		{Flag: "timeout", Arg: "TIME", Env: "RAFTKV_TIMEOUT", Help: "how long a request may take, with all that is tried again (10s)",
			Set: config.Into(&c.Timeout, ParsePeriod, "")},
	}
}

// ParsePeriod takes a time above zero, with its unit.
func ParsePeriod(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, errors.New("expected a time with its unit, as in 500ms, 30s or 1h")
	}
	return d, nil
}

// check notes what is wrong with c.
func (c *Connection) check(r *config.Review, env func(string) (string, bool)) {
	c.Token, _ = env(TokenVariable)
	for item := range strings.SplitSeq(c.endpointsText, ",") {
		endpoint, err := parseEndpoint(item)
		if err == nil && slices.Contains(c.Endpoints, endpoint) {
			err = errors.New("expected each only once")
		}
		if err != nil {
			r.Check("endpoints", item, err)
			continue
		}
		c.Endpoints = append(c.Endpoints, endpoint)
	}
	if (c.Cert == "") != (c.Key == "") {
		given, missing := "cert", "key"
		if c.Cert == "" {
			given, missing = missing, given
		}
		r.Check(given, cmp.Or(c.Cert, c.Key), fmt.Errorf("expected also %s", r.Name(missing)))
	}
}

// parseEndpoint takes the base URL of a node; without a scheme it is http.
func parseEndpoint(text string) (string, error) {
	text = strings.TrimSuffix(strings.TrimSpace(text), "/")
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || text != u.Scheme+"://"+u.Host {
		return "", errors.New("expected the base URL of a node, as in http://127.0.0.1:12380")
	}
	return text, nil
}
