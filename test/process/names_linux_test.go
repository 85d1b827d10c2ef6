package process

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What of a directory a power failure leaves, by the letter of POSIX: a name is there once its directory has been
// synced since. nameModel follows the system calls of a process and knows it.

// nameModel is a tree of directories, each with the names that it has and those that it would have after a power
// failure.
type nameModel struct {
	root *nameNode // of everything; what was there before the process counts as durable
	next int
}

type nameNode struct {
	id           int
	names, saved map[string]*nameNode // of a directory
}

func (m *nameModel) node() *nameNode {
	m.next++
	return &nameNode{id: m.next}
}

// at returns the directory that a path lies in, with those above it, which are made as known if they are not yet.
func (m *nameModel) at(path string) (dir *nameNode, base string) {
	dir = m.root
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range parts[:len(parts)-1] {
		next := dir.names[name]
		if next == nil {
			next = m.node()
			dir.put(name, next)
			if dir.saved == nil {
				dir.saved = map[string]*nameNode{}
			}
			dir.saved[name] = next
		}
		dir = next
	}
	return dir, parts[len(parts)-1]
}

func (n *nameNode) put(name string, child *nameNode) {
	if n.names == nil {
		n.names = map[string]*nameNode{}
	}
	n.names[name] = child
}

func (n *nameNode) sync() { n.saved = maps.Clone(n.names) }

// nameCall takes a call apart: what it is called, its paths, with those of directory descriptors, and its result.
var (
	nameCall = regexp.MustCompile(`^(\w+)\((.*)\) += (-?\d+)`)
	namePath = regexp.MustCompile(`(?:(\d+|AT_FDCWD)<([^>]*)>)|"([^"]*)"`)
)

// run follows a trace. It returns the removals of segments that followed another without a sync between them.
func (m *nameModel) run(text string) (holes []string) {
	unfinished := map[string]string{} // by thread
	var removed string
	for line := range strings.Lines(text) {
		thread, call, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		call = strings.TrimLeft(call, " ")
		if head, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			unfinished[thread] = head
			continue
		}
		if _, tail, ok := strings.Cut(call, " resumed>"); ok && strings.HasPrefix(call, "<... ") {
			call = unfinished[thread] + tail
		}
		c := nameCall.FindStringSubmatch(call)
		if c == nil || strings.HasPrefix(c[3], "-") {
			continue // it failed
		}
		// A path behind a directory's is relative to it.
		var paths []string
		dir := ""
		for _, p := range namePath.FindAllStringSubmatch(c[2], -1) {
			switch {
			case p[1] != "":
				dir = p[2]
				if strings.HasSuffix(c[1], "sync") {
					paths = append(paths, dir)
				}
			case strings.HasPrefix(p[3], "/"):
				paths = append(paths, p[3])
			default:
				paths = append(paths, filepath.Join(dir, p[3]))
			}
		}
		if hole := m.do(c[1], c[2], paths, &removed); hole != "" {
			holes = append(holes, hole)
		}
	}
	return holes
}

// do follows one call that succeeded. removed is the segment whose removal is not durable yet.
func (m *nameModel) do(name, args string, paths []string, removed *string) (hole string) {
	if len(paths) == 0 {
		return ""
	}
	dir, base := m.at(paths[0])
	switch name {
	case "mkdir", "mkdirat":
		dir.put(base, m.node())
	case "open", "openat", "creat":
		if strings.Contains(args, "O_CREAT") && dir.names[base] == nil {
			dir.put(base, m.node())
		}
	case "rename", "renameat", "renameat2":
		to, toBase := m.at(paths[1])
		if n := dir.names[base]; n != nil {
			delete(dir.names, base)
			to.put(toBase, n)
		}
	case "unlink", "unlinkat", "rmdir":
		delete(dir.names, base)
		if strings.HasSuffix(base, ".wal") {
			if *removed != "" {
				hole = fmt.Sprintf("%s was removed before the removal of %s was durable", base, *removed)
			}
			*removed = base
		}
	case "fsync", "fdatasync":
		if n := dir.names[base]; n != nil && n.names != nil {
			n.sync()
			if base == "wal" {
				*removed = ""
			}
		}
	}
	return hole
}

