// Dist makes what a release of raftkv is delivered as: archives for Linux and macOS,
// packages for Debian, for Red Hat and for their kin, and the list of their checksums. The
// same commit, version and Go make the same bytes, on any machine.
//
// It is a module of its own, so that what it is made with is no part of the server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program: exit code 1 is a fault, 2 a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dist", flag.ContinueOnError)
	flags.SetOutput(stderr)
	version := flags.String("version", "", "version of the release, as v1.2.3")
	root := flags.String("root", "../..", "checkout of raftkv")
	out := flags.String("out", "", "directory for what is made, replaced as a whole (dist in the checkout)")
	only := flags.String("platforms", "all", "comma-separated, as linux/amd64, or all")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	targets, perr := parsePlatforms(*only)
	verr := checkVersion(*version)
	var aerr error
	if flags.NArg() > 0 {
		aerr = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := errors.Join(verr, perr, aerr); err != nil {
		fmt.Fprintf(stderr, "dist: %v\n", err)
		return 2
	}
	if *out == "" {
		*out = filepath.Join(*root, "dist")
	}
	if err := distribute(ctx, *version, *root, *out, targets, stdout); err != nil {
		fmt.Fprintf(stderr, "dist: %v\n", err)
		return 1
	}
	return 0
}

// distribute makes a release of the commit that is checked out in root.
func distribute(ctx context.Context, version, root, out string, targets []platform, stdout io.Writer) error {
	r, err := readCheckout(ctx, root, version)
	if err != nil {
		return err
	}
	if !r.tagged {
		fmt.Fprintf(stdout, "dist: there is no tag %s yet: a release is one, git tag %s\n", version, version)
	}
	r.build = r.goBuild
	if err := r.make(ctx, out, targets); err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(out, sumsFile))
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "dist: raftkv %s of commit %s, in %s:\n%s", version, r.commit, out, sums)
	return nil
}
