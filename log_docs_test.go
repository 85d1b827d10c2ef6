package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// loggedLines returns the messages that the sources log, by message, with the
// method that logs them.
func loggedLines(t *testing.T) map[string]string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.go", "internal/*/*.go", "internal/*/*/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	lines := make(map[string]string)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch method.Sel.Name {
			case "Info", "Warn", "Error":
				if text, ok := call.Args[0].(*ast.BasicLit); ok && text.Kind == token.STRING {
					message, err := strconv.Unquote(text.Value)
					if err != nil {
						t.Fatal(err)
					}
					lines[message] = strings.ToLower(method.Sel.Name)
				}
			}
			return true
		})
	}
	return lines
}

// Guarantee: docs/log.md has every event that is logged at info, and says of each
// event the level at which it is logged.
func TestLogIsDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	lines := loggedLines(t)
	for message, level := range documented {
		if lines[message] != level {
			t.Errorf("docs/log.md has %q at %s, the sources have it at %q", message, level, lines[message])
		}
	}
	for message, level := range lines {
		if level == "info" && documented[message] == "" {
			t.Errorf("docs/log.md has no row for %q, which is logged at info", message)
		}
	}
	if len(documented) < 20 {
		t.Errorf("docs/log.md has %d events: is its table read rightly?", len(documented))
	}
}
