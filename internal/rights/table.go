package rights

import (
	"crypto/sha256"
	"fmt"
	"raftkv/internal/problem"
	"strings"
)

// Table is one version of the file: who there is, how each is recognized, and what each
// may do. It does not change.
type Table struct {
	hash      [sha256.Size]byte // of the text
	tokens    map[[sha256.Size]byte]*Caller
	certs     map[string]*Caller
	anonymous *Caller
	names     int
	over      chan struct{} // closed when the table is no longer in force
}

// Hash returns the SHA-256 of the text of the file.
func (t *Table) Hash() [sha256.Size]byte { return t.hash }

// Anonymous returns who asks without anything that tells who it is.
func (t *Table) Anonymous() *Caller { return t.anonymous }

// hashPrefix names the kind of hash that stands for a token.
const hashPrefix = "sha256:"

// Shown is what a request shows of who asks.
type Shown struct {
	// Names are those of the client certificate that was verified; nil: there is none.
	Names []string
	// Authorization is that field as it stands in the request; "" is none.
	Authorization string
}

// bearer is the scheme of tokens (RFC 6750 §2.1), in lower case, as schemes have none.
const bearer = "bearer "

// Identify returns who asks, by the names of the verified client certificate and the field
// Authorization as it stands in the request. A token that is sent decides alone. The error is
// problem.ErrUnauthenticated.
func (t *Table) Identify(names []string, authorization string) (*Caller, error) {
	if authorization != "" {
		return t.byToken(authorization)
	}
	var found *Caller
	for _, name := range names {
		c := t.certs[certName(name)]
		if c != nil && found != nil && c != found {
			return nil, fmt.Errorf("%w: the certificate has names of two entries, %s and %s", problem.ErrUnauthenticated, found.name, c.name)
		}
		if c != nil {
			found = c
		}
	}
	if found == nil {
		found = t.anonymous
	}
	return found, nil
}

func (t *Table) byToken(authorization string) (*Caller, error) {
	if len(authorization) <= len(bearer) || !strings.EqualFold(authorization[:len(bearer)], bearer) {
		return nil, fmt.Errorf("%w: Authorization is not Bearer and a token", problem.ErrUnauthenticated)
	}
	// It is found by its hash, so that how long that takes tells nothing of tokens.
	c := t.tokens[sha256.Sum256([]byte(strings.TrimLeft(authorization[len(bearer):], " ")))]
	if c == nil {
		return nil, errWrongToken
	}
	return c, nil
}

var errWrongToken = fmt.Errorf("%w: no entry has this token", problem.ErrUnauthenticated)

// certName returns the form in which names of certificates are compared: those of hosts are
// the same in upper and lower case, those of URIs are not.
func certName(name string) string {
	if strings.Contains(name, "://") {
		return name
	}
	return strings.ToLower(name)
}
