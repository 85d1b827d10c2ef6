package client_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// outside is a program of somebody else.
const outside = `package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"raftkv/client"
)

func main() {
	c, err := client.New(client.Config{Endpoints: os.Args[1:]})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(context.Background(), "outside", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	item, err := c.Get(context.Background(), "outside")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", item.Value)
}
`

// Guarantee: a program in a module of its own requires the client from a checkout, as the
// documentation of the package says, and needs no other module and no network for it.
func TestOutsideModule(t *testing.T) {
	t.Parallel()
	url, err := realNode()
	if err != nil {
		t.Fatal(err)
	}
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	edit := regexp.MustCompile(`(?m)^//\tgo (mod edit .*)$`).FindSubmatch(doc)
	if edit == nil {
		t.Fatal("doc.go does not say how")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(outside), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "mod", "init", "example.com/outside")
	run("go", strings.Fields(strings.Replace(string(edit[1]), "../raftkv", checkout, 1))...)
	if got := run("go", "run", ".", url); got != "hello\n" {
		t.Errorf("it printed %q", got)
	}
	if got := run("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "."); got != "raftkv/client\nexample.com/outside\n" {
		t.Errorf("it stands on %q", got)
	}
}
