package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	apiDocRow     = regexp.MustCompile("(?m)^\\| `([A-Z, ]+) (/[^` ]*)`[^|]* \\| [0-9, ]+ \\| [^|]+ \\|(.*)\\|$")
	apiDocCodeRow = regexp.MustCompile("(?m)^\\| \\[`([a-z_]+)`\\]\\(errors\\.md#([a-z_]+)\\) \\| ([0-9, ]+) \\|(.*)\\|$")
	apiDocTest    = regexp.MustCompile("`(Test[A-Z]\\w*)`")
)

// Guarantee: docs/api.md has a row for each route and method that a node serves, and for each
// code of an error with its statuses. The tests that a row names are there, and those of a code
// look for it. TestAPIDoc, which asks a leader and a follower, is one of those of each route.
func TestAPIDocTable(t *testing.T) {
	data, err := os.ReadFile("docs/api.md")
	testkit.Must(t, err)
	text, table, ok := strings.Cut(string(data), "\n## Which test shows it\n")
	if !ok {
		t.Fatal("docs/api.md has no table")
	}
	tests := testSources(t)
	tests["TestAPIDoc"] = text // what it runs
	for _, line := range regexp.MustCompile("(?m)^\\| (?:\\[?`).*$").FindAllString(table, -1) {
		if !apiDocRow.MatchString(line) && !apiDocCodeRow.MatchString(line) {
			t.Errorf("this row is not read: %s", line)
		}
	}

	shown, labels := make(map[string]bool), make(map[string]bool)
	for _, row := range apiDocRow.FindAllStringSubmatch(table, -1) {
		names := testsOf(t, row[0], row[3], tests)
		path, query, _ := strings.Cut(row[2], "?")
		for method := range strings.SplitSeq(row[1], ", ") {
			shown[method+" "+path] = true
			label := web.RouteLabel(method, path, query)
			labels[label] = labels[label] || slices.Contains(names, "TestAPIDoc")
		}
	}
	for _, label := range web.RouteLabels {
		if !labels[label] {
			t.Errorf("no row of the route %s names TestAPIDoc", label)
		}
	}
	for path, methods := range newAPITest(t).a.routes {
		for method := range methods {
			if !shown[method+" /"+path] {
				t.Errorf("no row for %s /%s", method, path)
			}
		}
	}

	errorsGo, err := os.ReadFile("internal/problem/errors.go")
	testkit.Must(t, err)
	names := make(map[string][]string) // of the errors, by code
	for _, m := range regexp.MustCompile(`(Err\w+) += declare\([\w.]+, "(\w+)"`).FindAllStringSubmatch(string(errorsGo), -1) {
		names[m[2]] = append(names[m[2]], m[1])
	}
	statuses := make(map[string][]string)
	for _, row := range apiDocCodeRow.FindAllStringSubmatch(table, -1) {
		code := row[1]
		if statuses[code] != nil || row[2] != code {
			t.Errorf("%s has two rows, or a link to %s", code, row[2])
		}
		statuses[code] = strings.Split(row[3], ", ")
		seen := regexp.MustCompile(`"` + code + `"|\b(` + strings.Join(names[code], "|") + `)\b`)
		for _, name := range testsOf(t, row[0], row[4], tests) {
			if !seen.MatchString(tests[name]) {
				t.Errorf("%s is said to show %s, and does not look for it", name, code)
			}
		}
	}
	for _, p := range problem.Problems {
		if !slices.Contains(statuses[p.Code], strconv.Itoa(p.Status)) {
			t.Errorf("no row for the code %s with status %d", p.Code, p.Status)
		}
	}
}

// testsOf returns the tests that a row names, which has to be some that are there.
func testsOf(t *testing.T, row, cell string, tests map[string]string) (names []string) {
	t.Helper()
	for _, m := range apiDocTest.FindAllStringSubmatch(cell, -1) {
		if tests[m[1]] == "" {
			t.Errorf("there is no %s: %s", m[1], row)
		}
		names = append(names, m[1])
	}
	if len(names) == 0 {
		t.Errorf("this row names no test: %s", row)
	}
	return names
}

// testSources returns the source of each test of the repository.
func testSources(t *testing.T) map[string]string {
	t.Helper()
	sources := make(map[string]string)
	testkit.Must(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				sources[fn.Name.Name] = string(text[set.Position(fn.Pos()).Offset:set.Position(fn.End()).Offset])
			}
		}
		return nil
	}))
	return sources
}
