//go:build unix

package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// watchProgram is a program whose lines are read as they come.
type watchProgram struct {
	t     *testing.T
	name  string
	lines chan string // closed at the end of its output

	mu   sync.Mutex
	last string
	said bytes.Buffer
}

// Write takes what the program says on its standard error.
func (p *watchProgram) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *watchProgram) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

func (p *watchProgram) newest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// startWatchProgram starts a program. With newest, only its newest line is kept.
func startWatchProgram(t *testing.T, newest bool, name string, args ...string) *watchProgram {
	t.Helper()
	p := &watchProgram{t: t, name: name, lines: make(chan string, 1000)}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "NO_PROXY=*", "no_proxy=*")
	cmd.Stderr, cmd.SysProcAttr = p, procAttr(syscall.SIGKILL)
	out, err := cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, procStartCmd(cmd))
	var ended sync.WaitGroup
	ended.Go(func() {
		defer close(p.lines)
		for in := bufio.NewReader(out); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return // it was ended, in the middle of a line perhaps
			}
			if p.mu.Lock(); newest {
				p.last = line
			}
			p.mu.Unlock()
			if !newest {
				p.lines <- strings.TrimRight(line, "\n")
			}
		}
	})
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with what it has started
		for range p.lines {
		}
		ended.Wait()
		_ = cmd.Wait() // by the signal
		if said := p.errors(); said != "" && t.Failed() {
			t.Logf("%s says: %s", name, procTail(said))
		}
	})
	return p
}

// want waits for a line that begins as it should, leaves those before it out, and returns it.
func (p *watchProgram) want(begin string) string {
	p.t.Helper()
	var before []string
	for timeout := time.After(watchAtOnce); ; {
		select {
		case line, ok := <-p.lines:
			if ok && strings.HasPrefix(line, begin) {
				return line
			}
			before = append(before, line)
			if ok {
				continue
			}
			p.t.Fatalf("%s has ended, before a line %s: %q, %s", p.name, begin, before, p.errors())
		case <-timeout:
			p.t.Fatalf("%s has not shown a line %s within %v, but %q, %s", p.name, begin, watchAtOnce, before, p.errors())
		}
	}
}

// Guarantee: whatever a client reads a watch with, and what stands between, it sees a change at once, and not when others
// push it out.
func TestWatchAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	testkit.NeedTools(t, "curl", "jq", "python3", "bash")
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "now/before", "x")
	const query = "/v1/watch?prefix=now/&state=true"
	sees := func(t *testing.T, name, url string) {
		t.Helper()
		sse := startWatchProgram(t, false, "curl -N", "curl", "-sSN", url+query)
		zipped := startWatchProgram(t, false, "curl -N --compressed", "curl", "-sSN", "--compressed", url+query)
		inJSON := startWatchProgram(t, false, "curl | jq", "bash", "-c",
			`curl -sSN -H 'Accept: application/x-ndjson' "$0" | jq --unbuffered -c '[.event, .id, .data.events[0].value]'`, url+query)
		module := startWatchProgram(t, false, "raftkv_watch.py", "python3", "-I", "-B", filepath.Join("docs", "examples", "raftkv_watch.py"), url, "now/")
		for _, p := range []*watchProgram{sse, zipped} {
			p.want("retry: ")
			p.want("event: reset")
			p.want("event: state")
			p.want("data: {\"revision\":")
			p.want("event: synced")
		}
		inJSON.want(`["reset"`)
		inJSON.want(`["synced",`)
		module.want("reset")
		module.want("synced")
		for n := range 3 {
			value := fmt.Sprint(name, " ", n)
			revision := strings.Trim(c.put(n+1, "now/"+name, value), `"`)
			for _, p := range []*watchProgram{sse, zipped} {
				p.want("event: change")
				p.want("id: " + revision)
				if data := p.want("data: "); !strings.Contains(data, value) {
					t.Errorf("%s has %s, want %s", p.name, data, value)
				}
				p.want("")
			}
			inJSON.want(fmt.Sprintf(`["change",%s,%q]`, revision, value))
			if line := module.want("change " + revision); !strings.Contains(line, value) {
				t.Errorf("%s has %s, want %s", module.name, line, value)
			}
		}
	}
	t.Run("direct", func(t *testing.T) { sees(t, "direct", c.url(1)) })
	t.Run("nginx", func(t *testing.T) {
		testkit.NeedTools(t, "nginx")
		sees(t, "nginx", newProcProxy(t, c, "nginx", nginxAround, func(file string) []string { return []string{"nginx", "-c", file, "-e", "stderr"} }).url)
	})
	// As people set it up who know nothing of streams: it keeps what it may, and compresses everything.
	t.Run("nginx-that-keeps", func(t *testing.T) {
		port := procFreePort(t)
		startNginx(t, fmt.Sprintf(`server {
	listen 127.0.0.1:%d;
	proxy_cache kept;
	proxy_cache_valid any 1m;
	gzip on;
	gzip_proxied any;
	gzip_types *;
	location / { proxy_pass %s; }
}`, port, c.url(2)), port)
		sees(t, "nginx that keeps", procURL(port))
	})
	t.Run("haproxy", func(t *testing.T) {
		testkit.NeedTools(t, "haproxy")
		sees(t, "haproxy", newProcProxy(t, c, "haproxy", func(_, conf string) string { return conf }, func(file string) []string { return []string{"haproxy", "-db", "-f", file} }).url)
	})
}

// Guarantee: a program that keeps a copy by the lines of docs/watch.md, or by the module in docs/examples, ends with what
// the store holds, whoever of the nodes dies, stops and starts again meanwhile, and however long it is cut off.
func TestWatchPython(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	testkit.NeedTools(t, "python3")
	t.Parallel() // it mostly waits
	s := newWatchScene(t)
	lines := filepath.Join(t.TempDir(), "lines.py")
	testkit.Must(t, os.WriteFile(lines, []byte(docBlock(t, "docs/watch.md", "python")+`
import sys
watch(sys.argv[1:], "w/", lambda copy: print(json.dumps(list(copy.values())), flush=True))
`), 0o600))
	programs := []*watchProgram{
		startWatchProgram(t, true, "the lines of docs/watch.md", append([]string{"python3", "-I", "-B", lines}, s.nodes()...)...),
		startWatchProgram(t, true, "raftkv_watch.py",
			append([]string{"python3", "-I", "-B", "test/process/testdata/use_watch.py", filepath.Join("docs", "examples")}, s.nodes()...)...),
	}
	start := time.Now()
	s.run(func(when string) {
		t.Helper()
		for _, p := range programs {
			procEventually(t, watchWithin, fmt.Sprintf("%s: %s has what the store holds", when, p.name), func() error {
				want, line := s.c.held(s.other(), "w/"), p.newest()
				var now []watchItem
				if err := json.Unmarshal([]byte(line), &now); err != nil {
					return errors.Join(err, errors.New(p.errors()))
				}
				return watchDiffers(watchCopy(now), want)
			})
		}
		t.Logf("%s after %v", when, time.Since(start))
	})
	if said := programs[1].errors(); said != "True\n" {
		t.Errorf("a parameter that there is not: %q", said)
	}
}

// Guarantee: what docs/watch.md says is so: its commands work as they stand, and print what it says, whether the node that is
// asked leads or follows.
func TestWatchDoc(t *testing.T) { wantDoc(t, "docs/watch.md", nil) }
