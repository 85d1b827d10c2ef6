package offline

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/issue"
	"raftkv/internal/lease"
	"slices"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// How long certificates are valid, in days: what is made without --days, and the most.
const (
	caDays   = 3650
	certDays = 365
	maxDays  = 3650
)

const (
	tlsDir   = "tls"
	tlsHosts = "localhost,127.0.0.1,::1"
)

// tlsFlags are what raftkv tls is told.
type tlsFlags struct {
	dir, out, name, client, hosts string
	days                          int
	members                       []uint64
	config                        config.Config // for PeerAllowedName
}

func newTLSFlags() *tlsFlags { return &tlsFlags{dir: tlsDir, config: config.DefaultConfig()} }

func (f *tlsFlags) both() []config.Setting {
	return []config.Setting{
		{Flag: "dir", Arg: "DIR", Help: "where the CA is, or is to be (" + tlsDir + ")", Set: config.Into(&f.dir, config.ParseText, "")},
		{Flag: "days", Arg: "N", Help: fmt.Sprintf("how long it is valid (%d for a CA, else %d)", caDays, certDays), Set: config.Into(&f.days, parseDays, "")},
	}
}

func (f *tlsFlags) ofCA() []config.Setting {
	return append(f.both(), config.Setting{Flag: "name", Arg: "NAME", Help: "what the CA is called (raftkv CA, and when it was made)", Set: config.Into(&f.name, config.ParseText, "")})
}

func (f *tlsFlags) ofCert() []config.Setting {
	list := new(string)
	return slices.Concat(f.both(), []config.Setting{
		{Flag: "out", Arg: "DIR", Help: "where the new files go (that of the CA)", Set: config.Into(&f.out, config.ParseText, "")},
		{Flag: "member", Arg: "IDS", Help: "members, as in 1 or 1,2,3: a certificate for each", Set: config.Into(&f.members, parseIDs, "")},
		{Flag: "host", Arg: "LIST", Help: "further names and addresses of the member (" + tlsHosts + ")", Set: config.Into(&f.hosts, config.ParseText, "")},
		{Flag: "client", Arg: "NAME", Help: "a client, and its name: a DNS name", Set: config.Into(&f.client, address.CheckHost, "")},
	}, shared(&f.config, list, "peer-allowed-name"))
}

func parseDays(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxDays {
		return 0, fmt.Errorf("expected 1 to %d", maxDays)
	}
	return n, nil
}

