//go:build unix

package certs

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"raftkv/internal/issue"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Guarantee: what cannot work is refused at start, by an error that names the file and
// says what is wrong with it.
func TestStartRefuses(t *testing.T) {
	ca, root := newCA(t, "CA")
	_, otherRoot := newCA(t, "CA")
	good := issued(t, ca, member("1.raftkv"))
	with := func(change func(*issue.Request)) issue.Pair {
		r := member("1.raftkv")
		change(&r)
		return issued(t, ca, r)
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
	lockedOld := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x")})
	for _, tt := range []struct {
		what string
		pair issue.Pair
		ca   []byte
		want []string
	}{
		{"no certificate", issue.Pair{Cert: nil, Key: good.Key}, root.Cert, []string{"tls.crt", "nothing in PEM"}},
		{"half a certificate", issue.Pair{Cert: half(good.Cert), Key: good.Key}, root.Cert, []string{"tls.crt", "half written"}},
		{"a chain cut short", issue.Pair{Cert: append(bytes.Clone(good.Cert), half(root.Cert)...), Key: good.Key}, root.Cert, []string{"tls.crt", "of 2 blocks that begin, 1"}},
		{"no key", issue.Pair{Cert: good.Cert, Key: []byte("\n")}, root.Cert, []string{"tls.key", "nothing in PEM"}},
		{"half a key", issue.Pair{Cert: good.Cert, Key: half(good.Key)}, root.Cert, []string{"tls.key", "half written"}},
		{"files swapped", issue.Pair{Cert: good.Key, Key: good.Cert}, root.Cert, []string{"tls.crt", "has no certificate, but PRIVATE KEY"}},
		{"a certificate as key", issue.Pair{Cert: good.Cert, Key: good.Cert}, root.Cert, []string{"tls.key", "has no private key, but CERTIFICATE"}},
		{"a locked key", issue.Pair{Cert: good.Cert, Key: locked}, root.Cert, []string{"tls.key", "passphrase"}},
		{"a key locked in the old way", issue.Pair{Cert: good.Cert, Key: lockedOld}, root.Cert, []string{"tls.key", "passphrase"}},
		{"another one's key", issue.Pair{Cert: good.Cert, Key: issued(t, ca, member("1.raftkv")).Key}, root.Cert, []string{"tls.crt", "tls.key", "does not match"}},
		{"rubbish in PEM", issue.Pair{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), Key: good.Key}, root.Cert, []string{"tls.crt", "certificate 1"}},
		{"no CA", good, nil, []string{"ca.crt", "nothing in PEM"}},
		{"a bundle cut short", good, append(bytes.Clone(root.Cert), half(root.Cert)...), []string{"ca.crt", "half written"}},
		{"another CA", good, otherRoot.Cert, []string{"tls.crt", "not signed by the CA", "ca.crt"}},
		{"another name", issued(t, ca, member("2.raftkv")), root.Cert, []string{"tls.crt", `for ["2.raftkv" "127.0.0.1"]`, `"1.raftkv"`}},
		{"a wildcard", issued(t, ca, member("*.raftkv")), root.Cert, []string{"tls.crt", `"1.raftkv"`}},
		{"a common name", with(func(r *issue.Request) { r.DNSNames, r.CommonName = nil, "1.raftkv" }), root.Cert, []string{"tls.crt", `"1.raftkv"`}},
		{"for clients alone", with(func(r *issue.Request) { r.Server = false }), root.Cert, []string{"tls.crt", "serverAuth"}},
		{"for servers alone", with(func(r *issue.Request) { r.Client = false }), root.Cert, []string{"tls.crt", "clientAuth"}},
	} {
		p := newPlace(t).put(tt.pair)
		testkit.Must(t, os.WriteFile(p.files().CA, tt.ca, 0o644))
		cfg := p.peerConfig()
		cfg.Name = "1.raftkv"
		_, err := New(cfg)
		wantError(t, tt.what, err, tt.want...)
	}

	p := newPlace(t).put(good, root)
	cfg := p.peerConfig()
	cfg.Files.CA = ""
	_, err := New(cfg)
	wantError(t, "no file for the CA", err, "there is no CA")
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		p := newPlace(t).put(good, root)
		testkit.Must(t, os.Remove(filepath.Join(p.dir, name)))
		_, err := New(p.peerConfig())
		wantError(t, "a file that is not there", err, name, "no such file")
		testkit.Must(t, syscall.Mkfifo(filepath.Join(p.dir, name), 0o600))
		_, err = New(p.peerConfig())
		wantError(t, "a pipe", err, name, "not a regular file")
	}

	// A client port needs no certificate that a client could use, and asks for none of a CA.
	p = newPlace(t).put(with(func(r *issue.Request) { r.Client = false }))
	keeper(t, Config{Door: "client", Files: Files{Cert: p.files().Cert, Key: p.files().Key}})
	p.put(with(func(r *issue.Request) { r.Server = false }))
	_, err = New(Config{Door: "client", Files: Files{Cert: p.files().Cert, Key: p.files().Key}})
	wantError(t, "a client port with a client's certificate", err, "serverAuth")
}

