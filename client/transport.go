package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	dialLimit      = time.Second      // until a connection stands, without TLS
	handshakeLimit = 2 * time.Second  // of TLS
	keepIdle       = 90 * time.Second // less than the three minutes after which a node closes one
	idlePerHost    = 512              // connections that are kept, for each endpoint
	maxHeadBytes   = 64 << 10         // of an answer
	maxTokenBytes  = 4 << 10
)

// newTransport makes the transport of a client: connections are kept, no proxy is asked,
// and secured asks config for each new connection over TLS.
func newTransport(config func() (*tls.Config, error)) *http.Transport {
	dialer := &net.Dialer{Timeout: dialLimit, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return &http.Transport{
		DialContext: dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialTLS(ctx, dialer, config, network, addr)
		},
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        keepIdle,
		MaxResponseHeaderBytes: maxHeadBytes,
		DisableCompression:     true,
	}
}

// dialTLS opens a connection and does the handshake. Whatever goes wrong has sent nothing of
// a request.
func dialTLS(ctx context.Context, dialer *net.Dialer, config func() (*tls.Config, error), network, addr string) (net.Conn, error) {
	cfg := new(tls.Config)
	if config != nil {
		c, err := config()
		if err != nil {
			return nil, configError{fmt.Errorf("TLS: %w", err)}
		}
		if c != nil {
			cfg = c.Clone()
		}
	}
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		cfg.ServerName = host
	}
	cfg.NextProtos = []string{"http/1.1"}
	raw, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(&net.OpError{Op: "dial", Net: network, Addr: raw.RemoteAddr(), Err: err}, raw.Close())
	}
	return conn, nil
}

// configError is an error of what the program gave the client: no other attempt helps.
type configError struct{ err error }

func (e configError) Error() string { return e.err.Error() }

func (e configError) Unwrap() error { return e.err }

// Token is a TokenSource that always gives the same token.
func Token(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

// TokenFile is a TokenSource that reads a file, again whenever it has changed. White space
// around the token does not count. A file that is missing, empty or larger than 4 KiB is an
// error of the call, until it could be read once: after that the last token stays in force.
func TokenFile(path string) func(context.Context) (string, error) {
	read := whenChanged(func() (string, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		token := strings.TrimSpace(string(text))
		if token == "" || len(token) > maxTokenBytes {
			return "", fmt.Errorf("%s: a token has 1 to %d bytes, this has %d", path, maxTokenBytes, len(token))
		}
		return token, nil
	}, path)
	return func(context.Context) (string, error) { return read() }
}

// TLSFiles is a Config.TLS that reads PEM files, again whenever one has changed: ca has the
// certificates of authorities that are trusted in place of the system's, cert and key are
// what this client shows. Names that are empty are left out; cert and key go together. What
// cannot be read is an error of the call, until it could be read once: after that the last
// files that could stay in force.
func TLSFiles(ca, cert, key string) func() (*tls.Config, error) {
	var names []string
	for _, name := range []string{ca, cert, key} {
		if name != "" {
			names = append(names, name)
		}
	}
	return whenChanged(func() (*tls.Config, error) { return readTLS(ca, cert, key) }, names...)
}

func readTLS(ca, cert, key string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if (cert == "") != (key == "") {
		return nil, errors.New("a certificate and its key go together, and one of them is missing")
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// whenChanged returns a function that returns what read does, and calls it again once a
// file has another size or time. Files that are being replaced can be missing or not
// match: what was read before stays in force until they can be read.
func whenChanged[T any](read func() (T, error), files ...string) func() (T, error) {
	var (
		mu    sync.Mutex
		value T
		seen  string // of the files that value is of; "" before there is one
	)
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		now, err := stamp(files)
		if err == nil && now == seen {
			return value, nil
		}
		var fresh T
		if err == nil {
			fresh, err = read()
		}
		switch {
		case err == nil:
			value, seen = fresh, now
		case seen == "":
			return value, err
		}
		return value, nil
	}
}

// stamp returns a text that changes with the sizes and times of files.
func stamp(files []string) (string, error) {
	b := []byte{'.'}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		b = fmt.Appendf(b, "%d %d.", info.Size(), info.ModTime().UnixNano())
	}
	return string(b), nil
}
