package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// layers are the packages of internal/ from the ground up. A package imports only
// packages of layers below its own.
var layers = [][]string{
	{"address", "changelog", "child", "durable", "front/nowait", "history", "meter", "openapi", "problem", "record", "refusal", "version", "wait", "window"},
	{"certs", "entry", "issue", "lease", "liveness", "logging", "membership", "memory", "once", "openapi/openapitest", "statefile", "storage/disposal", "storage/snapshots", "supervisor", "testkit", "txn", "verdict", "walfile", "watermark", "web"},
	{"config", "listening", "peerclient", "rights", "state", "storage/dirwatch", "storage/walroom"},
	{"audit", "checker", "command", "contact", "discovery", "doors", "exposure", "list", "probeport", "rounds", "state/statetest", "storage", "tlsport", "watch/watchtest"},
	{"clock", "diskhang", "following", "holding", "limits", "observe", "offline", "peertls", "reconfig", "remote", "room", "sim", "storage/storagetest", "suspect", "transfer", "transport", "watch"},
	{"api", "cli", "peerport"},
	{"access", "admin", "boot", "front/plain", "leaseapi", "txnapi", "watchapi"},
	{"front"},
}

// forTests are packages that only tests import. DESIGN.md's tree leaves them out.
var forTests = []string{"history", "openapi/openapitest", "sim", "testkit", "state/statetest", "storage/storagetest", "watch/watchtest"}

// exports are how many functions, types, variables and constants, without methods
// and fields, a package may show to others. A package that needs more is to be
// looked at: its wall may stand in the wrong place.
var exports = map[string]int{
	"access":              2,
	"address":             22,
	"admin":               16,
	"api":                 35,
	"audit":               6,
	"boot":                11,
	"certs":               8,
	"changelog":           9,
	"checker":             7,
	"child":               10,
	"cli":                 4,
	"clock":               5,
	"command":             18,
	"config":              33,
	"contact":             5,
	"discovery":           4,
	"diskhang":            3,
	"doors":               19,
	"durable":             21,
	"entry":               8,
	"exposure":            2,
	"following":           1,
	"front":               6,
	"front/nowait":        3,
	"front/plain":         17,
	"history":             17,
	"holding":             1,
	"issue":               8,
	"lease":               10,
	"leaseapi":            1,
	"limits":              15,
	"list":                10,
	"listening":           7,
	"liveness":            8,
	"logging":             9,
	"membership":          22,
	"memory":              9,
	"meter":               3,
	"observe":             3,
	"offline":             2,
	"once":                11,
	"openapi":             2,
	"openapi/openapitest": 9,
	"peerclient":          19,
	"peerport":            9,
	"peertls":             3,
	"probeport":           3,
	"problem":             69,
	"reconfig":            17,
	"record":              7,
	"refusal":             15,
	"remote":              1,
	"rights":              28,
	"room":                13,
	"rounds":              11,
	"sim":                 15,
	"state":               76,
	"state/statetest":     16,
	"statefile":           6,
	"storage":             33,
	"storage/dirwatch":    5,
	"storage/disposal":    4,
	"storage/snapshots":   9,
	"storage/storagetest": 12,
	"storage/walroom":     15,
	"supervisor":          5,
	"suspect":             6,
	"testkit":             33,
	"tlsport":             11,
	"transfer":            1,
	"transport":           20,
	"txn":                 49,
	"txnapi":              1,
	"verdict":             5,
	"version":             1,
	"wait":                9,
	"walfile":             25,
	"watch":               15,
	"watch/watchtest":     8,
	"watchapi":            5,
	"watermark":           11,
	"web":                 51,
	"window":              5,
}

// onlyFor names who may import what else may not be seen: whoever comes next to
// one of these packages has to go through its room.
var onlyFor = map[string][]string{
	"go.etcd.io/etcd/server/v3/storage/wal":                   {"storage", "storage/walroom", "walfile", "storage/storagetest"},
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp":       {"transport"},
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap":           {"transport", "storage", "sim"},
	"github.com/prometheus/client_golang/prometheus/promhttp": {"admin"},
	"github.com/DeRuina/timberjack":                           {"audit"},
	// What reads OpenAPI and JSON Schema is not for the program.
	"github.com/getkin/kin-openapi/openapi3":   {"openapi/openapitest"},
	"github.com/santhosh-tekuri/jsonschema/v6": {"openapi/openapitest"},
}

// pure are the packages of the replicated state machine. What a state becomes may
// depend on the log and on nothing else, so they see no clock, no lock and no file
// but in the file named.
var (
	pure       = map[string]string{"state": "file.go", "entry": "", "lease": "", "list": "", "membership": "", "once": "", "record": "", "txn": "", "verdict": "", "window": ""}
	notForPure = []string{"time", "sync", "sync/atomic", "os", "math/rand", "math/rand/v2", "context", "net", "net/http"}
)

