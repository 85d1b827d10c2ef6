package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// maxFile is how long a file may be, in bytes. A bundle of some hundred CAs fits.
const maxFile = 1 << 20

// texts are the files as they were read.
type texts struct{ cert, key, ca []byte }

func (t texts) equal(u texts) bool {
	return bytes.Equal(t.cert, u.cert) && bytes.Equal(t.key, u.key) && bytes.Equal(t.ca, u.ca)
}

// set is what is in force at a time. It never changes.
type set struct {
	text texts
	pair tls.Certificate // with its Leaf
	pool *x509.CertPool  // the CAs; without any it is empty, never nil, which would be those of the system

	from, until time.Time // when the door's own certificate is valid, with what signed it
	caUntil     time.Time // when the last of the CAs expires; zero without CAs
}

func readFiles(f Files) (t texts, err error) {
	if t.cert, err = readFile(f.Cert); err != nil {
		return texts{}, fmt.Errorf("certificate: %w", err)
	}
	if t.key, err = readFile(f.Key); err != nil {
		return texts{}, fmt.Errorf("private key: %w", err)
	}
	if f.CA != "" {
		if t.ca, err = readFile(f.CA); err != nil {
			return texts{}, fmt.Errorf("CA: %w", err)
		}
	}
	return t, nil
}

// readFile reads a file, and a regular one only: from a pipe it would wait for ever.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return text, nil
}

// blocks takes the blocks out of a PEM file. What begins as a block and is none, as
// at the end of a file that is half written, is an error, where encoding/pem goes on.
func blocks(name string, text []byte) ([]*pem.Block, error) {
	var found []*pem.Block
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		found = append(found, b)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN ")); {
	case begun == 0:
		return nil, fmt.Errorf("%s has nothing in PEM (-----BEGIN …)", name)
	case begun != len(found):
		return nil, fmt.Errorf("%s is damaged, or half written: of %d blocks that begin, %d are whole", name, begun, len(found))
	}
	return found, nil
}

// certificates takes all certificates out of a PEM file. There is at least one.
func certificates(name string, text []byte) ([]*x509.Certificate, error) {
	found, err := blocks(name, text)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for _, b := range found {
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", name, len(all)+1, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no certificate, but %s", name, found[0].Type)
	}
	return all, nil
}

