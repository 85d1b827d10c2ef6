//go:build ignore

// Test runs go test with the arguments given and prints a line for each test as
// it ends: its name and time, and all that it printed if it has failed or was
// skipped. go test by itself is silent until the last test has ended, or with -v
// prints everything.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// event is what go test -json prints (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

func main() {
	code, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "test: %v\n", err)
	}
	os.Exit(code)
}

func run(args []string, out io.Writer) (code int, err error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	perr := progress(events, out)
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), perr // the tests have said why
	}
	if err = errors.Join(err, perr); err != nil {
		return 1, err
	}
	return 0, nil
}

// progress prints what the events tell.
func progress(events io.Reader, out io.Writer) error {
	held := make(map[string]*strings.Builder) // what a top-level test, or a package, has printed
	d := json.NewDecoder(events)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		top, _, isSub := strings.Cut(e.Test, "/")
		name := e.Package + " " + top
		if held[name] == nil {
			held[name] = new(strings.Builder)
		}
		said := held[name].String()
		ends := !isSub && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip")
		switch {
		case e.Action == "build-output":
			fmt.Fprint(out, e.Output)
		case e.Output != "" && !strings.HasPrefix(e.Output, "=== "):
			held[name].WriteString(e.Output)
		case !ends:
		case e.Test != "" && e.Action == "pass":
			fmt.Fprintf(out, "ok    %s (%.1fs)\n", top, e.Elapsed)
			delete(held, name)
		default: // a test that failed or was skipped, or the end of a package
			fmt.Fprint(out, said)
			delete(held, name)
		}
	}
}