// A file may have maxFile bytes.
func TestFileLength(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
	for more, want := range []string{"", "is longer than 1048576 bytes"} {
		long := append(bytes.Clone(root.Cert), bytes.Repeat([]byte("\n"), maxFile+more-len(root.Cert))...)
		testkit.Must(t, os.WriteFile(p.files().CA, long, 0o644))
		if _, err := New(p.peerConfig()); want == "" {
			testkit.Must(t, err)
		} else {
			wantError(t, "one byte more", err, "ca.crt", want)
		}
	}
}

// Certificate and key may be one file, and a certificate may come with those between it
// and the CA.
func TestOneFile(t *testing.T) {
	ca, root := newCA(t, "CA")
	pair := issued(t, ca, member("1.raftkv"))
	p := newPlace(t).put(pair, root)
	one := filepath.Join(p.dir, "both.pem")
	testkit.Must(t, os.WriteFile(one, bytes.Join([][]byte{pair.Key, pair.Cert, root.Cert}, []byte("# in between\r\n")), 0o600))
	k, _ := keeper(t, Config{Door: "peer", Mutual: true, Name: "1.raftkv", Files: Files{Cert: one, Key: one, CA: p.files().CA}})
	testkit.Must(t, both(t, k, k, "1.raftkv", "1.raftkv"))
}

// kubernetes puts files as Kubernetes mounts them: names lead into the directory of a
// version by way of a link, which is swapped in one step.
func (p place) kubernetes(version int, pair issue.Pair, root issue.Pair) {
	p.t.Helper()
	dir := fmt.Sprintf("..v%d", version)
	testkit.Must(p.t, os.Mkdir(filepath.Join(p.dir, dir), 0o755))
	place{p.t, filepath.Join(p.dir, dir)}.put(pair, root)
	testkit.Must(p.t, os.Symlink(dir, filepath.Join(p.dir, "..data_tmp")))
	testkit.Must(p.t, os.Rename(filepath.Join(p.dir, "..data_tmp"), filepath.Join(p.dir, "..data")))
	if version == 1 {
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
			testkit.Must(p.t, os.Symlink(filepath.Join("..data", name), filepath.Join(p.dir, name)))
		}
	}
}

// Guarantee: a swap of links, which no name and no directory of the files shows, is a
// change; the old directory may go at once.
func TestReloadThroughLinks(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t)
	p.kubernetes(1, issued(t, ca, member("1.raftkv")), root)
	k, _ := keeper(t, p.peerConfig())
	for version := 2; version < 5; version++ {
		was := k.Own()
		p.kubernetes(version, issued(t, ca, member("1.raftkv")), root)
		testkit.Must(t, os.RemoveAll(filepath.Join(p.dir, fmt.Sprintf("..v%d", version-1))))
		if k.Look(); k.Own().Equal(was) || k.Trouble() != nil {
			t.Errorf("version %d is not in force: %v", version, k.Trouble())
		}
	}
}

// Guarantee: one look never makes a pair of two versions. Files that are swapped while
// they are read are read again.
func TestReadWhileSwapped(t *testing.T) {
	ca, root := newCA(t, "CA")
	pairs := []issue.Pair{issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv"))}
	p := newPlace(t)
	p.kubernetes(1, pairs[0], root)
	cfg := p.peerConfig()
	cfg.Copies = filepath.Join(t.TempDir(), "copies")
	k, logs := keeper(t, cfg)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for version := 2; ; version++ {
			select {
			case <-stop:
				return
			default:
				p.kubernetes(version, pairs[version%2], root)
			}
		}
	}()
	for range 30 {
		k.Look()
		testkit.Must(t, both(t, k, k, "1.raftkv", "1.raftkv"))
		files := k.CopiedFiles()
		text, err := readFiles(files)
		testkit.Must(t, err)
		_, err = (&Config{Files: files, Mutual: true, Name: "1.raftkv"}).judge(text, time.Now())
		testkit.Must(t, err)
	}
	close(stop)
	<-done
	if k.Look(); k.Trouble() != nil {
		t.Errorf("the files are still in trouble: %v", k.Trouble())
	}
	t.Logf("%d reloads, %d failed, %d lines", k.reloaded.Load(), k.failed.Load(), logs.Len())
}

