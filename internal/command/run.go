package command

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/config"
	"slices"
)

// How a command line becomes a run of a command.

// Common returns the flags that every command has, bound to o.
func (o *Call) common() []config.Setting {
	return []config.Setting{{
		Flag: "output", Short: "o", Arg: "FORMAT", Env: "RAFTKV_OUTPUT", Help: "table, or json for programs (table)",
		Set: config.Into(&o.Output, parseOutput, ""), Choices: []string{Table, JSON},
	}}
}

func parseOutput(text string) (string, error) {
	if text != Table && text != JSON {
		return "", fmt.Errorf("expected one of %s, %s", Table, JSON)
	}
	return text, nil
}

// Flags returns the flags of a command as help shows them: its own, and those that it has
// with others.
func (c Command) Flags() (own, shared []config.Setting) {
	if c.New == nil {
		return nil, nil
	}
	o := &Call{Connection: newConnection()}
	if c.Remote {
		shared = o.Connection.Settings()
	}
	return c.New().Settings, append(shared, o.common()...)
}

// Run reads args, which are behind the words of the command in o.Name, and runs it. The
// fields of o that a command line says are set here. The error is config.ErrHelp when
// the help is asked for.
func (c Command) Run(ctx context.Context, o *Call, args []string) error {
	o.Output, o.Connection = Table, newConnection()
	action := c.New()
	settings := slices.Concat(action.Settings, o.common())
	if c.Remote {
		settings = append(settings, o.Connection.Settings()...)
	}
	least, most, program, needed := c.Operands()
	r := config.NewReview(most)
	r.Program, o.Review = program, r
	if err := r.ReadFlags(args, settings, nil); err != nil {
		return err
	}
	r.ReadEnv(o.Env, settings)
	if o.Args, o.Program = r.Operands, r.Behind; len(o.Args) < least || needed && len(o.Program) == 0 {
		r.Errs = append(r.Errs, fmt.Errorf("expected %s behind it", c.Args))
	}
	if c.Remote {
		o.Connection.check(r, o.Env)
	}
	if action.Check != nil {
		action.Check(o)
	}
	if err := r.Verdict(); err != nil {
		return err
	}
	err := action.Run(ctx, o)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}
	return err
}
