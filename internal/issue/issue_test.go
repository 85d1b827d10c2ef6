package issue

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

const day = 24 * time.Hour

func parsed(t *testing.T, p Pair) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	testkit.Must(t, err)
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		t.Errorf("the key is %T", pair.PrivateKey)
	}
	return pair.Leaf, key
}

// Guarantee: a CA signs certificates for servers and clients, and no further CAs; what
// it signs is for the sides that were asked for, for that long, and can sign nothing.
func TestCertificates(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	ca, pair, err := NewCA("the CA", now.Add(-Backdate), now.Add(10*day))
	testkit.Must(t, err)
	root, _ := parsed(t, pair)
	if !root.IsCA || !root.MaxPathLenZero || root.MaxPathLen != 0 || root.KeyUsage&x509.KeyUsageCertSign == 0 || root.Subject.CommonName != "the CA" {
		t.Errorf("the CA is %+v", root)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	serials := map[string]bool{root.SerialNumber.String(): true}
	for _, tt := range []struct {
		server, client bool
	}{{true, true}, {true, false}, {false, true}} {
		p, err := ca.Issue(Request{
			CommonName: "someone", DNSNames: []string{"1.raftkv"}, IPs: []net.IP{net.IPv6loopback},
			Server: tt.server, Client: tt.client, From: now.Add(-2 * Backdate), Until: now.Add(10 * day),
		})
		testkit.Must(t, err)
		c, _ := parsed(t, p)
		for usage, ok := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageServerAuth: tt.server, x509.ExtKeyUsageClientAuth: tt.client, x509.ExtKeyUsageCodeSigning: false} {
			if _, err := c.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); (err == nil) != ok {
				t.Errorf("%+v for %v: %v", tt, usage, err)
			}
		}
		if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || c.VerifyHostname("1.raftkv") != nil || c.VerifyHostname("::1") != nil || c.VerifyHostname("someone") == nil {
			t.Errorf("%+v: %+v", tt, c)
		}
		if !c.NotAfter.Equal(now.Add(10*day)) || !c.NotBefore.Equal(root.NotBefore) {
			t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
		}
		if serials[c.SerialNumber.String()] {
			t.Error("a serial number twice")
		}
		serials[c.SerialNumber.String()] = true
	}
	if _, err := ca.Issue(Request{Until: now.Add(10*day + time.Second)}); err == nil || !strings.Contains(err.Error(), "the CA expires") {
		t.Errorf("a certificate that outlives its CA: %v", err)
	}
}

// Guarantee: keys can be read by their owner alone, and nothing that is there is
// overwritten, not even by way of a link that leads nowhere.
func TestWrite(t *testing.T) {
	ca, pair, err := NewCA("CA", time.Now(), time.Now().Add(day))
	testkit.Must(t, err)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	testkit.Must(t, pair.Write(cert, key))
	for name, mode := range map[string]fs.FileMode{cert: 0o644, key: 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	again, err := ReadCA(cert, key)
	testkit.Must(t, err)
	if !again.Cert.Equal(ca.Cert) {
		t.Error("another CA was read")
	}
	before := testkit.Sums(t, dir)
	refused := func(cert, key string) {
		t.Helper()
		if err := pair.Write(cert, key); err == nil || !strings.Contains(err.Error(), "never overwritten") {
			t.Errorf("written to %s and %s: %v", cert, key, err)
		}
		testkit.WantUnchanged(t, dir, before)
	}
	other := filepath.Join(dir, "other.pem")
	refused(cert, key)
	refused(cert, other)
	refused(other, key)
	refused(other, other)
	if err := create(cert, nil, 0o600); err == nil || !strings.Contains(err.Error(), "never overwritten") {
		t.Error(err)
	}
	testkit.WantUnchanged(t, dir, before)
	testkit.Must(t, os.Symlink(other, filepath.Join(dir, "link")))
	if err := pair.Write(filepath.Join(dir, "link"), filepath.Join(dir, "third")); err == nil {
		t.Error("written through a link")
	}
	for _, name := range []string{other, filepath.Join(dir, "third")} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := pair.Write(filepath.Join(dir, "no", "a"), filepath.Join(dir, "no", "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What is no CA does not sign.
func TestReadCARefuses(t *testing.T) {
	ca, pair, err := NewCA("CA", time.Now(), time.Now().Add(day))
	testkit.Must(t, err)
	leaf, err := ca.Issue(Request{Until: time.Now()})
	testkit.Must(t, err)
	for _, tt := range []struct {
		pair Pair
		want string
	}{
		{leaf, "not that of a CA"},
		{Pair{pair.Cert, leaf.Key}, "does not match"},
		{Pair{pair.Cert, nil}, "PEM"},
		{Pair{pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})}, "parse"},
	} {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		testkit.Must(t, tt.pair.Write(cert, key))
		if _, err := ReadCA(cert, key); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), key) {
			t.Errorf("%v instead of %s", err, tt.want)
		}
	}
}

// Guarantee: a token has 256 random bits, can stand behind "Bearer", and the hash is
// that of its characters.
func TestToken(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		token, hash := Token()
		secret, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, tokenPrefix))
		sum := sha256.Sum256([]byte(token))
		if err != nil || len(secret) != 32 || bytes.Equal(secret, make([]byte, 32)) || seen[token] || hash != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s, %s, %v", token, hash, err)
		}
		seen[token] = true
	}
}
