package config

import (
	"errors"
	"fmt"
	"net"
	"raftkv/internal/address"
	"strconv"
	"strings"
)

// Doors are the settings that say who comes in, at which port, and what is written down
// of it. Each is a flag, as those of Config.
type Doors struct {
	// CertFile and KeyFile are the certificate, with those that it needs of its chain, and
	// the private key of the client port, in PEM. Default "": the port speaks plain HTTP.
	CertFile, KeyFile string
	// TrustedCAFile has the CAs, in PEM, by which certificates of clients are verified.
	// Default "": clients are not asked for any.
	TrustedCAFile string
	// ClientCertAuth lets in no client without a certificate. Default false.
	ClientCertAuth bool
	// ClientTLS is Required, or Optional while a running cluster is switched: then the
	// client port takes plain HTTP as well. Default Required; it counts with CertFile.
	ClientTLS string

	// PeerCertFile, PeerKeyFile and PeerTrustedCAFile are those of the peer port, and of
	// what this node dials. They come together. Default "": peers speak plain HTTP.
	PeerCertFile, PeerKeyFile, PeerTrustedCAFile string
	// PeerAllowedName is the DNS name that the certificate of a member must have; {id}
	// stands for the member's ID. Default {id}.raftkv.
	PeerAllowedName string
	// PeerTLS is Required, or Optional while a running cluster is switched: then the peer
	// port takes plain HTTP as well. Default Required; it counts with PeerCertFile.
	PeerTLS string

	// AuthFile says who may do what. Default "": whoever reaches the client port may do all.
	AuthFile string
	// Auth is AuthOn, or AuthOff for a node that lets everybody in, though other members
	// of the cluster have an AuthFile. Default AuthOn.
	Auth string
	// InsecureTokens lets tokens be sent in the clear, over a network. Default false: with
	// an AuthFile, ports beyond loopback need TLS.
	InsecureTokens bool

	// AuditLog is the file to which a line is written for each request that changes
	// something, "-" for stdout. Default "": none is.
	AuditLog string
	// AuditReads adds a line for each read. Default false.
	AuditReads bool

	// ListenMetrics is the host:port of a listener of its own for metrics and probes, for
	// which no rights are needed. Default "": there is none.
	ListenMetrics string
}

// Values of ClientTLS and PeerTLS, and of Auth.
const (
	Required = "required"
	Optional = "optional"

	AuthOn  = "on"
	AuthOff = "off"
)

// IDPlace stands for the ID of a member in PeerAllowedName.
const IDPlace = "{id}"

func defaultDoors() Doors {
	return Doors{ClientTLS: Required, PeerAllowedName: IDPlace + ".raftkv", PeerTLS: Required, Auth: AuthOn}
}

// settings returns the flags, bound to the fields of d.
func (d *Doors) settings() []Setting {
	return []Setting{
		row("cert-file", "FILE", "certificate of the client port, in PEM (none: plain HTTP)", Into(&d.CertFile, ParseText, "")),
		row("key-file", "FILE", "its private key", Into(&d.KeyFile, ParseText, "")),
		row("trusted-ca-file", "FILE", "CAs of the certificates of clients (none)", Into(&d.TrustedCAFile, ParseText, "")),
		row("client-cert-auth", "", "let in no client without a certificate (false)", Into(&d.ClientCertAuth, strconv.ParseBool, "true or false")),
		row("client-tls", "MODE", "required, or optional while clients are switched: plain HTTP as well (required)", Into(&d.ClientTLS, ParseText, "")),
		row("peer-cert-file", "FILE", "certificate of this node towards other members, in PEM (none: plain HTTP)", Into(&d.PeerCertFile, ParseText, "")),
		row("peer-key-file", "FILE", "its private key", Into(&d.PeerKeyFile, ParseText, "")),
		row("peer-trusted-ca-file", "FILE", "CAs of the certificates of members", Into(&d.PeerTrustedCAFile, ParseText, "")),
		row("peer-allowed-name", "NAME", "DNS name in the certificate of a member; {id} is its ID ({id}.raftkv)", Into(&d.PeerAllowedName, parseAllowedName, "")),
		row("peer-tls", "MODE", "required, or optional while members are switched: plain HTTP as well (required)", Into(&d.PeerTLS, ParseText, "")),
		row("auth-file", "FILE", "who may do what (none: everybody everything)", Into(&d.AuthFile, ParseText, "")),
		row("auth", "MODE", "on, or off to let everybody in though other members have an auth file (on)", Into(&d.Auth, ParseText, "")),
		row("insecure-tokens", "", "let tokens be sent without TLS over a network (false)", Into(&d.InsecureTokens, strconv.ParseBool, "true or false")),
		row("audit-log", "FILE", "a line for each request that changes something; - is stdout (none)", Into(&d.AuditLog, ParseText, "")),
		row("audit-reads", "", "and a line for each read (false)", Into(&d.AuditReads, strconv.ParseBool, "true or false")),
		row("listen-metrics", "HOST:PORT", "metrics and probes on a port of their own, without rights (none)", Into(&d.ListenMetrics, ParseText, "")),
	}
}