// checkKey says what is wrong with a file of a private key, before crypto/tls says it
// in less words.
func checkKey(name string, text []byte) error {
	found, err := blocks(name, text)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(found, func(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") })
	switch {
	case i < 0:
		return fmt.Errorf("%s has no private key, but %s", name, found[0].Type)
	case found[i].Type == "ENCRYPTED PRIVATE KEY" || found[i].Headers["DEK-Info"] != "":
		return fmt.Errorf("%s has a private key behind a passphrase; it must be without one, in a file that nobody else can read", name)
	}
	return nil
}

// judge makes a set of the files' texts, or says why that is none. What is wrong only
// because of the time now is no error, see wrongAt.
func (cfg *Config) judge(t texts, now time.Time) (*set, error) {
	f := cfg.Files
	own, err := certificates(f.Cert, t.cert)
	if err != nil {
		return nil, err
	}
	if err := checkKey(f.Key, t.key); err != nil {
		return nil, err
	}
	s := &set{text: t, pool: x509.NewCertPool()}
	if s.pair, err = tls.X509KeyPair(t.cert, t.key); err != nil {
		return nil, fmt.Errorf("certificate %s with private key %s: %w", f.Cert, f.Key, err)
	}
	s.pair.Leaf = own[0]
	if err := cfg.checkOwn(own[0]); err != nil {
		return nil, err
	}
	s.from, s.until = span(own)
	if f.CA == "" {
		if cfg.Mutual {
			return nil, errors.New("there is no CA, by which nodes know each other")
		}
		return s, nil
	}
	cas, err := certificates(f.CA, t.ca)
	if err != nil {
		return nil, err
	}
	for _, c := range cas {
		s.pool.AddCert(c)
		if c.NotAfter.After(s.caUntil) {
			s.caUntil = c.NotAfter
		}
	}
	if cfg.Mutual {
		return s, s.checkSigned(f, own, cas, now)
	}
	return s, nil
}

// checkOwn checks what the door's own certificate is for.
func (cfg *Config) checkOwn(c *x509.Certificate) error {
	file := cfg.Files.Cert
	if !serves(c, x509.ExtKeyUsageServerAuth) {
		return fmt.Errorf("%s cannot be used by a server: its extended key usage lacks serverAuth", file)
	}
	if cfg.Mutual && !serves(c, x509.ExtKeyUsageClientAuth) {
		return fmt.Errorf("%s cannot be used by a client: its extended key usage lacks clientAuth, and nodes also dial each other", file)
	}
	if cfg.Name == "" {
		return nil
	}
	if err := hasName(c, cfg.Name); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// serves says whether a certificate is for a usage. One that names none is for all.
func serves(c *x509.Certificate, usage x509.ExtKeyUsage) bool {
	none := len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0
	return none || slices.Contains(c.ExtKeyUsage, usage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// hasName says that a certificate lacks a name, a DNS name or an IP address. A
// wildcard is not the names that it could stand for, nor is a common name.
func hasName(c *x509.Certificate, name string) error {
	has := slices.ContainsFunc(c.DNSNames, func(n string) bool { return strings.EqualFold(n, name) })
	if ip := net.ParseIP(name); ip != nil {
		has = slices.ContainsFunc(c.IPAddresses, ip.Equal)
	}
	if !has {
		return fmt.Errorf("the certificate is for %q, and must be for %q", append(slices.Clone(c.DNSNames), texted(c.IPAddresses)...), name)
	}
	return nil
}

func texted(ips []net.IP) (all []string) {
	for _, ip := range ips {
		all = append(all, ip.String())
	}
	return all
}

// checkSigned checks that the CAs have signed the door's own certificate, whatever the
// time is, and notes when that is valid.
//
// A chain is valid while all of its certificates are. If there is such a time, then it
// begins as the last of them begins. So it is enough to ask about each beginning.
func (s *set) checkSigned(f Files, own, cas []*x509.Certificate, now time.Time) error {
	between := x509.NewCertPool()
	for _, c := range own[1:] {
		between.AddCert(c)
	}
	moments := []time.Time{now}
	for _, c := range slices.Concat(own, cas) {
		moments = append(moments, c.NotBefore)
	}
	var first error
	found := false
	for _, at := range moments {
		options := x509.VerifyOptions{Roots: s.pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		chains, err := own[0].Verify(options)
		if err == nil {
			options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			chains, err = own[0].Verify(options)
		}
		if first == nil {
			first = err
		}
		for _, chain := range chains {
			from, until := span(chain)
			valid, best := !now.Before(from) && !now.After(until), s.wrongAt(now) == nil
			if !found || valid && !best || valid == best && until.After(s.until) {
				found, s.from, s.until = true, from, until
			}
		}
	}
	if !found {
		return fmt.Errorf("certificate %s is not signed by the CA in %s: %w", f.Cert, f.CA, first)
	}
	return nil
}

// span returns when all certificates of a chain are valid.
func span(chain []*x509.Certificate) (from, until time.Time) {
	for i, c := range chain {
		if i == 0 || c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if i == 0 || c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return from, until
}

// wrongAt is nil, or says that the door's own certificate is not valid at a time.
func (s *set) wrongAt(now time.Time) error {
	switch {
	case now.Before(s.from):
		return fmt.Errorf("the certificate, or what signed it, is not valid before %s", stamp(s.from))
	case now.After(s.until):
		return fmt.Errorf("the certificate, or what signed it, has expired on %s", stamp(s.until))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ends returns when the first of what the door needs expires: its own certificate, or
// the last of the CAs.
func (s *set) ends() time.Time {
	if !s.caUntil.IsZero() && s.caUntil.Before(s.until) {
		return s.caUntil
	}
	return s.until
}