// survivors returns where what is durable lies: the path after a power failure, and the one now. Removals count,
// synced or not: who relies on a file that it has removed has another fault.
func (m *nameModel) survivors(below string) map[string]string {
	now := map[*nameNode]string{}
	var walk func(n *nameNode, path string, saved bool, visit func(*nameNode, string))
	walk = func(n *nameNode, path string, saved bool, visit func(*nameNode, string)) {
		visit(n, path)
		names := n.names
		if saved {
			names = n.saved
		}
		for name, child := range names {
			walk(child, filepath.Join(path, name), saved, visit)
		}
	}
	walk(m.root, "/", false, func(n *nameNode, path string) { now[n] = path })
	left := map[string]string{}
	walk(m.root, "/", true, func(n *nameNode, path string) {
		if from := now[n]; from != "" && strings.HasPrefix(path, below+"/") {
			left[path] = from
		}
	})
	return left
}

// Guarantee: all names that a start relies upon are durable when the first write is acknowledged, and when a snapshot
// has taken the place of the log: the data directory in its parent, and those above it that were made with it, the
// segments of the log, its directory, the mark and the state files. Without this a power failure makes an empty
// cluster, or one that does not start, of a file system that takes POSIX at its word.
func TestProcNamesAreSynced(t *testing.T) {
	t.Parallel()
	strace := findStrace(t)
	for name, live := range map[string]func(c *procCluster, want map[string]string){
		"first write": func(c *procCluster, want map[string]string) { c.putAll(want, "a") },
		"snapshots": func(c *procCluster, want map[string]string) {
			for i := range 60 {
				c.putAll(want, fmt.Sprint("k", i))
			}
			procEventually(t, procReadyWithin, "a snapshot is taken", func() error {
				if c.metric(1, "raftkv_snapshot_index") < 20 {
					return errors.New("not yet")
				}
				return nil
			})
		},
		"segments": func(c *procCluster, want map[string]string) {
			big := procBlob(1 << 20)
			for i := range 140 { // MB: two segments more, and snapshots that release some
				testkit.Must(t, c.do(http.MethodPut, 1, fmt.Sprint("/big", i%20), []byte(big)).err)
				want[fmt.Sprint("big", i%20)] = big
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newProcCluster(t, 1, "--snapshot-count", "20")
			n := c.nodes[1]
			bin, err := procBinary()
			testkit.Must(t, err)
			n.dataDir = filepath.Join(c.dir, "made", "with", "it")
			n.args = c.args(n, c.list)
			trace := filepath.Join(c.dir, "trace")
			plain := n.args
			n.bin, n.args = strace, slices.Concat([]string{"-D", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-o", trace, "-e", "signal=kill",
				"-e", "trace=mkdir,mkdirat,open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,fsync,fdatasync", "--", bin}, n.args)
			c.start()
			want := map[string]string{}
			live(c, want)
			c.kill(1)
			ended := regexp.MustCompile(fmt.Sprintf(`(?m)^%d .*\+\+\+ killed by SIGKILL \+\+\+\n`, n.cmd.Process.Pid))
			var text []byte
			procEventually(t, procReadyWithin, "the trace is complete", func() error {
				if text, err = os.ReadFile(trace); err == nil && !ended.Match(text) {
					err = errors.New("the end of the process is missing")
				}
				return err
			})

			m := &nameModel{}
			m.root = m.node()
			for _, hole := range m.run(string(text)) {
				t.Error(hole)
			}
			left := m.survivors(c.dir)
			// What is left, under another name: the old directory stays for comparison.
			testkit.Must(t, os.Rename(filepath.Join(c.dir, "made"), filepath.Join(c.dir, "was")))
			for _, path := range slices.Sorted(maps.Keys(left)) { // directories first
				from := strings.Replace(left[path], filepath.Join(c.dir, "made"), filepath.Join(c.dir, "was"), 1)
				copyNode(t, path, from)
			}
			n.bin, n.args = "", plain
			c.start()
			for key, value := range want {
				if r := c.do(http.MethodGet, 1, "/"+key, nil); r.status != http.StatusOK || r.body != value {
					t.Errorf("after a power failure GET /%s: %v, want what was acknowledged", key, r)
				}
			}
		})
	}
}

