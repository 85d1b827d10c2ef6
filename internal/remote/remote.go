// Package remote answers: what does one request to a cluster look like as a command? It has
// the commands that read and write keys, leases, members and the leader, each of which is a
// call of package client, and status, which asks each node.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"slices"
	"strconv"
	"time"
)

// Commands returns the commands of this room.
func Commands() []command.Command {
	return slices.Concat(keyCommands(), []command.Command{txnCommand(), leaseCommand(), memberCommand(), leaderCommand(), statusCommand()})
}

// calls makes what runs a command of one that needs a client.
func calls(do func(ctx context.Context, o *command.Call, c *client.Client) error) func(context.Context, *command.Call) error {
	return func(ctx context.Context, o *command.Call) error {
		c, err := o.Client()
		if err != nil {
			return err
		}
		defer c.Close()
		return do(ctx, o, c)
	}
}

// action is an action without flags.
func action(do func(ctx context.Context, o *command.Call, c *client.Client) error) func() command.Action {
	return func() command.Action { return command.Action{Run: calls(do)} }
}

// silent prints nothing in the table, for commands whose success needs no words.
func silent(io.Writer) error { return nil }

// toggle is a switch.
func toggle(flag, help string, field *bool) config.Setting {
	return config.Setting{Flag: flag, Help: help + " (false)", Set: config.Into(field, strconv.ParseBool, "true or false")}
}

func text(flag, arg, help string, field *string) config.Setting {
	return config.Setting{Flag: flag, Arg: arg, Help: help, Set: config.Into(field, config.ParseText, "")}
}

func period(flag, help string, field *time.Duration) config.Setting {
	return config.Setting{Flag: flag, Arg: "TIME", Help: help, Set: config.Into(field, command.ParsePeriod, "")}
}

func number(flag, arg, help string, field *uint64) config.Setting {
	return config.Setting{Flag: flag, Arg: arg, Help: help, Set: config.Into(field, parseNumber, "")}
}

func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errors.New("expected a whole number")
	}
	return n, nil
}

// operand checks the n-th operand, if it was given.
func operand[T any](o *command.Call, n int, name string, parse func(string) (T, error)) (v T) {
	if n >= len(o.Args) {
		return v
	}
	v, err := parse(o.Args[n])
	if err != nil {
		o.Review.Errs = append(o.Review.Errs, fmt.Errorf("%s %q: %w", name, o.Args[n], err))
	}
	return v
}

// parseID takes the ID of a node or of a lease.
func parseID(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, errors.New("expected a whole number from 1 on")
	}
	return n, nil
}

// excludes notes that two flags were both given.
func excludes(o *command.Call, flags ...string) {
	var given []string
	for _, f := range flags {
		if o.Review.Names[f] != "" {
			given = append(given, o.Review.Name(f))
		}
	}
	if len(given) > 1 {
		o.Review.Errs = append(o.Review.Errs, fmt.Errorf("expected only one of %s", list(given, "and")))
	}
}

// list puts words into a sentence.
func list(words []string, last string) string {
	text := words[0]
	for i, w := range words[1:] {
		if i == len(words)-2 {
			text += " " + last + " " + w
		} else {
			text += ", " + w
		}
	}
	return text
}

// maxInput is how much is read of a file or of standard input: as much as any transaction
// may have.
const maxInput = 4 * config.MaxValueLimit

// read returns the content of a file, or of standard input for -.
func read(o *command.Call, file string) (content []byte, err error) {
	if file == "-" {
		return readAll(o.Stdin, "standard input", maxInput)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readAll(f, file, maxInput)
}

// readAll returns all that there is, if that is not more than most bytes.
func readAll(r io.Reader, name string, most int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(content)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes, which no node takes", name, most)
	}
	return content, err
}

// value returns what a command is to write: its n-th operand, a file, or standard input if
// that is no terminal.
func value(o *command.Call, n int, file string) ([]byte, error) {
	switch {
	case file != "":
		return read(o, file)
	case o.Arg(n) == "-" || len(o.Args) <= n:
		return read(o, "-")
	}
	return []byte(o.Args[n]), nil
}

// checkValue notes what is wrong with where a value comes from.
func checkValue(o *command.Call, n int, file string) {
	switch given := len(o.Args) > n; {
	case given && file != "":
		o.Review.Check("file", file, errors.New("expected no VALUE beside it"))
	case !given && file == "" && command.IsTerminal(o.Stdin):
		o.Review.Errs = append(o.Review.Errs, errors.New("expected VALUE, --file, or something on standard input"))
	}
}
