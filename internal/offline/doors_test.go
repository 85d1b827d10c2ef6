//go:build unix

package offline

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/certs"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"time"
)

func made(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := runCommand(t, args...)
	if code != config.ExitOK || errs != "" {
		t.Fatalf("%q: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// Guarantee: three commands make a CA and what a cluster and a client need: members
// that know each other by name, at both ports, for sane times.
func TestTLSCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "tls")
	in := func(name string) string { return filepath.Join(dir, name) }
	if out := made(t, "tls", "ca", "--dir", dir); !strings.Contains(out, in("ca.pem")) || !strings.Contains(out, in("ca-key.pem")) {
		t.Errorf("%s", out)
	}
	made(t, "tls", "cert", "--member", "1,2", "--dir", dir)
	made(t, "tls", "cert", "--dir", dir, "--member=3", "--host", "KV.example,10.0.0.1", "--days", "7")
	made(t, "tls", "cert", "--dir", dir, "--client", "Deployer.example")
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
	now := time.Now()
	near := func(got time.Time, days int) bool { return got.Sub(now.AddDate(0, 0, days)).Abs() < 3*time.Hour }
	for id, want := range map[int]struct {
		names, ips []string
		days       int
	}{
		1: {[]string{"1.raftkv", "localhost"}, []string{"127.0.0.1", "::1"}, 365},
		2: {[]string{"2.raftkv", "localhost"}, []string{"127.0.0.1", "::1"}, 365},
		3: {[]string{"3.raftkv", "kv.example"}, []string{"10.0.0.1"}, 7},
	} {
		file := in(fmt.Sprint("member-", id))
		k, err := certs.New(certs.Config{Mutual: true, Name: fmt.Sprint(id, ".raftkv"), Files: certs.Files{Cert: file + ".pem", Key: file + "-key.pem", CA: in("ca.pem")}})
		testkit.Must(t, err)
		c := k.Own()
		var ips []string
		for _, ip := range c.IPAddresses {
			ips = append(ips, ip.String())
		}
		if !slices.Equal(c.DNSNames, want.names) || !slices.Equal(ips, want.ips) || !near(c.NotAfter, want.days) || !near(c.NotBefore, 0) {
			t.Errorf("member %d: %q, %q, until %v", id, c.DNSNames, ips, c.NotAfter)
		}
		if info, err := os.Stat(file + "-key.pem"); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key: %v, %v", info.Mode(), err)
		}
	}
	pair, err := tls.LoadX509KeyPair(in("client-deployer.example.pem"), in("client-deployer.example-key.pem"))
	testkit.Must(t, err)
	if c := pair.Leaf; !slices.Equal(certs.Names(c), []string{"deployer.example"}) || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("the client is %q for %v", certs.Names(c), c.ExtKeyUsage)
	}
	root, err := tls.LoadX509KeyPair(in("ca.pem"), in("ca-key.pem"))
	testkit.Must(t, err)
	if !near(root.Leaf.NotAfter, 3650) || !strings.HasPrefix(root.Leaf.Subject.CommonName, "raftkv CA of ") {
		t.Errorf("the CA is %q until %v", root.Leaf.Subject.CommonName, root.Leaf.NotAfter)
	}
	made(t, "tls", "ca", "--dir", in("b"), "--name", "mine", "--days", "400")
	root, err = tls.LoadX509KeyPair(in("b/ca.pem"), in("b/ca-key.pem"))
	testkit.Must(t, err)
	if !near(root.Leaf.NotAfter, 400) || root.Leaf.Subject.CommonName != "mine" {
		t.Errorf("the CA is %q until %v", root.Leaf.Subject.CommonName, root.Leaf.NotAfter)
	}
}

// Members can have other names, by flag and by environment, as the server's.
func TestTLSAllowedName(t *testing.T) {
	for form, want := range map[string]string{"{id}.kv.example": "5.kv.example", "kv.example": "kv.example"} {
		dir := t.TempDir()
		made(t, "tls", "ca", "--dir", dir)
		code, _, errs := runCommandEnv(t, map[string]string{"RAFTKV_PEER_ALLOWED_NAME": form, "RAFTKV_HOST": "0.0.0.0"}, "tls", "cert", "--dir", dir, "--member", "5")
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "member-5.pem"), filepath.Join(dir, "member-5-key.pem"))
		if code != config.ExitOK || err != nil || pair.Leaf.DNSNames[0] != want || len(pair.Leaf.IPAddresses) != 2 {
			t.Errorf("exit %d, %v\n%s", code, err, errs)
		}
		for _, name := range []string{want, strings.ToUpper(want)} {
			code, _, errs = runCommand(t, "tls", "cert", "--dir", dir, "--client", name, "--peer-allowed-name", form)
			if code != config.ExitUsage || !strings.Contains(errs, "members are known by that") {
				t.Errorf("a client with a member's name: exit %d\n%s", code, errs)
			}
		}
		made(t, "tls", "cert", "--dir", dir, "--client", "x.kv.example", "--peer-allowed-name", form)
	}
}

