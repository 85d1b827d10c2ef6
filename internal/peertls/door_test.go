package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// configOf returns the flags of a member with a certificate, whose files are in dir.
func configOf(dir string, id uint64, ca *testkit.CA, c tls.Certificate) config.Config {
	cfg := config.DefaultConfig()
	cfg.ID = id
	cfg.PeerCertFile, cfg.PeerKeyFile, cfg.PeerTrustedCAFile = ca.Files(dir, c)
	return cfg
}

// openDoor opens the door of a member.
func openDoor(t *testing.T, cfg config.Config) (*peerclient.Client, *Door) {
	t.Helper()
	ask, d, err := Open(t.Context(), cfg, zap.NewNop())
	testkit.Must(t, err)
	return ask, d
}

// serveBehind serves h behind a door, and returns its host:port.
func serveBehind(t *testing.T, d *Door, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	server := &http.Server{Handler: d.Identify(h), ConnContext: web.ConnContext}
	go func() { _ = server.Serve(web.HangUpListener{Listener: d.Listen(l)}) }()
	t.Cleanup(func() { testkit.Must(t, server.Close()) })
	return l.Addr().String()
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"missing":0}`) }

// get makes one request with a certificate, or none, to whoever is there.
func get(t *testing.T, url string, cfg *tls.Config) (status int, err error) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// Guarantee: a node does not start with a certificate that its peers would refuse, and says which file is wrong.
func TestOpenChecksTheOwnCertificate(t *testing.T) {
	t.Parallel()
	ca, other := testkit.NewCA(t), testkit.NewCA(t)
	now := time.Now()
	good := ca.Certificate(time.Hour, "1.raftkv")
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		ca   *testkit.CA
		want []string
	}{
		{"it is right", good, ca, nil},
		{"another CA", good, other, []string{"cert.pem", "ca.pem", "not signed"}},
		{"another member's", ca.Certificate(time.Hour, "2.raftkv"), ca, []string{"cert.pem", "2.raftkv", `"1.raftkv"`}},
		{"a wildcard", ca.Certificate(time.Hour, "*.raftkv"), ca, []string{"cert.pem", `"1.raftkv"`}},
		{"for servers alone", ca.Between(now.Add(-time.Minute), now.Add(time.Minute), []string{"1.raftkv"}, x509.ExtKeyUsageServerAuth), ca, []string{"cert.pem", "clientAuth"}},
		{"for clients alone", ca.Between(now.Add(-time.Minute), now.Add(time.Minute), []string{"1.raftkv"}, x509.ExtKeyUsageClientAuth), ca, []string{"cert.pem", "serverAuth"}},
	} {
		_, d, err := Open(t.Context(), configOf(t.TempDir(), 1, tt.ca, tt.cert), zap.NewNop())
		if (err == nil) != (tt.want == nil) || (d == nil) != (err != nil) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			continue
		}
		for _, part := range tt.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, without %q", tt.name, err, part)
			}
		}
	}
	cfg := configOf(t.TempDir(), 1, ca, good)
	testkit.Must(t, os.Remove(cfg.PeerKeyFile))
	if _, _, err := Open(t.Context(), cfg, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "key.pem") {
		t.Errorf("without the key: %v", err)
	}
	if _, d, err := Open(t.Context(), config.DefaultConfig(), zap.NewNop()); d != nil || err != nil {
		t.Errorf("without certificates: %v, %v", d, err)
	}
}

// Guarantee: a start says so when certificates do not prove which member one is, and while nothing is protected.
func TestOpenSaysWhatIsOpen(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	cfg := configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "members.raftkv", "1.raftkv"))
	for _, tt := range []struct {
		adapt func(*config.Config)
		want  []string
		notes string
	}{
		{func(*config.Config) {}, nil, ""},
		{func(c *config.Config) { c.PeerAllowedName = "members.raftkv" }, []string{"no {id}"}, ""},
		{func(c *config.Config) { c.PeerTLS = config.Optional }, []string{"plain HTTP"}, "plain HTTP"},
	} {
		core, lines := observer.New(zap.WarnLevel)
		c := cfg
		tt.adapt(&c)
		_, d, err := Open(t.Context(), c, zap.New(core))
		testkit.Must(t, err)
		var said []string
		for _, l := range lines.All() {
			if !strings.Contains(l.Message, "expires soon") {
				said = append(said, l.Message)
			}
		}
		if len(said) != len(tt.want) || len(said) == 1 && !strings.Contains(said[0], tt.want[0]) {
			t.Errorf("it says %q, want %q", said, tt.want)
		}
		if notes := d.Notes(); (notes == "") != (tt.notes == "") || !strings.Contains(notes, tt.notes) {
			t.Errorf("notes %q, want %q", notes, tt.notes)
		}
	}
}

// Guarantee: who has no certificate of a member of this cluster says nothing at the peer port.
func TestListenTakesMembersAlone(t *testing.T) {
	t.Parallel()
	ca, other := testkit.NewCA(t), testkit.NewCA(t)
	now := time.Now()
	_, d := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	addr := serveBehind(t, d, http.HandlerFunc(ok))
	with := func(c tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: ca.Pool, ServerName: "1.raftkv", Certificates: []tls.Certificate{c}}
	}
	old := with(ca.Certificate(time.Hour, "2.raftkv"))
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for _, tt := range []struct {
		name string
		cfg  *tls.Config
		in   bool
	}{
		{"a member", with(ca.Certificate(time.Hour, "2.raftkv")), true},
		{"a member by one of its names", with(ca.Certificate(time.Hour, "db.example", "2.RAFTKV")), true},
		{"the largest ID", with(ca.Certificate(time.Hour, "18446744073709551613.raftkv")), true},
		{"no ID", with(ca.Certificate(time.Hour, "18446744073709551614.raftkv")), false},
		{"ID 0", with(ca.Certificate(time.Hour, "0.raftkv")), false},
		{"an ID in another form", with(ca.Certificate(time.Hour, "02.raftkv")), false},
		{"without a certificate", &tls.Config{RootCAs: ca.Pool, ServerName: "1.raftkv"}, false},
		{"another CA", with(other.Certificate(time.Hour, "2.raftkv")), false},
		{"expired", with(ca.Between(now.Add(-time.Hour), now.Add(-time.Minute), []string{"2.raftkv"})), false},
		{"not yet valid", with(ca.Between(now.Add(time.Minute), now.Add(time.Hour), []string{"2.raftkv"})), false},
		{"for servers alone", with(ca.Between(now.Add(-time.Minute), now.Add(time.Minute), []string{"2.raftkv"}, x509.ExtKeyUsageServerAuth)), false},
		{"a client's", with(ca.Certificate(time.Hour, "web.example")), false},
		{"a second cluster's, of the same CA", with(ca.Certificate(time.Hour, "2.other")), false},
		{"a wildcard", with(ca.Certificate(time.Hour, "*.raftkv")), false},
		{"a name behind it", with(ca.Certificate(time.Hour, "2.raftkv.example")), false},
		{"a name before it", with(ca.Certificate(time.Hour, "x2.raftkv")), false},
		{"an old version", old, false},
	} {
		status, err := get(t, "https://"+addr, tt.cfg)
		if (err == nil && status == http.StatusOK) != tt.in {
			t.Errorf("%s: %d, %v; want that it comes in: %v", tt.name, status, err, tt.in)
		}
	}
	conn, err := net.Dial("tcp", addr)
	testkit.Must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	testkit.Must(t, err)
	text, _ := io.ReadAll(conn)
	if got := string(text); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "https") {
		t.Errorf("plain HTTP gets %q", got)
	}
}

// Guarantee: a name without an ID lets in who has that name, and nobody else.
func TestListenWithOneNameForAll(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	cfg := configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "members.one"))
	cfg.PeerAllowedName = "members.one"
	ask, d := openDoor(t, cfg)
	addr := serveBehind(t, d, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := peerclient.SenderIs(r.Context(), 7); err != nil {
			t.Errorf("it proves membership, and %v", err)
		}
		ok(w, r)
	}))
	var answer any
	if err := ask.Get(t.Context(), "https://"+addr, 0, &answer); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"members.two", "1.raftkv", "1.members.one"} {
		if status, err := get(t, "https://"+addr, &tls.Config{RootCAs: ca.Pool, ServerName: "members.one",
			Certificates: []tls.Certificate{ca.Certificate(time.Hour, name)}}); err == nil {
			t.Errorf("%s comes in: %d", name, status)
		}
	}
}

// Guarantee: a node talks to nobody but the member that it means, and without TLS to nobody.
func TestDialDemandsTheName(t *testing.T) {
	t.Parallel()
	ca, other := testkit.NewCA(t), testkit.NewCA(t)
	now := time.Now()
	ask, d := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	for _, tt := range []struct {
		name  string
		cert  tls.Certificate
		known uint64 // the member that is known to be at the address
		in    bool
	}{
		{"the member", ca.Certificate(time.Hour, "2.raftkv"), 2, true},
		{"another member", ca.Certificate(time.Hour, "3.raftkv"), 2, false},
		{"a wildcard", ca.Certificate(time.Hour, "*.raftkv"), 2, false},
		{"any member, as a seed", ca.Certificate(time.Hour, "3.raftkv"), 0, true},
		{"a client, as a seed", ca.Certificate(time.Hour, "web.example"), 0, false},
		{"a second cluster's, as a seed", ca.Certificate(time.Hour, "3.other"), 0, false},
		{"a wildcard, as a seed", ca.Certificate(time.Hour, "*.raftkv"), 0, false},
		{"another CA", other.Certificate(time.Hour, "2.raftkv"), 2, false},
		{"another CA, as a seed", other.Certificate(time.Hour, "2.raftkv"), 0, false},
		{"expired", ca.Between(now.Add(-time.Hour), now.Add(-time.Minute), []string{"2.raftkv"}), 2, false},
		{"not yet valid, as a seed", ca.Between(now.Add(time.Minute), now.Add(time.Hour), []string{"2.raftkv"}), 0, false},
		{"for clients alone", ca.Between(now.Add(-time.Minute), now.Add(time.Minute), []string{"2.raftkv"}, x509.ExtKeyUsageClientAuth), 2, false},
	} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{tt.cert}})
		testkit.Must(t, err)
		server := &http.Server{Handler: http.HandlerFunc(ok)}
		go func() { _ = server.Serve(l) }()
		url := "https://" + l.Addr().String()
		d.KnowMembers(func() map[uint64]string { return map[uint64]string{tt.known: url, 9: "https://127.0.0.1:1"} })
		var answer any
		if err := ask.Get(t.Context(), url, 0, &answer); (err == nil) != tt.in {
			t.Errorf("%s: %v, want that it is asked: %v", tt.name, err, tt.in)
		}
		testkit.Must(t, server.Close())
	}
}

// Guarantee: TLS that is required is required of what this node dials, too; only while a cluster is switched both go.
func TestDialSchemes(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	_, two := openDoor(t, configOf(t.TempDir(), 2, ca, ca.Certificate(time.Hour, "2.raftkv")))
	secure := "https://" + serveBehind(t, two, http.HandlerFunc(ok))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "/", http.StatusFound)
			return
		}
		ok(w, r)
	})}
	go func() { _ = server.Serve(plain) }()
	defer server.Close()
	open := "http://" + plain.Addr().String()
	cfg := configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv"))
	optional := cfg
	optional.PeerTLS = config.Optional
	for _, tt := range []struct {
		name         string
		cfg          config.Config
		plain, https bool
	}{
		{"no certificates", config.DefaultConfig(), true, false},
		{"required", cfg, false, true},
		{"optional", optional, true, true},
	} {
		ask, d := openDoor(t, tt.cfg)
		for url, in := range map[string]bool{open: tt.plain, secure: tt.https} {
			var answer any
			if err := ask.Get(t.Context(), url, 0, &answer); (err == nil) != in {
				t.Errorf("%s: %s: %v, want that it is asked: %v", tt.name, url, err, in)
			}
			if err := d.CheckURL(url); (err == nil) != in {
				t.Errorf("%s: %s: %v, want that rafthttp dials it: %v", tt.name, url, err, in)
			}
			// What the members know of this node counts, and not what its command line says.
			core, lines := observer.New(zap.WarnLevel)
			m := membership.New([]address.Peer{{ID: 1, URL: url}})
			if d.CheckOwn(address.Peer{ID: 1, URL: "http://a:1"}, m, zap.New(core)); (lines.Len() == 0) != in {
				t.Errorf("%s: of %s as its own URL %d lines are written", tt.name, url, lines.Len())
			}
			if d.CheckOwn(address.Peer{ID: 2, URL: url}, m, zap.New(core)); (lines.Len()%2 == 0) != true {
				t.Errorf("%s: of %s, before it is a member, another number of lines is written", tt.name, url)
			}
		}
		var answer any
		if err := ask.Get(t.Context(), open+"/redirect", 0, &answer); err == nil {
			t.Errorf("%s: it was sent on to another URL", tt.name)
		}
	}
}

// Guarantee: while a cluster is switched the peer port takes both, and what comes by TLS has to prove whose it is.
func TestOptional(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	cfg := configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv"))
	cfg.PeerTLS = config.Optional
	_, d := openDoor(t, cfg)
	addr := serveBehind(t, d, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := peerclient.SenderIs(r.Context(), 2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	with := func(names ...string) *tls.Config {
		return &tls.Config{RootCAs: ca.Pool, ServerName: "1.raftkv", Certificates: []tls.Certificate{ca.Certificate(time.Hour, names...)}}
	}
	for _, tt := range []struct {
		url  string
		cfg  *tls.Config
		want int
	}{
		{"http://" + addr, nil, 200},
		{"https://" + addr, with("2.raftkv"), 200},
		{"https://" + addr, with("3.raftkv"), 400},
		{"https://" + addr, with("web.example"), 0},
	} {
		if got, err := get(t, tt.url, tt.cfg); got != tt.want {
			t.Errorf("%s: %d, %v; want %d", tt.url, got, err, tt.want)
		}
	}
}

// Guarantee: the certificate of a member lets its holder speak for that member alone.
func TestIdentify(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	_, d := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	asked := make(chan map[string]error, 1)
	addr := serveBehind(t, d, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- map[string]error{
			"2":         peerclient.SenderIs(r.Context(), 2),
			"3":         peerclient.SenderIs(r.Context(), 3),
			"4":         peerclient.SenderIs(r.Context(), 4),
			"0":         peerclient.SenderIs(r.Context(), 0),
			"one of 1":  peerclient.SenderIsOne(r.Context(), func(id uint64) bool { return id == 1 }),
			"one of <9": peerclient.SenderIsOne(r.Context(), func(id uint64) bool { return id < 9 }),
		}
	}))
	status, err := get(t, "https://"+addr, &tls.Config{RootCAs: ca.Pool, ServerName: "1.raftkv",
		Certificates: []tls.Certificate{ca.Certificate(time.Hour, "4.raftkv", "2.raftkv", "web.example")}})
	if err != nil || status != 200 {
		t.Fatal(status, err)
	}
	for what, got := range <-asked {
		if want := what == "2" || what == "4" || what == "one of <9"; (got == nil) != want {
			t.Errorf("it may speak for %s: %v, want %v", what, got, want)
		}
	}
	d.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if peerclient.SenderIs(r.Context(), 2) == nil {
			t.Error("a connection of which nothing is known speaks for member 2")
		}
	})).ServeHTTP(nil, (&http.Request{}).WithContext(t.Context()))
	var none *Door
	none.Identify(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		testkit.Must(t, peerclient.SenderIs(r.Context(), 2))
	})).ServeHTTP(nil, (&http.Request{}).WithContext(t.Context()))
}

// Guarantee: when its certificate expires, or its CA is trusted no more, a peer's connection ends at once.
func TestConnectionsEndWithTheirCertificate(t *testing.T) {
	t.Parallel()
	ca, next := testkit.NewCA(t), testkit.NewCA(t)
	dir := t.TempDir()
	cfg := configOf(dir, 1, ca, ca.Certificate(time.Hour, "1.raftkv"))
	_, d := openDoor(t, cfg)
	began := make(chan bool)
	addr := serveBehind(t, d, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // a stream
		_ = http.NewResponseController(w).Flush()
		began <- true
		<-r.Context().Done()
	}))
	stream := func(c tls.Certificate) (ended chan error) {
		conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: ca.Pool, ServerName: "1.raftkv", Certificates: []tls.Certificate{c}})
		testkit.Must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		testkit.Must(t, err)
		<-began
		ended = make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, conn)
			ended <- err
		}()
		return ended
	}
	short := stream(ca.Between(time.Now().Add(-time.Hour), time.Now().Add(2*time.Second), []string{"2.raftkv"}))
	long := stream(ca.Certificate(time.Hour, "3.raftkv"))
	<-short
	select {
	case err := <-long:
		t.Errorf("the other ended as well: %v", err)
	default:
	}
	// Both CAs, then the next alone.
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), append(ca.PEM(), next.PEM()...), 0o600))
	d.tls.Certs.Look()
	select {
	case err := <-long:
		t.Errorf("it ended although its CA is trusted: %v", err)
	default:
	}
	next.Files(dir, next.Certificate(time.Hour, "1.raftkv"))
	d.tls.Certs.Look()
	<-long
}

// Guarantee: what rafthttp reads are copies that only this node can read, of files that were whole.
func TestFilesAreCopies(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	dir, data := t.TempDir(), t.TempDir()
	_, d := openDoor(t, configOf(dir, 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	testkit.Must(t, d.Copy(data))
	files, is := d.Files()
	if !is || !strings.HasPrefix(files.Cert, filepath.Join(data, CopiesName)) {
		t.Fatalf("%+v, %v", files, is)
	}
	for _, name := range []string{files.Cert, files.Key, files.CA} {
		info, err := os.Stat(name)
		testkit.Must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if info, err := os.Stat(filepath.Join(data, CopiesName)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
	_, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("-----BEGIN CERT"), 0o600))
	d.tls.Certs.Look()
	if again, _ := d.Files(); again != files || d.Notes() == "" {
		t.Errorf("half a file is in force: %+v, notes %q", again, d.Notes())
	}
	var none *Door
	testkit.Must(t, none.Copy(data))
	if _, is := none.Files(); is {
		t.Error("a node without TLS has files")
	}
}

// What asks, and is cut off, ends in time.
func TestDialEnds(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	_, d := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	l, err := net.Listen("tcp", "127.0.0.1:0") // which accepts, and says nothing
	testkit.Must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if conn, err := d.dial(ctx, "tcp", l.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", conn, err)
	}
}
