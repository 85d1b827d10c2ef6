//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// procFile writes a file of a test.
func procFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What consul kv export prints of five keys, one of them a folder; etcdctl get --prefix "" -w json prints
// its answer on one line, and leaves out what is empty or 0.
const (
	procConsulExport = `[
	{
		"key": "app/",
		"flags": 0,
		"value": ""
	},
	{
		"key": "app/db/max conns",
		"flags": 0,
		"value": "MTAw"
	},
	{
		"key": "app/logo",
		"flags": 42,
		"value": "iVBORw0KGgo="
	},
	{
		"key": "app/név",
		"flags": 0,
		"value": "xZFzeg=="
	}
]
`
	procEtcdExport = `{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":11,"raft_term":4},"kvs":[{"key":"L3JlZ2lzdHJ5L2E=","create_revision":2,"mod_revision":9,"version":3,"value":"azhzAAoM"},{"key":"L3NlcnZpY2VzL3dlYi8x","create_revision":10,"mod_revision":10,"version":1,"value":"MTAuMC4wLjE6ODA=","lease":7587870094823812358},{"key":"ZW1wdHk=","create_revision":11,"mod_revision":11,"version":1}],"count":3}
`
)

// Guarantee: an export, imported into another cluster, gives the same keys and values; a file that
// is not whole, or has what cannot be a key, changes nothing.
func TestProcExportImport(t *testing.T) {
	t.Parallel()
	from, to := newProcCluster(t, 1), newProcCluster(t, 1)
	from.start()
	to.start()
	values := map[string]string{"empty": "", "raw": "\x00\xff\xfe", "text": "<grüße>\n", "a//b/../c": "path", "ключ": "значение"}
	for n := range 300 {
		values[fmt.Sprintf("many/%04d", n)] = strings.Repeat("v", n)
	}
	for key, value := range values {
		r := from.do(http.MethodPut, 1, "/v1/kv?key="+procQuery(key), []byte(value))
		if r.err != nil || r.status != http.StatusCreated {
			t.Fatalf("PUT %q: %v", key, r)
		}
	}
	from.do(http.MethodPut, 1, "/v1/kv/session?ttl=1h", []byte("goes away"))
	file := filepath.Join(t.TempDir(), "all.ndjson")
	from.tool(t, "export", "--file", file).exits(0, procToolWithin)
	again := from.tool(t, "export")
	again.exits(0, procToolWithin)
	text, err := os.ReadFile(file)
	if err != nil || len(procExported(t, string(text))) != len(values)+1 || !slices.Equal(procExported(t, string(text)), procExported(t, again.stdout.String())) {
		t.Fatalf("%v, %d keys, %d on standard output", err, len(procExported(t, string(text))), len(procExported(t, again.stdout.String())))
	}
	if first, _, _ := strings.Cut(string(text), "\n"); first != fmt.Sprintf(`{"revision":%d}`, from.revision(1)) {
		t.Errorf("first line %s, revision %d", first, from.revision(1))
	}

	cut := procFile(t, string(text[:len(text)/2]))
	to.tool(t, "import", cut).exits(1, procToolWithin)
	bad := to.tool(t, "import", procFile(t, `[{"key":"","value":null},{"key":"fine","value":null},{"key":"a\u0000b","value":null}]`))
	bad.exits(1, procToolWithin)
	if said := bad.said.String(); !strings.Contains(said, "not empty") || !strings.Contains(said, "NUL") {
		t.Errorf("said %q", said)
	}
	to.tool(t, "import", file, "--dry-run").exits(0, procToolWithin)
	if n := to.revision(1); n != 0 {
		t.Fatalf("revision %d: something was written", n)
	}
	to.do(http.MethodPut, 1, "/v1/kv/text", []byte("mine"))
	keep := to.tool(t, "import", file, "--if-absent", "--output", "json")
	keep.exits(0, procToolWithin)
	var report struct{ Written, Present, Expiring int }
	if err := json.Unmarshal(keep.stdout.Bytes(), &report); err != nil || report.Written != len(values)-1 || report.Present != 1 || report.Expiring != 1 {
		t.Errorf("%v, %s", err, keep.stdout.String())
	}
	to.wantGet(1, "text", "mine")
	to.tool(t, "import", file).exits(0, procToolWithin)
	copied := to.tool(t, "export")
	copied.exits(0, procToolWithin)
	if got, want := procExported(t, copied.stdout.String()), procExported(t, from.tool(t, "export").wait().stdout.String()); !slices.Equal(got, slices.DeleteFunc(want, func(s string) bool { return strings.HasPrefix(s, "session=") })) {
		t.Errorf("%d keys, want %d", len(got), len(want)-1)
	}

	// What comes from others.
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	p := to.toolOf(t, exec.Command(bin, "import", "-", "--strip-prefix", "app/", "--add-prefix", "consul/"), procConsulExport)
	if p.exits(0, procToolWithin); p.stdout.String() != "wrote 4 keys\n" || !strings.Contains(p.said.String(), "1 keys lose their flags") {
		t.Errorf("%q, %q", p.stdout.String(), p.said.String())
	}
	for key, want := range map[string]string{"consul/": "", "consul/db/max conns": "100", "consul/logo": "\x89PNG\r\n\x1a\n", "consul/név": "ősz"} {
		if r := to.do(http.MethodGet, 1, "/v1/kv?key="+procQuery(key), nil); r.status != 200 || r.body != want {
			t.Errorf("%q: %v", key, r)
		}
	}
	p = to.tool(t, "import", procFile(t, procEtcdExport))
	if p.exits(0, procToolWithin); p.stdout.String() != "wrote 2 keys\n" || !strings.Contains(p.said.String(), "1 keys with a TTL or a lease are left out") {
		t.Errorf("%q, %q", p.stdout.String(), p.said.String())
	}
	for key, want := range map[string]string{"/registry/a": "k8s\x00\n\x0c", "empty": ""} {
		if r := to.do(http.MethodGet, 1, "/v1/kv?key="+procQuery(key), nil); r.status != 200 || r.body != want {
			t.Errorf("%q: %v", key, r)
		}
	}
}