// Guarantee: what is there stays, also when only one of several members is there.
func TestTLSNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	made(t, "tls", "ca", "--dir", dir)
	made(t, "tls", "cert", "--dir", dir, "--member", "2")
	made(t, "tls", "cert", "--dir", dir, "--client", "c")
	before := testkit.Sums(t, dir)
	for _, args := range [][]string{{"ca"}, {"cert", "--member", "1,2,3"}, {"cert", "--client", "c"}, {"cert", "--member", "1", "--days", "3650"}} {
		code, out, errs := runCommand(t, append(append([]string{"tls"}, args...), "--dir", dir)...)
		if code != config.ExitFault || out != "" || !strings.Contains(errs, "never overwritten") && !strings.Contains(errs, "the CA expires on") {
			t.Errorf("%q: exit %d\n%s%s", args, code, out, errs)
		}
		testkit.WantUnchanged(t, dir, before)
	}
	made(t, "tls", "cert", "--dir", dir, "--member", "1,2", "--out", filepath.Join(dir, "new"))
	for _, name := range []string{"new/member-1.pem", "new/member-2-key.pem"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	code, _, errs := runCommand(t, "tls", "cert", "--dir", t.TempDir(), "--member", "1")
	if code != config.ExitFault || !strings.Contains(errs, "raftkv tls ca") {
		t.Errorf("without a CA: exit %d\n%s", code, errs)
	}
}

// Guarantee: all that is wrong with a command line is named at once.
func TestTLSUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"ca", "b", "--member", "1", "--out=x"}, []string{`"b"`, "member", "out"}},
		{[]string{"ca", "--days", "0"}, []string{"--days", "1 to 3650"}},
		{[]string{"ca", "--days", "3651"}, []string{"--days", "1 to 3650"}},
		{[]string{"cert"}, []string{"--member or --client"}},
		{[]string{"cert", "--member", "1", "--client", "a"}, []string{"not both"}},
		{[]string{"cert", "--member", "1,1"}, []string{"only once"}},
		{[]string{"cert", "--member", "1,0", "--host", "a b", "--days", "x"}, []string{`"0"`, `"a b"`, "--days"}},
		{[]string{"cert", "--member", "1", "--host", "2.raftkv"}, []string{"--host", "members are known by that"}},
		{[]string{"cert", "--client", "a", "--host", "b"}, []string{"only with --member"}},
		{[]string{"cert", "--client", "127.0.0.1"}, []string{"expected a DNS name"}},
		{[]string{"cert", "--client", "../a"}, []string{"--client"}},
		{[]string{"cert", "--client", "a/b"}, []string{"--client"}},
	} {
		code, out, errs := runCommand(t, append([]string{"tls"}, tt.args...)...)
		if code != config.ExitUsage || out != "" {
			t.Errorf("%q: exit %d\n%s%s", tt.args, code, out, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%q: %s is not named in\n%s", tt.args, want, errs)
			}
		}
	}
	made(t, "tls", "ca", "--days", "3650", "--dir", t.TempDir())
	made(t, "tls", "ca", "--days", "1", "--dir", t.TempDir())
}

// Guarantee: the token alone is on standard output, once; what stands for it in the file
// of rights is on standard error.
func TestTokenCommand(t *testing.T) {
	code, out, errs := runCommand(t, "token", "deployer")
	token := strings.TrimSuffix(out, "\n")
	hash := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(token)))
	if code != config.ExitOK || len(token) < 43 || strings.ContainsAny(token, " \n") || strings.Contains(errs, token) ||
		!strings.Contains(errs, "  - name: \"deployer\"\n    tokens: [\""+hash+"\"]\n") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if _, again, _ := runCommand(t, "token", "deployer"); again == out {
		t.Error("the same token twice")
	}
	for name, ok := range map[string]bool{
		strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "": false, "a b": false, "ä": false, "anonymous": false, `a"b`: true,
	} {
		if code, out, errs := runCommand(t, "token", name); ok != (code == config.ExitOK) || !ok && (code != config.ExitUsage || out != "" || !strings.Contains(errs, "NAME")) {
			t.Errorf("%q: exit %d\n%s%s", name, code, out, errs)
		}
	}
}
