// Package command answers: what is a command of the command line? It has the types
// from which a room makes a row for each of its commands, what a command gets when it
// runs, and what its errors mean for the exit status. It does not know which commands
// there are: package cli puts the rows of all rooms together.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/config"
	"strings"
)

// Command is a row of the table of commands. Help, completion, the man page and
// docs/cli.md are made of it. All but New and Sub are text.
type Command struct {
	Name    string // one word, as get
	Args    string // the operands: KEY, [PREFIX], KEY..., NAME -- COMMAND [ARG...]; Operands reads it
	About   string // one line, in lower case, without a full stop
	Long    string // more about it, in paragraphs of at most 90 characters a line
	Example string // command lines, one a line; each command has one

	// Remote commands talk to a cluster. They have the flags of Connection besides
	// their own, and may ask the Call for a Client.
	Remote bool

	// New makes what one run of the command is: its flags are bound to variables of this
	// run. Without it the command is but the group of what is in Sub.
	New func() Action

	Sub []Command // lease grant, lease keep, ...
}

// Action is one run of a command.
type Action struct {
	// Settings are the flags. None may be called as one of Connection, nor output or
	// help. Those with an Env are read from the environment as well.
	Settings []config.Setting

	// Check notes in o.Review what is wrong with operands and flags, when each may be right by
	// itself. It may be nil. All that is wrong is told at once, and Run is not called.
	Check func(o *Call)

	// Run does it. What its error means for the exit status, StatusOf says.
	Run func(ctx context.Context, o *Call) error
}

// Operands reads Args: how many operands there are at least and at most, and whether
// the command line of a program follows behind --, and has to.
func (c Command) Operands() (least, most int, program, needed bool) {
	operands, rest, program := strings.Cut(c.Args, "-- ")
	program = program || rest != ""
	needed = program && !strings.HasSuffix(operands, "[")
	for word := range strings.FieldsSeq(strings.TrimSuffix(operands, "[")) {
		if strings.HasSuffix(strings.TrimSuffix(word, "]"), "...") {
			most = anyNumber
		}
		if word[0] != '[' {
			least++
		}
		most = min(most+1, anyNumber)
	}
	return least, most, program, needed
}

// anyNumber is as many operands as a command line can have.
const anyNumber = 1 << 20

// The values of --output.
const (
	Table = "table" // for people
	JSON  = "json"  // one document, or one a line
)

// Call is what a command gets when it runs.
type Call struct {
	Name    string   // the words of the command: member add
	Args    []string // the operands
	Program []string // behind --, for a command whose Args have it; nil if there was no --

	Env    func(string) (string, bool) // as os.LookupEnv
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer // for what is not the answer

	Output string         // Table or JSON
	Review *config.Review // where Check notes what is wrong

	Connection Connection // how a Remote command reaches its cluster
}

// Arg returns the n-th operand, from 0 on, or "" if it was not given.
func (o *Call) Arg(n int) string {
	if n >= len(o.Args) {
		return ""
	}
	return o.Args[n]
}

// Print writes the answer: as a JSON document with --output json, else as table does.
func (o *Call) Print(v any, table func(w io.Writer) error) error {
	if o.Output != JSON {
		return table(o.Stdout)
	}
	return o.PrintJSON(v)
}

// PrintJSON writes v as a line of JSON.
func (o *Call) PrintJSON(v any) error {
	enc := json.NewEncoder(o.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// ExitError is an error with an exit status of its own.
type ExitError struct {
	Status int
	Err    error // what is said on stderr; nil for nothing
}

func (e ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprint("exit status ", e.Status)
	}
	return e.Err.Error()
}

func (e ExitError) Unwrap() error { return e.Err }

// No returns the error of a command that has found nothing, or not got what it asked for,
// without anything being wrong: exit 3.
func No(format string, args ...any) error {
	return ExitError{config.ExitNo, fmt.Errorf(format, args...)}
}

// ErrSaid ends a command with exit 1 that has said itself what is the matter.
var ErrSaid error = ExitError{Status: config.ExitFault}

// StatusOf returns the exit status that an error of a command stands for.
func StatusOf(err error) int {
	var exit ExitError
	var wrong config.UsageError
	switch {
	case err == nil:
		return config.ExitOK
	case errors.As(err, &exit):
		return exit.Status
	case errors.As(err, &wrong):
		return config.ExitUsage
	case isNo(err):
		return config.ExitNo
	}
	return config.ExitFault
}
