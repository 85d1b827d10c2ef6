// Package offline has the commands that work on files, without a cluster: restore,
// recover and inspect, and what makes certificates and tokens. What they are
// interrupted in does no harm, and can be run again.
package offline

import (
	"context"
	"errors"
	"raftkv/internal/command"
	"raftkv/internal/config"
)

// Commands returns the commands of this room.
func Commands() []command.Command {
	return []command.Command{restoreCommand(), recoverCommand(), inspectCommand(), tlsCommand(), tokenCommand()}
}

// run makes what runs a command of one that needs no context. Every crash point of a
// command is safe, so a signal need not wait for one: the process ends, whatever its
// goroutine is at.
func run(do func(o *command.Call) error) func(context.Context, *command.Call) error {
	return func(ctx context.Context, o *command.Call) error {
		ended := make(chan error, 1)
		go func() { ended <- do(o) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return errors.New("interrupted; what is left half-done does no harm, run it again")
		}
	}
}

// plain is an action without flags.
func plain(do func(o *command.Call) error) func() command.Action {
	return func() command.Action { return command.Action{Run: run(do)} }
}

// shared are the flags of the server with these names, which a command has, too.
func shared(c *config.Config, list *string, flags ...string) []config.Setting {
	return config.Only(c.Settings(list), flags...)
}
