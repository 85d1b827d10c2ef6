package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// secured is what clusters over TLS have in common: certificates that raftkv has made, for
// members of raftkv and of etcd alike, at both ports.
type secured struct{ dir string }

// make makes a CA, and a certificate for each of so many members, unless they are there.
func (s *secured) make(raftkv string, members int) error {
	if _, err := os.Stat(s.dir); err == nil {
		return nil
	}
	ids := "1"
	for id := 2; id <= members; id++ {
		ids += "," + strconv.Itoa(id)
	}
	for _, args := range [][]string{{"tls", "ca", "--dir", s.dir}, {"tls", "cert", "--dir", s.dir, "--member", ids}} {
		if out, err := exec.Command(raftkv, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("raftkv %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// scheme is that of the URLs of both ports; those of nil are plain.
func (s *secured) scheme() string {
	if s == nil {
		return "http://"
	}
	return "https://"
}

func (s *secured) ca() string { return filepath.Join(s.dir, "ca.pem") }

func (s *secured) cert(n *node) string {
	return filepath.Join(s.dir, fmt.Sprintf("member-%d.pem", n.id))
}

func (s *secured) key(n *node) string {
	return filepath.Join(s.dir, fmt.Sprintf("member-%d-key.pem", n.id))
}

// client returns the TLS of a client, nil for none.
func (s *secured) client() (*tls.Config, error) {
	if s == nil {
		return nil, nil
	}
	text, err := os.ReadFile(s.ca())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("there is no certificate in " + s.ca())
	}
	return &tls.Config{RootCAs: pool}, nil
}

// dial connects over TLS, for at most so long.
func (s *secured) dial(addr string, limit time.Duration) (net.Conn, error) {
	cfg, err := s.client()
	if err != nil {
		return nil, err
	}
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// ask is ask at a node's client port.
func (s *secured) ask(method string, n *node, path, body string, out any) error {
	cfg, err := s.client()
	if err != nil {
		return err
	}
	return askBy(control(cfg), method, s.scheme()+n.client+path, body, out)
}