// putAll puts a value that nobody has put before.
func (c *procCluster) putAll(want map[string]string, key string) {
	c.t.Helper()
	value := "of " + key + " " + strconv.Itoa(len(want))
	if r := c.do(http.MethodPut, 1, "/"+key, []byte(value)); r.status != http.StatusNoContent {
		c.t.Fatalf("PUT /%s: %v", key, r)
	}
	want[key] = value
}

// copyNode copies a file, or makes a directory as another is.
func copyNode(t *testing.T, to, from string) {
	t.Helper()
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) || filepath.Base(from) == "trace" || strings.HasSuffix(from, ".log") {
		return
	}
	testkit.Must(t, err)
	if info.IsDir() {
		testkit.Must(t, os.MkdirAll(to, 0o700))
		return
	}
	testkit.Must(t, testkit.CopySparse(to, from))
}

// The model is worth nothing unless it drops what was not synced.
func TestNameModel(t *testing.T) {
	const (
		mk    = `1 mkdirat(AT_FDCWD</>, "/t/d", 0700) = 0` + "\n"
		make  = `1 openat(AT_FDCWD</>, "/t/d/f", O_RDWR|O_CREAT, 0600) = 3</t/d/f>` + "\n"
		syncD = `1 fsync(4</t/d>) = 0` + "\n"
		syncT = `2 fsync(4</t> <unfinished ...>` + "\n" + `1 mkdirat(AT_FDCWD</>, "/x", 0700) = 0` + "\n" + `2 <... fsync resumed>) = 0` + "\n"
		move  = `1 renameat(AT_FDCWD</>, "/t/d/f", AT_FDCWD</>, "/t/d/g") = 0` + "\n"
	)
	for name, c := range map[string]struct {
		trace string
		want  map[string]string
	}{
		"all synced":              {mk + make + syncD + syncT, map[string]string{"/t/d": "/t/d", "/t/d/f": "/t/d/f"}},
		"the parent is not":       {mk + make + syncD, map[string]string{}},
		"the directory is not":    {mk + syncT + make, map[string]string{"/t/d": "/t/d"}},
		"a sync that failed":      {mk + make + syncD + strings.Replace(syncT, ") = 0\n", ") = -1 EIO (x)\n", 2), map[string]string{}},
		"renamed, and not synced": {mk + make + syncD + syncT + move, map[string]string{"/t/d": "/t/d", "/t/d/f": "/t/d/g"}},
		"renamed and synced":      {mk + make + syncD + syncT + move + syncD, map[string]string{"/t/d": "/t/d", "/t/d/g": "/t/d/g"}},
		"with its directory": {mk + make + syncD + syncT + `1 rename("/t/d", "/t/e") = 0` + "\n" + syncT,
			map[string]string{"/t/e": "/t/e", "/t/e/f": "/t/e/f"}},
	} {
		m := &nameModel{}
		m.root = m.node()
		m.run(c.trace)
		if got := m.survivors("/t"); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v is left, want %v", name, got, c.want)
		}
	}
	rm := func(seq int) string {
		return fmt.Sprintf(`1 unlinkat(AT_FDCWD</>, "/t/d/wal/%d.wal", 0) = 0`+"\n", seq)
	}
	m := &nameModel{}
	m.root = m.node()
	if holes := m.run(rm(1) + rm(2)); len(holes) != 1 {
		t.Errorf("two removals without a sync between them: %v", holes)
	}
}
