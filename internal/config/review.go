package config

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// How settings are read, and all that is wrong with them is gathered.

// Review collects all that is wrong, so that the user hears of it at once.
type Review struct {
	Names map[string]string // flags that were given: --port, or RAFTKV_PORT
	Bad   map[string]bool   // flags that have a problem
	Errs  []error

	Operands []string // arguments that are no flags; the server has none
	Most     int      // how many of them there may be

	portIgnored bool // see isServicePort
}

// Name returns how the user gave a flag, or would.
func (r *Review) Name(flag string) string { return cmp.Or(r.Names[flag], "--"+flag) }

// Check notes err, if there is one, as a problem of a flag with that value.
func (r *Review) Check(flag string, value any, err error) {
	if err != nil {
		r.Bad[flag] = true
		r.Errs = append(r.Errs, fmt.Errorf("%s %q: %w", r.Name(flag), fmt.Sprint(value), err))
	}
}

// Sound says that none of the flags has a problem. Relations between flags are
// looked at only then: otherwise theirs may be but an echo.
func (r *Review) Sound(flags ...string) bool {
	return !slices.ContainsFunc(flags, func(f string) bool { return r.Bad[f] })
}

// ReadFlags reads the command line. It goes on after a problem, where the flag
// package alone would stop. Its only error is ErrHelp. Without version, there
// is no such flag.
func (r *Review) ReadFlags(args []string, settings []Setting, version *bool) error {
	fs := flag.NewFlagSet("raftkv", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	if version != nil {
		fs.BoolVar(version, "version", false, "")
	}
	for _, s := range settings {
		if s.Arg == "" {
			fs.BoolFunc(s.Flag, "", r.setter(s))
		} else {
			fs.Func(s.Flag, "", r.setter(s))
		}
	}
	for {
		err := fs.Parse(args)
		args = fs.Args()
		switch {
		case errors.Is(err, flag.ErrHelp):
			return ErrHelp
		case err == nil && len(args) == 0:
			return nil
		case err == nil && len(r.Operands) < r.Most:
			r.Operands, args = append(r.Operands, args[0]), args[1:]
			continue
		case err == nil:
			err = fmt.Errorf("unexpected argument %q: expected only flags", args[0])
			args = args[1:]
		case strings.HasPrefix(err.Error(), "bad flag syntax"):
			args = args[1:] // the flag package does not step over it by itself
		}
		r.Errs = append(r.Errs, err)
	}
}

// setter returns what sets a flag on the command line.
func (r *Review) setter(s Setting) func(string) error {
	return func(text string) error {
		err := s.Set(text)
		if r.Names[s.Flag] != "" && !strings.HasPrefix(s.Flag, "allowed-") {
			err = errors.New("expected only once")
		}
		r.Names[s.Flag] = "--" + s.Flag
		r.Check(s.Flag, text, err)
		return nil // noted, and the next flag is to be read
	}
}

// ReadEnv sets what is in the environment and not on the command line.
func (r *Review) ReadEnv(getenv func(string) (string, bool), settings []Setting) {
	for _, s := range settings {
		name := envName(s.Flag)
		text, _ := getenv(name)
		// Empty is unset: compose files and unit files write RAFTKV_X=${X}.
		if text != "" && r.Names[s.Flag] == "" {
			if isServicePort(name, text) {
				r.portIgnored = true
				continue
			}
			r.Names[s.Flag] = name
			r.Check(s.Flag, text, s.Set(text))
		}
	}
}

// envName returns the environment variable of a flag.
func envName(flag string) string {
	return "RAFTKV_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// UsageError is all that is wrong with a command line.
type UsageError struct{ error }

// NewUsageError joins errors to one UsageError. At least one must not be nil.
func NewUsageError(errs ...error) error { return UsageError{errors.Join(errs...)} }

// Verdict returns what the review has noted, nil if nothing.
func (r *Review) Verdict() error {
	if r.Errs == nil {
		return nil
	}
	return NewUsageError(r.Errs...)
}