func procQuery(key string) string {
	return strings.NewReplacer("/", "%2F", " ", "%20", "é", "%C3%A9").Replace(key)
}

// procExported are the keys and values of an export, in order, which must be whole.
func procExported(t *testing.T, export string) (keys []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(export, "\n"), "\n")
	if want := fmt.Sprintf(`{"end":true,"count":%d}`, len(lines)-2); lines[len(lines)-1] != want {
		t.Fatalf("last line %s, want %s", lines[len(lines)-1], want)
	}
	for _, line := range lines[1 : len(lines)-1] {
		var item struct {
			Key    string
			Value  *string
			Base64 *string `json:"value_base64"`
		}
		if err := json.Unmarshal([]byte(line), &item); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch {
		case item.Value != nil:
			keys = append(keys, item.Key+"="+*item.Value)
		case item.Base64 != nil:
			keys = append(keys, item.Key+"~"+*item.Base64)
		}
	}
	return keys
}

// wait waits for the end of a command that must succeed.
func (p *procTool) wait() *procTool {
	p.t.Helper()
	p.exits(0, procToolWithin)
	return p
}

// Guarantee: backups are made in turn, whole, and the newest are kept; a backup of a cluster that does not
// answer leaves the file as it was.
func TestProcBackupEvery(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	c.put(1, "k", "v")
	dir := filepath.Join(t.TempDir(), "backups")
	p := c.tool(t, "backup", "--every", "1s", "--keep", "2", dir, "--output", "json")
	var seen []string
	procEventually(t, procToolWithin, "four backups were made", func() error {
		files, err := filepath.Glob(filepath.Join(dir, "raftkv-*.state"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !slices.Contains(seen, f) {
				seen = append(seen, f)
			}
		}
		if len(seen) < 4 {
			return fmt.Errorf("%q", seen)
		}
		return nil
	})
	p.signal(syscall.SIGTERM)
	p.exits(0, procToolWithin)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > 3 || len(files) < 2 { // the third, if it was ended between
		t.Errorf("%v, %v", files, err)
	}
	newest := filepath.Join(dir, files[len(files)-1].Name())
	if out := procCommand(t, 0, "inspect", newest); !strings.Contains(out, "\n  keys           1\n") {
		t.Errorf("%s", out)
	}
	if n := strings.Count(p.stdout.String(), `"endpoint"`); n < 4 {
		t.Errorf("%d backups were told of: %s", n, p.stdout.String())
	}

	before, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	c.kill(1)
	c.tool(t, "backup", newest, "--timeout", "1s").exits(1, procToolWithin)
	if after, err := os.ReadFile(newest); err != nil || string(after) != string(before) {
		t.Errorf("%v: the file has changed", err)
	}
}

// Guarantee: a command runs for each change, in order, none left out while nodes are killed, with the
// change on its standard input and the key in its environment, and no shell reads either.
func TestProcWatchExec(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	log := newProcLog(t)
	c.put(1, "job/before", "0")
	script := fmt.Sprintf(`read -r line; echo "$RAFTKV_TYPE $RAFTKV_KEY $line" >>%q`, log.path)
	p := c.tool(t, "watch", "--prefix", "job/", "--state", "--limit", "52", "--", "sh", "-c", script)
	log.waitFor("put job/before ")
	const evil = "job/$(touch hacked); touch hacked"
	want := []string{"put job/before", "put " + evil, "delete " + evil}
	if r := c.do(http.MethodPut, 1, "/v1/kv?key="+procQuery(strings.ReplaceAll(evil, ";", "%3B")), []byte("\xff")); r.status != http.StatusCreated {
		t.Fatal(r)
	}
	if r := c.do(http.MethodDelete, 1, "/v1/kv?key="+procQuery(strings.ReplaceAll(evil, ";", "%3B")), nil); r.status != http.StatusNoContent {
		t.Fatal(r)
	}
	for n := range 49 {
		if n == 20 {
			c.kill(c.leader())
		}
		key := fmt.Sprintf("job/%02d", n)
		procEventually(t, procToolWithin, "PUT "+key, func() error {
			for _, i := range c.ids() {
				if c.nodes[i].running() && c.do(http.MethodPut, i, "/"+key, []byte("v"), "Idempotency-Key", key).status == http.StatusNoContent {
					return nil
				}
			}
			return fmt.Errorf("none took it")
		})
		want = append(want, "put "+key)
	}
	p.exits(0, procToolWithin)
	var got []string
	for _, line := range log.lines() {
		head, text, _ := strings.Cut(line, " {")
		var e struct {
			Revision  uint64
			Type, Key string
		}
		if err := json.Unmarshal([]byte("{"+text), &e); err != nil || head != e.Type+" "+e.Key || e.Revision == 0 {
			t.Errorf("line %q: %v", line, err)
		}
		got = append(got, head)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want\n%q", got, want)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "hacked")); err == nil {
		t.Error("a shell has read a key")
	}

	// A command that fails ends the watch, one that is asked to end leaves nothing behind.
	live := c.ids()[slices.IndexFunc(c.ids(), func(i int) bool { return c.nodes[i].running() })]
	fails := c.tool(t, "watch", "job/00", "--state", "--", "sh", "-c", "exit 9")
	fails.exits(9, procToolWithin)
	slow := c.tool(t, "watch", "job/00", "--state", "--exec", "sh", "--", "-c", fmt.Sprintf("trap 'echo ended >>%[1]q; exit' TERM; echo began >>%[1]q; while :; do sleep 0.01; done", log.path))
	log.waitFor("began")
	slow.signal(syscall.SIGTERM)
	slow.exits(0, procToolWithin)
	log.waitFor("ended")
	one := c.tool(t, "watch", "job/new", "--limit", "1", "--output", "json", "--after", fmt.Sprint(c.revision(live)))
	c.put(live, "job/new", "x")
	one.exits(0, procToolWithin)
	if got := one.stdout.String(); !strings.Contains(got, `"type":"put","key":"job/new","value":"x"`) || strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
}

// revision is how many times the store of a node was changed.
func (c *procCluster) revision(i int) (n uint64) {
	c.t.Helper()
	var s struct{ Revision uint64 }
	if err := json.Unmarshal([]byte(c.do(http.MethodGet, i, "/v1/status", nil).body), &s); err != nil {
		c.t.Fatal(err)
	}
	return s.Revision
}