// clientPackage is the one package that others may import. It has no layer: it stands on
// the standard library alone, so that a program which uses it gets nothing else.
const clientPackage = "client"

const (
	rootFiles     = 15
	rootLines     = 3000
	packageLines  = 2100
	clientLines   = 4700 // it is one package, because its users see it as one
	fileLines     = 610
	functionLines = 70
	leastLines    = 100 // a package under it needs a reason, in small
)

// small are packages that are less than leastLines long.
var small = map[string]string{
	"front/nowait": "the only code that goes around package net to the system",
	"listening":    "the ports of root and the one for metrics share it",
	"meter":        "three functions that every part with a metric calls",
	"history":      "the simulator and the tests of the program share it",
	"openapi":      "it holds a document",
	"version":      "what a build is called is nobody else's business",
}

// source is a file of the program, without tests.
type source struct {
	pkg, name string // pkg is the path below internal/, or "." for the root
	file      *ast.File
	lines     int
	functions map[string]int // lines by name
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk := func(dir string) error {
		return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && name == dir {
				return err
			}
			if d.IsDir() && dir == "." {
				return filepath.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return nil
			}
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, name, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			s := source{pkg: strings.TrimPrefix(path.Dir(filepath.ToSlash(name)), "internal/"), name: path.Base(filepath.ToSlash(name)), file: f, functions: map[string]int{}}
			line := func(p token.Pos) int { return set.Position(p).Line }
			s.lines = line(f.FileEnd)
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					s.functions[fn.Name.Name] = line(fn.End()) - line(fn.Pos()) + 1
				}
			}
			all = append(all, s)
			return nil
		})
	}
	for _, dir := range []string{".", "internal", clientPackage} {
		if err := walk(dir); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func imports(f *ast.File) (paths []string) {
	for _, im := range f.Imports {
		paths = append(paths, strings.Trim(im.Path.Value, `"`))
	}
	return paths
}

// wrongImports returns what is wrong with what a file of a package imports.
func wrongImports(layer map[string]int, pkg, name string, paths []string) (wrong []string) {
	for _, p := range paths {
		to, own := strings.CutPrefix(p, "raftkv/internal/")
		switch _, known := layer[to]; {
		case own && !known:
			wrong = append(wrong, "imports "+to+", which has no layer")
		case own && pkg != "." && layer[to] >= layer[pkg]:
			wrong = append(wrong, "imports "+to+", which is not below it")
		case own && slices.Contains(forTests, to) && !slices.Contains(forTests, pkg):
			wrong = append(wrong, "imports "+to+", which is only for tests")
		}
		if who, kept := onlyFor[p]; kept && !slices.Contains(who, pkg) {
			wrong = append(wrong, "imports "+p+", which is only for "+strings.Join(who, ", "))
		}
		if except, ok := pure[pkg]; ok && name != except && slices.Contains(notForPure, p) {
			wrong = append(wrong, "imports "+p+", and what the log means must not depend on that")
		}
	}
	return wrong
}

func layerOf() map[string]int {
	layer := make(map[string]int)
	for i, l := range layers {
		for _, pkg := range l {
			layer[pkg] = i
		}
	}
	return layer
}

// Guarantee: the walls between the packages hold. Whoever takes a short cut finds
// it here.
func TestStructureImports(t *testing.T) {
	layer := layerOf()
	seen := make(map[string]bool)
	for _, s := range sources(t) {
		if s.pkg == clientPackage {
			continue // see TestStructureClient
		}
		seen[s.pkg] = true
		if _, ok := layer[s.pkg]; !ok && s.pkg != "." {
			t.Errorf("package %s has no layer", s.pkg)
			continue
		}
		for _, w := range wrongImports(layer, s.pkg, s.name, imports(s.file)) {
			t.Errorf("%s/%s %s", s.pkg, s.name, w)
		}
	}
	for pkg := range layer {
		if !seen[pkg] {
			t.Errorf("there is no package %s", pkg)
		}
	}
}

// Guarantee: a program that uses the client gets the standard library and nothing else.
func TestStructureClient(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./"+clientPackage).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{"raftkv/" + clientPackage}) {
		t.Errorf("the client stands on %v", got)
	}
}

