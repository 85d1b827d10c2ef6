// Package issue answers: how are certificates and tokens made? It makes a CA, and
// certificates that this has signed, for members and for clients, and tokens. What is
// secret it writes to files that only their owner can read, and never over a file that
// is there. It does not know who uses them.
package issue

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"time"
)

// Backdate is how long before it is made a certificate becomes valid: as much as
// clocks of one cluster may be wrong.
const Backdate = time.Hour

// CA signs certificates.
type CA struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate and its private key, each in PEM.
type Pair struct{ Cert, Key []byte }

// Request is what a certificate is to say.
type Request struct {
	CommonName     string // for people: nobody is identified by it
	DNSNames       []string
	IPs            []net.IP
	Server, Client bool // which sides of a connection it is for
	From, Until    time.Time
}

// NewCA makes a CA that signs certificates for servers and clients, but no further CAs.
func NewCA(name string, from, until time.Time) (*CA, Pair, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, Pair{}, err
	}
	pair, err := sign(template, template, key, key)
	if err != nil {
		return nil, Pair{}, err
	}
	ca, err := parseCA(pair)
	return ca, pair, err
}

// ReadCA reads a CA from its files.
func ReadCA(certFile, keyFile string) (*CA, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	ca, err := parseCA(Pair{cert, key})
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	return ca, nil
}

func parseCA(p Pair) (*CA, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, errors.New("the key is not one for ECDSA")
	case !pair.Leaf.IsCA:
		return nil, errors.New("the certificate is not that of a CA")
	}
	return &CA{pair.Leaf, key}, nil
}

// Issue makes a certificate with a key of its own. It cannot outlive the CA.
func (ca *CA) Issue(r Request) (Pair, error) {
	if r.Until.After(ca.Cert.NotAfter) {
		return Pair{}, fmt.Errorf("the CA expires on %s, before the certificate would; take fewer days, or make a new CA", ca.Cert.NotAfter.UTC().Format(time.DateOnly))
	}
	if r.From.Before(ca.Cert.NotBefore) {
		r.From = ca.Cert.NotBefore
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: r.CommonName}, DNSNames: r.DNSNames, IPAddresses: r.IPs,
		NotBefore: r.From, NotAfter: r.Until, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	return sign(template, ca.Cert, key, ca.key)
}

// sign makes a certificate. crypto/x509 gives it a random serial number.
func sign(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (Pair, error) {
	cert, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		return Pair{}, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}, nil
}

// Write writes a pair to two files, which both must not be there. The key's can be read
// by its owner alone. Nothing is left of what fails.
func (p Pair) Write(certFile, keyFile string) error {
	if err := Absent(certFile, keyFile); err != nil {
		return err
	}
	if err := create(keyFile, p.Key, 0o600); err != nil {
		return err
	}
	if err := create(certFile, p.Cert, 0o644); err != nil {
		return errors.Join(err, os.Remove(keyFile))
	}
	return errors.Join(durable.SyncDir(filepath.Dir(keyFile)), durable.SyncDir(filepath.Dir(certFile)))
}

// Absent says that one of the files is there.
func Absent(files ...string) error {
	for _, file := range files {
		switch _, err := os.Lstat(file); {
		case err == nil:
			return exists(file)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

func exists(file string) error {
	return fmt.Errorf("%s is there, and is never overwritten: move it away, or take another directory", file)
}

// create writes a file that must not be there. What cannot be written whole is removed.
func create(file string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return exists(file)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// tokenPrefix makes a token known for what it is, to those who look for secrets in
// places where they should not be.
const tokenPrefix = "raftkv_"

// Token returns a token of 256 random bits, and how a file of rights names it: the
// SHA-256 of its characters. A token cannot be guessed, so its hash needs no salt.
func Token() (token, hash string) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails: without randomness it ends the program
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	sum := sha256.Sum256([]byte(token))
	return token, "sha256:" + hex.EncodeToString(sum[:])
}
