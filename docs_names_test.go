package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"strings"
	"testing"
)

// declared are the names that the repository declares: functions, types, and methods
// and fields as Type.Name.
func declared(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					recv := d.Recv.List[0].Type
					if star, ok := recv.(*ast.StarExpr); ok {
						recv = star.X
					}
					if id, ok := recv.(*ast.Ident); ok {
						names[id.Name+"."+name] = true
					}
				}
				names[name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok {
						names[ts.Name.Name] = true
					}
				}
			}
		}
		return nil
	})
	testkit.Must(t, err)
	return names
}

// What the documents name is there: tests, files, and the functions in doc.go's table
// of goroutines. Without this a rename leaves readers looking for what is gone.
func TestDocsNameWhatExists(t *testing.T) {
	names := declared(t)
	docs, err := filepath.Glob("docs/*.md")
	testkit.Must(t, err)
	test := regexp.MustCompile(`\bTest[A-Z]\w*(…|\.\.\.)?`)
	file := regexp.MustCompile("`((?:[a-z_]+/)*[a-z_0-9]+\\.go)`")
	for _, doc := range append(docs, "README.md", "DESIGN.md", "CONTRIBUTING.md", "SECURITY.md") {
		text, err := os.ReadFile(doc)
		testkit.Must(t, err)
		for _, m := range test.FindAllStringSubmatch(string(text), -1) {
			found := names[m[0]]
			for name := range names {
				found = found || m[1] != "" && strings.HasPrefix(name, strings.TrimSuffix(m[0], m[1]))
			}
			if !found {
				t.Errorf("%s names %s, which is not there", doc, m[0])
			}
		}
		for _, m := range file.FindAllStringSubmatch(string(text), -1) {
			if !isFile(t, m[1]) {
				t.Errorf("%s names %s, which is not there", doc, m[1])
			}
		}
	}

	text, err := os.ReadFile("doc.go")
	testkit.Must(t, err)
	_, table, _ := strings.Cut(string(text), "\tgoroutine ")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := 0
	for _, m := range regexp.MustCompile(`(?m)^\t(?:[a-z ]+\()?(?:[a-z]+\.)?([A-Za-z]+\.[A-Za-z]+)\b`).FindAllStringSubmatch(table, -1) {
		rows++
		_, last, _ := strings.Cut(m[1], ".")
		if !names[m[1]] && !names[last] && last != "go" {
			t.Errorf("doc.go has a goroutine %s, which is not there", m[1])
		}
	}
	if rows < 20 {
		t.Errorf("doc.go names the functions of %d goroutines only", rows)
	}
}

// headings are the anchors of a document: its headings as links name them.
func headings(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	drop := regexp.MustCompile(`[^\w\- ]`)
	anchors := make(map[string]bool)
	fenced := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if !fenced && strings.HasPrefix(line, "#") {
			heading := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
			anchors[strings.ReplaceAll(drop.ReplaceAllString(heading, ""), " ", "-")] = true
		}
	}
	return anchors
}

// The links between the documents lead to files and headings that are there.
func TestDocsLinkToWhatExists(t *testing.T) {
	docs, err := filepath.Glob("docs/*.md")
	testkit.Must(t, err)
	link := regexp.MustCompile(`\]\(([^)\s:]*)\)`) // a colon is in links to elsewhere
	found := 0
	for _, doc := range append(docs, "README.md", "DESIGN.md", "CONTRIBUTING.md", "SECURITY.md") {
		text, err := os.ReadFile(doc)
		testkit.Must(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			found++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := doc
			if file != "" {
				target = filepath.Join(filepath.Dir(doc), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", doc, m[1])
			} else if anchor != "" && filepath.Ext(target) == ".md" && !headings(t, target)[anchor] {
				t.Errorf("%s links to %s, and there is no such heading", doc, m[1])
			}
		}
	}
	if found < 50 {
		t.Errorf("%d links: are they read rightly?", found)
	}
}

// isFile reports whether there is a file of that path, or anywhere of that name.
func isFile(t *testing.T, name string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		found = found || path == name || strings.HasSuffix(path, "/"+name)
		return err
	})
	testkit.Must(t, err)
	return found
}