// The test of the imports finds what it is there for.
func TestStructureFindsShortCuts(t *testing.T) {
	layer := layerOf()
	for _, tt := range []struct{ pkg, name, path, want string }{
		{"state", "state.go", "raftkv/internal/storage", "not below"},
		{"storage", "storage.go", "raftkv/internal/storage", "not below"},
		{"rounds", "read.go", "raftkv/internal/nosuch", "no layer"},
		{"state", "state.go", "time", "must not depend"},
		{"membership", "membership.go", "os", "must not depend"},
		{"api", "status.go", "go.etcd.io/etcd/server/v3/storage/wal", "only for"},
		{".", "raft.go", "go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp", "only for"},
		{".", "raft.go", "raftkv/internal/testkit", "only for tests"},
		{"storage", "storage.go", "raftkv/internal/testkit", "only for tests"},
		{".", "server.go", "raftkv/internal/openapi/openapitest", "only for tests"},
		{".", "server.go", "github.com/getkin/kin-openapi/openapi3", "only for"},
		{"admin", "help.go", "github.com/santhosh-tekuri/jsonschema/v6", "only for"},
	} {
		if got := wrongImports(layer, tt.pkg, tt.name, []string{tt.path}); len(got) != 1 || !strings.Contains(got[0], tt.want) {
			t.Errorf("%s importing %s: %q", tt.pkg, tt.path, got)
		}
	}
	for _, tt := range []struct{ pkg, name, path string }{
		{"storage", "storage.go", "raftkv/internal/state"}, {"state", "file.go", "os"}, {".", "server.go", "raftkv/internal/api"},
	} {
		if got := wrongImports(layer, tt.pkg, tt.name, []string{tt.path}); len(got) > 0 {
			t.Errorf("%s importing %s: %q", tt.pkg, tt.path, got)
		}
	}
}

// Guarantee: the tree in DESIGN.md has the layers that there are.
func TestStructureIsDescribed(t *testing.T) {
	text, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	described, at := make(map[string]int), -1
	for _, m := range regexp.MustCompile(`(?m)^([0-9]| ) ([a-z/]+) +\S.*\?$`).FindAllStringSubmatch(string(text), -1) {
		if m[1] != " " {
			at = int(m[1][0] - '0')
		}
		described[m[2]] = at
	}
	want := layerOf()
	for _, pkg := range forTests {
		delete(want, pkg)
	}
	want["root"] = len(layers)
	if !maps.Equal(described, want) {
		t.Errorf("DESIGN.md has the layers\n%v\nthere are\n%v", described, want)
	}
}

// Guarantee: every file, function and package can be read in one go, the root is
// the story and no more, and each package says what it is for.
func TestStructureSizes(t *testing.T) {
	files, lines, documented, shown := map[string]int{}, map[string]int{}, map[string]bool{}, map[string]map[string]bool{}
	for _, s := range sources(t) {
		files[s.pkg]++
		lines[s.pkg] += s.lines
		documented[s.pkg] = documented[s.pkg] || s.file.Doc != nil && strings.HasPrefix(s.file.Doc.Text(), "Package ")
		if s.lines > fileLines {
			t.Errorf("%s/%s has %d lines, more than %d", s.pkg, s.name, s.lines, fileLines)
		}
		for name, n := range s.functions {
			if n > functionLines {
				t.Errorf("%s/%s: %s has %d lines, more than %d", s.pkg, s.name, name, n, functionLines)
			}
		}
		if shown[s.pkg] == nil {
			shown[s.pkg] = make(map[string]bool)
		}
		maps.Copy(shown[s.pkg], exported(s.file))
	}
	if files["."] > rootFiles || lines["."] > rootLines {
		t.Errorf("the root has %d files and %d lines, more than %d and %d", files["."], lines["."], rootFiles, rootLines)
	}
	for _, pkg := range slices.Sorted(maps.Keys(lines)) {
		if pkg == "." {
			continue
		}
		most := packageLines
		if pkg == clientPackage {
			most = clientLines
		}
		if lines[pkg] > most {
			t.Errorf("package %s has %d lines, more than %d", pkg, lines[pkg], most)
		}
		if lines[pkg] < leastLines && small[pkg] == "" {
			t.Errorf("package %s has only %d lines, without a reason", pkg, lines[pkg])
		}
		if !documented[pkg] {
			t.Errorf("package %s does not say what it is for", pkg)
		}
		if n := len(shown[pkg]); n != exports[pkg] && pkg != clientPackage { // its names are what it is for
			t.Errorf("package %s shows %d names, exports says %d: %v", pkg, n, exports[pkg], slices.Sorted(maps.Keys(shown[pkg])))
		}
	}
}

// exported returns the names at the top level of a file that others can use.
func exported(f *ast.File) map[string]bool {
	names := make(map[string]bool)
	add := func(id *ast.Ident) {
		if id.IsExported() {
			names[id.Name] = true
		}
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				add(d.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					add(spec.Name)
				case *ast.ValueSpec:
					for _, id := range spec.Names {
						add(id)
					}
				}
			}
		}
	}
	return names
}