// parseAllowedName takes a DNS name, in lower case, with at most one {id}.
func parseAllowedName(text string) (string, error) {
	name := strings.ToLower(text)
	host, err := address.CheckHost(strings.Replace(name, IDPlace, "1", 1))
	if err != nil || host != strings.Replace(name, IDPlace, "1", 1) || net.ParseIP(host) != nil {
		return "", errors.New("expected a DNS name, in which {id} may stand once for the ID of a member")
	}
	return name, nil
}

// validate notes all problems of the values in d, and of how they fit together.
func (d *Doors) validate(r *Review) {
	r.Check("client-tls", d.ClientTLS, oneOf(d.ClientTLS, Required, Optional))
	r.Check("peer-tls", d.PeerTLS, oneOf(d.PeerTLS, Required, Optional))
	r.Check("auth", d.Auth, oneOf(d.Auth, AuthOn, AuthOff))
	if d.ListenMetrics != "" {
		r.Check("listen-metrics", d.ListenMetrics, address.CheckListen(d.ListenMetrics))
	}
	needs := func(flag, value string, given bool, other, otherValue string) {
		if given && otherValue == "" {
			r.Check(flag, value, fmt.Errorf("expected also %s", r.Name(other)))
		}
	}
	needs("cert-file", d.CertFile, d.CertFile != "", "key-file", d.KeyFile)
	needs("key-file", d.KeyFile, d.KeyFile != "", "cert-file", d.CertFile)
	needs("trusted-ca-file", d.TrustedCAFile, d.TrustedCAFile != "", "cert-file", d.CertFile)
	needs("client-cert-auth", "true", d.ClientCertAuth, "trusted-ca-file", d.TrustedCAFile)
	needs("client-tls", d.ClientTLS, d.ClientTLS == Optional, "cert-file", d.CertFile)
	needs("peer-cert-file", d.PeerCertFile, d.PeerCertFile != "", "peer-key-file", d.PeerKeyFile)
	needs("peer-cert-file", d.PeerCertFile, d.PeerCertFile != "", "peer-trusted-ca-file", d.PeerTrustedCAFile)
	needs("peer-key-file", d.PeerKeyFile, d.PeerKeyFile != "", "peer-cert-file", d.PeerCertFile)
	needs("peer-trusted-ca-file", d.PeerTrustedCAFile, d.PeerTrustedCAFile != "", "peer-cert-file", d.PeerCertFile)
	needs("peer-tls", d.PeerTLS, d.PeerTLS == Optional, "peer-cert-file", d.PeerCertFile)
	needs("audit-reads", "true", d.AuditReads, "audit-log", d.AuditLog)
	if d.Auth == AuthOff && d.AuthFile != "" {
		r.Check("auth", d.Auth, fmt.Errorf("expected no %s beside it", r.Name("auth-file")))
	}
}

// validateDoors notes how the doors contradict what else is set.
func (c *Config) validateDoors(r *Review) {
	if c.ListenMetrics != "" && r.Sound("listen-metrics", "host", "port", "listen-peer") {
		for name, taken := range map[string]string{"the client API": address.JoinHostPort(c.Host, c.Port), "the peer server": c.PeerListener()} {
			if address.SameListener(c.ListenMetrics, taken) {
				r.Check("listen-metrics", c.ListenMetrics, fmt.Errorf("expected another one, because %s listens on %s", name, taken))
			}
		}
	}
	if address.IsHTTPS(c.PeerURL) && c.PeerCertFile == "" {
		r.Check("cluster", c.PeerURL, fmt.Errorf("expected also %s, %s and %s, because of the scheme https",
			r.Name("peer-cert-file"), r.Name("peer-key-file"), r.Name("peer-trusted-ca-file")))
	}
}

// MemberName returns the DNS name that the certificate of a member must have.
func (d *Doors) MemberName(id uint64) string {
	return strings.Replace(d.PeerAllowedName, IDPlace, strconv.FormatUint(id, 10), 1)
}

// NamesOneMember reports whether the certificate of each member has a name of its own.
// Otherwise a certificate proves no more than that its holder is a member.
func (d *Doors) NamesOneMember() bool { return strings.Contains(d.PeerAllowedName, IDPlace) }
