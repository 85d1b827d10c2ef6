// Package offline has the commands that work on files, without a cluster: restore,
// recover and inspect, and what makes certificates and tokens. What they are
// interrupted in does no harm, and can be run again.
package offline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/internal/config"
	"strings"
)

// offlineCommand is a command that works on files, without a cluster.
type offlineCommand struct {
	name  string
	about string // one line
	usage string // --help
	run   func(o call) error
}

// call is the surroundings of a command.
type call struct {
	args   []string // behind its name
	env    func(string) (string, bool)
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer // what is not the answer
}

// errSaid ends a command that has said on stdout what is the matter.
var errSaid = errors.New("said")

func offlineCommands() []offlineCommand {
	return []offlineCommand{
		{"restore", "make the data directory of a new cluster from a backup", restoreUsage(), runRestore},
		{"recover", "make a cluster of its own of one surviving data directory", recoverUsage(), runRecover},
		{"inspect", "print what is in a data directory or a backup", inspectUsage, runInspect},
		{"tls", "make a CA, and certificates for members and clients", tlsUsage(), runTLS},
		{"token", "make a token for a client", tokenUsage, runToken},
		{"help", "print this, or more of a command", "raftkv help [COMMAND] prints what raftkv --help or raftkv COMMAND --help prints.\n", runHelp},
	}
}

// Run runs the command that the first argument names.
func Run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	c, ok := offlineCommandOf(args[0])
	if !ok {
		fmt.Fprintf(stderr, "raftkv: there is no command %q; there are %s. With flags alone, raftkv is the server.\n"+
			"Run raftkv --help for more.\n", args[0], strings.Join(commandNames(), ", "))
		return config.ExitUsage
	}
	// Every crash point of a command is safe, so a signal need not wait for
	// one: the process ends, whatever this goroutine is at.
	ended := make(chan error, 1)
	go func() { ended <- c.run(call{args[1:], env, os.Stdin, stdout, stderr}) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = errors.New("interrupted; what is left half-done does no harm, run it again")
	}
	var wrong config.UsageError
	switch {
	case err == nil:
		return config.ExitOK
	case errors.Is(err, config.ErrHelp):
		fmt.Fprint(stdout, c.usage)
		return config.ExitOK
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "raftkv %s: %v\nRun raftkv %s --help for its flags.\n", c.name, wrong, c.name)
		return config.ExitUsage
	case !errors.Is(err, errSaid):
		fmt.Fprintf(stderr, "raftkv %s: %v\n", c.name, err)
	}
	return config.ExitFault
}

func offlineCommandOf(name string) (offlineCommand, bool) {
	for _, c := range offlineCommands() {
		if c.name == name {
			return c, true
		}
	}
	return offlineCommand{}, false
}

func commandNames() []string {
	var names []string
	for _, c := range offlineCommands() {
		names = append(names, c.name)
	}
	return names
}

func runHelp(o call) error {
	r, err := o.review(nil, "[COMMAND]")
	if err == nil {
		err = r.Verdict()
	}
	if err != nil {
		return err
	}
	if len(r.Operands) == 0 {
		_, err := io.WriteString(o.stdout, Usage())
		return err
	}
	c, ok := offlineCommandOf(r.Operands[0])
	if !ok {
		return config.NewUsageError(fmt.Errorf("there is no command %q; there are %s", r.Operands[0], strings.Join(commandNames(), ", ")))
	}
	_, err = io.WriteString(o.stdout, c.usage)
	return err
}

// review reads a command's flags, from the command line and the environment,
// and its operand: FILE, or [FILE] when it need not be there, or "" for none.
// Its only error is config.ErrHelp; the rest is noted in the review.
func (o call) review(settings []config.Setting, operand string) (*config.Review, error) {
	r := &config.Review{Names: map[string]string{}, Bad: map[string]bool{}}
	if operand != "" {
		r.Most = 1
	}
	if err := r.ReadFlags(o.args, settings, nil); err != nil {
		return nil, err
	}
	if operand != "" && operand[0] != '[' && len(r.Operands) == 0 {
		r.Errs = append(r.Errs, fmt.Errorf("%s is missing", operand))
	}
	r.ReadEnv(o.env, settings)
	return r, nil
}
