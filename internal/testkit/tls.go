package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority of a test.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	Pool *x509.CertPool // has it alone
}

// NewCA makes one.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t, Pool: x509.NewCertPool()}
	ca.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	signed := ca.sign(ca.cert)
	ca.key = signed.PrivateKey.(*ecdsa.PrivateKey)
	ca.cert = signed.Leaf
	ca.Pool.AddCert(ca.cert)
	return ca
}

// Certificate makes a certificate for these DNS names and for 127.0.0.1. It is good for so
// long from now on.
func (ca *CA) Certificate(good time.Duration, names ...string) tls.Certificate {
	ca.t.Helper()
	return ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(good), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// Between is Certificate for a time that need not be now, and for both sides of a
// connection unless usages says for which.
func (ca *CA) Between(from, until time.Time, names []string, usages ...x509.ExtKeyUsage) tls.Certificate {
	ca.t.Helper()
	if len(usages) == 0 {
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: from, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages,
	})
}

// PEM returns the CA's own certificate.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// Files writes a certificate, its key and the CA's certificate into a directory, each in a
// file that is replaced as a whole.
func (ca *CA) Files(dir string, c tls.Certificate) (certFile, keyFile, caFile string) {
	ca.t.Helper()
	secret, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	Must(ca.t, err)
	write := func(name string, text []byte) string {
		name = filepath.Join(dir, name)
		Must(ca.t, os.WriteFile(name+".new", text, 0o600))
		Must(ca.t, os.Rename(name+".new", name))
		return name
	}
	certFile = write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
	keyFile = write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	return certFile, keyFile, write("ca.pem", ca.PEM())
}

func (ca *CA) sign(template *x509.Certificate) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Must(ca.t, err)
	by := ca.key
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, by)
	Must(ca.t, err)
	leaf, err := x509.ParseCertificate(der)
	Must(ca.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