// Guarantee: copies are of what is in force, of this node alone, and whole: certificate
// and key are one file, whose content never changes. What is not ours is left.
func TestCopies(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
	cfg := p.peerConfig()
	cfg.Copies = filepath.Join(t.TempDir(), "certs", "peer")
	testkit.Must(t, os.MkdirAll(cfg.Copies, 0o777))
	for _, name := range []string{"pair-0123456789abcdef.pem", "ca-0123456789abcdef.pem.tmp123", "mine.pem"} {
		testkit.Must(t, os.WriteFile(filepath.Join(cfg.Copies, name), []byte("old"), 0o666))
	}
	k, _ := keeper(t, cfg)
	var all []Files
	see := func(versions int) {
		t.Helper()
		if info, err := os.Stat(cfg.Copies); err != nil || info.Mode().Perm() != 0o700 {
			t.Fatalf("%v, %v", info.Mode(), err)
		}
		entries, err := os.ReadDir(cfg.Copies)
		testkit.Must(t, err)
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 && e.Name() != "mine.pem" {
				t.Errorf("%s has the mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
		if len(entries) != 1+2*versions {
			t.Errorf("there are %v", entries)
		}
		f := k.CopiedFiles()
		if f.Cert != f.Key {
			t.Errorf("the pair is in %s and %s", f.Cert, f.Key)
		}
		own, err := New(Config{Log: zap.NewNop(), Files: f, Mutual: true})
		testkit.Must(t, err)
		if !own.Own().Equal(k.Own()) {
			t.Errorf("the copies are not what is in force")
		}
		all = append(all, f)
	}
	see(1)
	k.Look()
	see(1)
	for n := range 4 {
		p.put(issued(t, ca, member("1.raftkv")), root)
		k.Look()
		see(min(n+2, copiesKept))
	}
	for n, f := range all[2:] { // all[0] and all[1] are the same
		_, err := os.Stat(f.Cert)
		if there := err == nil; there != (n >= 1) {
			t.Errorf("the copy of version %d: %v", n, err)
		}
	}
	// One that comes back counts by its last time.
	back, other, last := issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv"))
	var files []Files
	for _, pair := range []issue.Pair{back, other, back, last} {
		p.put(pair, root)
		k.Look()
		files = append(files, k.CopiedFiles())
	}
	for _, f := range files {
		_, err := readFiles(f)
		testkit.Must(t, err)
	}

	f := k.CopiedFiles()
	testkit.Must(t, os.WriteFile(p.files().Key, []byte("broken"), 0o600))
	if k.Look(); k.CopiedFiles() != f || k.Trouble() == nil {
		t.Errorf("what is broken was copied: %v", k.Trouble())
	}
}

// Guarantee: where no copy can be made, what is new is not in force, and it is told;
// it is once there is room.
func TestCopyFails(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
	cfg := p.peerConfig()
	cfg.Copies = filepath.Join(t.TempDir(), "copies")
	k, _ := keeper(t, cfg)
	was := k.Own()
	testkit.Must(t, os.RemoveAll(cfg.Copies))
	p.put(issued(t, ca, member("1.raftkv")), root)
	if k.Look(); !k.Own().Equal(was) {
		t.Error("in force without a copy")
	}
	wantError(t, "no directory", k.Trouble(), "copy of a certificate")
	testkit.Must(t, os.Mkdir(cfg.Copies, 0o700))
	if k.Look(); k.Trouble() != nil || k.Own().Equal(was) {
		t.Errorf("not in force: %v", k.Trouble())
	}
	testkit.Must(t, os.WriteFile(filepath.Join(p.dir, "file"), nil, 0o600))
	cfg.Copies = filepath.Join(p.dir, "file")
	_, err := New(cfg)
	wantError(t, "a file in place of the directory", err, "directory for copies")
}

// Guarantee: a certificate is known by its DNS and URI names, and by its common name
// only if there are none.
func TestNames(t *testing.T) {
	ca, root := newCA(t, "CA")
	for _, tt := range []struct {
		dns  []string
		ips  []net.IP
		cn   string
		want string
	}{
		{[]string{"a.example", "b.example"}, nil, "admin", "a.example,b.example"},
		{nil, []net.IP{net.IPv4(127, 0, 0, 1)}, "admin", "admin"},
		{nil, nil, "", ""},
	} {
		p := newPlace(t).put(issued(t, ca, issue.Request{CommonName: tt.cn, DNSNames: tt.dns, IPs: tt.ips, Server: true, From: time.Now(), Until: time.Now().Add(day)}), root)
		k, _ := keeper(t, Config{Door: "client", Files: p.files()})
		if got := strings.Join(Names(k.Own()), ","); got != tt.want {
			t.Errorf("names %q instead of %q", got, tt.want)
		}
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "admin"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/app"}}}
	if got := Names(c); !slices.Equal(got, []string{"spiffe://example/app"}) {
		t.Errorf("names %q", got)
	}
}