func parseIDs(text string) (ids []uint64, err error) {
	for item := range strings.SplitSeq(text, ",") {
		id, err := address.ParseID(item)
		if err == nil && slices.Contains(ids, id) {
			err = errors.New("expected each only once")
		}
		if err != nil {
			return nil, fmt.Errorf("ID %q: %w", item, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

const tlsExample = `raftkv tls ca
raftkv tls cert --member 1,2,3 --host kv.example,10.0.0.1
raftkv tls cert --client deployer.example`

func tlsCommand() command.Command {
	return command.Command{
		Name: "tls", About: "make a CA, and certificates for members and clients", Example: tlsExample,
		Long: `Makes what TLS needs, in files. Keys are for ECDSA (P-256), in files that only their
owner can read. Nothing that is there is overwritten.`,
		Sub: []command.Command{{
			Name: "ca", About: "make a CA", Example: tlsExample, New: newCA,
			Long: `Makes a CA: ca.pem, for all who connect, and ca-key.pem, which only signs further
certificates and is best kept away from the servers.`,
		}, {
			Name: "cert", About: "make certificates that the CA signs", Example: tlsExample, New: newCert,
			Long: `Makes what a CA of raftkv tls ca signs. For --member 1 it is member-1.pem and
member-1-key.pem, with the name 1.raftkv by which other members know it, and the
names and addresses by which clients reach it: so it can be used at both ports.
For --client NAME it is client-NAME.pem and client-NAME-key.pem, with that name.`,
		}},
	}
}

func newCA() command.Action {
	f := newTLSFlags()
	return command.Action{Settings: f.ofCA(), Run: run(func(o *command.Call) error { return makeCA(o, f) })}
}

func newCert() command.Action {
	f := newTLSFlags()
	var names []string
	var ips []net.IP
	return command.Action{
		Settings: f.ofCert(),
		Check: func(o *command.Call) {
			r := o.Review
			if (f.members == nil) == (f.client == "") && r.Sound("member", "client") {
				r.Errs = append(r.Errs, errors.New("expected --member or --client, and not both"))
			}
			if f.client != "" && f.hosts != "" {
				r.Check("host", f.hosts, errors.New("expected only with --member"))
			}
			if f.client != "" && r.Sound("peer-allowed-name") {
				r.Check("client", f.client, f.notOfMembers(f.client))
			}
			var err error
			names, ips, err = f.splitHosts(cmp.Or(f.hosts, tlsHosts))
			r.Check("host", f.hosts, err)
		},
		Run: run(func(o *command.Call) error { return makeCerts(o, f, names, ips) }),
	}
}

// notOfMembers refuses a name by which members know each other.
func (f *tlsFlags) notOfMembers(name string) error {
	if ip := net.ParseIP(name); ip != nil {
		return errors.New("expected a DNS name")
	}
	before, after, _ := strings.Cut(f.config.PeerAllowedName, "{id}")
	middle, begins := strings.CutPrefix(name, before)
	middle, ends := strings.CutSuffix(middle, after)
	_, err := address.ParseID(middle)
	if begins && ends && err == nil || name == f.config.PeerAllowedName {
		return errors.New("expected another name, because members are known by that")
	}
	return nil
}

// splitHosts sorts the names and the addresses of a list.
func (f *tlsFlags) splitHosts(list string) (names []string, ips []net.IP, err error) {
	for item := range strings.SplitSeq(list, ",") {
		host, err := address.CheckHost(strings.TrimSpace(item))
		if err != nil {
			return nil, nil, fmt.Errorf("host %q: %w", item, err)
		}
		if ip := net.ParseIP(host); ip != nil {
			ips = append(ips, ip)
			continue
		}
		if err := f.notOfMembers(host); err != nil {
			return nil, nil, fmt.Errorf("host %q: %w", item, err)
		}
		names = append(names, host)
	}
	return names, ips, nil
}

// file returns a file of the CA, pair the files of a certificate and its key.
func (f *tlsFlags) file(name string) string { return filepath.Join(f.dir, name+".pem") }

func (f *tlsFlags) pair(name string) (certFile, keyFile string) {
	dir := cmp.Or(f.out, f.dir)
	return filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
}

func makeCA(o *command.Call, f *tlsFlags) error {
	now := time.Now()
	name := cmp.Or(f.name, "raftkv CA of "+now.UTC().Format(time.DateTime))
	_, pair, err := issue.NewCA(name, now.Add(-issue.Backdate), now.Add(time.Duration(cmp.Or(f.days, caDays))*day))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	return write(o, pair, f.file("ca"), f.file("ca-key"))
}

func makeCerts(o *command.Call, f *tlsFlags, names []string, ips []net.IP) error {
	ca, err := issue.ReadCA(f.file("ca"), f.file("ca-key"))
	if err != nil {
		return fmt.Errorf("there is no CA to sign with (raftkv tls ca --dir %s makes one): %w", f.dir, err)
	}
	if f.out != "" {
		if err := os.MkdirAll(f.out, 0o700); err != nil {
			return err
		}
	}
	now := time.Now()
	wanted := issue.Request{From: now.Add(-issue.Backdate), Until: now.Add(time.Duration(cmp.Or(f.days, certDays)) * day), Client: true}
	if f.client != "" {
		wanted.CommonName, wanted.DNSNames = "raftkv client", []string{f.client}
		return f.makeCert(o, ca, wanted, "client-"+f.client)
	}
	nameOf := func(id uint64) string { return fmt.Sprint("member-", id) }
	for _, id := range f.members {
		if err := issue.Absent(f.pair(nameOf(id))); err != nil {
			return err // before one of several is made
		}
	}
	for _, id := range f.members {
		wanted.Server, wanted.CommonName, wanted.IPs = true, fmt.Sprint("raftkv member ", id), ips
		wanted.DNSNames = append([]string{f.config.MemberName(id)}, names...)
		if err := f.makeCert(o, ca, wanted, nameOf(id)); err != nil {
			return err
		}
	}
	return nil
}

func (f *tlsFlags) makeCert(o *command.Call, ca *issue.CA, wanted issue.Request, name string) error {
	pair, err := ca.Issue(wanted)
	if err != nil {
		return err
	}
	certFile, keyFile := f.pair(name)
	return write(o, pair, certFile, keyFile)
}

func write(o *command.Call, pair issue.Pair, certFile, keyFile string) error {
	if err := pair.Write(certFile, keyFile); err != nil {
		return err
	}
	return o.Print(map[string]string{"cert": certFile, "key": keyFile}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "made %s and its key %s\n", certFile, keyFile)
		return err
	})
}

func tokenCommand() command.Command {
	return command.Command{
		Name: "token", Args: "NAME", About: "make a token for a client",
		Long: `Makes a token for the client of that name, and prints it on standard output, once: it
is not kept anywhere. What belongs into the file of --auth-file it prints on standard
error: the name, and the token's SHA-256, by which nobody can find the token.`,
		Example: `raftkv token deployer >deployer.token
raftkv get greeting --token-file deployer.token
curl -H "Authorization: Bearer $(cat deployer.token)" http://127.0.0.1:9121/greeting`,
		New: func() command.Action {
			return command.Action{
				Check: func(o *command.Call) {
					if len(o.Args) > 0 {
						if err := checkClientName(o.Arg(0)); err != nil {
							o.Review.Errs = append(o.Review.Errs, fmt.Errorf("NAME %q: %w", o.Arg(0), err))
						}
					}
				},
				Run: run(runToken),
			}
		},
	}
}

func runToken(o *command.Call) error {
	token, hash := issue.Token()
	if o.Output == command.JSON {
		return o.PrintJSON(map[string]string{"name": o.Arg(0), "token": token, "hash": hash})
	}
	if _, err := fmt.Fprintln(o.Stdout, token); err != nil {
		return err
	}
	_, err := fmt.Fprintf(o.Stderr, `For the entries of --auth-file; the rights are yours to fill in:
  - name: %q
    tokens: [%q]
    rights:
      - {right: [read, write], prefixes: ["app/"]}
`, o.Arg(0), hash)
	return err
}

// checkClientName says what a name of an entry in a file of rights must be.
func checkClientName(name string) error {
	switch {
	case name == "" || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }):
		return errors.New("expected visible ASCII characters, without spaces")
	case len(name) > lease.MaxOwner:
		return fmt.Errorf("expected at most %d bytes", lease.MaxOwner)
	case name == "anonymous":
		return errors.New("expected another name, because that is who has no token")
	}
	return nil
}
