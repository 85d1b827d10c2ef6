package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Completion of command lines. The scripts are cobra's: they ask the program itself, by a
// hidden command, and so know whatever commands and flags it has.

// shells are those that there are scripts for.
var shells = []string{"bash", "zsh", "fish"}

func completionCommand() command.Command {
	return command.Command{
		Name: "completion", Args: "SHELL", About: "print what makes a shell complete commands and flags",
		Long: "Prints a script for bash, zsh or fish. It completes commands, flags, their values and file names,\n" +
			"and asks the program for them: after an upgrade it knows the new ones.",
		Example: "raftkv completion bash >/etc/bash_completion.d/raftkv\n" +
			"raftkv completion zsh >\"${fpath[1]}/_raftkv\"\n" +
			"raftkv completion fish >~/.config/fish/completions/raftkv.fish",
		New: func() command.Action {
			return command.Action{
				Check: func(o *command.Call) {
					if shell := o.Arg(0); shell != "" && !slices.Contains(shells, shell) {
						o.Review.Errs = append(o.Review.Errs, fmt.Errorf("SHELL %q: expected one of %s", shell, strings.Join(shells, ", ")))
					}
				},
				Run: runCompletion,
			}
		},
	}
}

func runCompletion(_ context.Context, o *command.Call) error {
	script, err := completion(o.Arg(0))
	if err != nil {
		return err
	}
	return o.Print(map[string]string{"shell": o.Arg(0), "script": script}, func(w io.Writer) error {
		_, err := io.WriteString(w, script)
		return err
	})
}

// completion returns the script for a shell.
func completion(shell string) (string, error) {
	root, b := tree(&command.Call{}, false), new(bytes.Buffer)
	var err error
	switch shell {
	case "bash":
		err = root.GenBashCompletionV2(b, true)
	case "zsh":
		err = root.GenZshCompletion(b)
	case "fish":
		err = root.GenFishCompletion(b, true)
	default:
		err = errors.New("there is no script for " + shell)
	}
	return b.String(), err
}

// flags gives a command its flags, for completion alone, with what is known of their values.
func flags(cmd *cobra.Command, c command.Command) {
	own, shared := c.Flags()
	for _, s := range slices.Concat(own, shared) {
		config.AddFlags(cmd.Flags(), []config.Setting{s}, nil)
		var complete cobra.CompletionFunc
		switch {
		case s.Choices != nil:
			complete = cobra.FixedCompletions(s.Choices, cobra.ShellCompDirectiveNoFileComp)
		case s.Arg == "DIR":
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
		case s.Arg != "FILE":
			complete = cobra.NoFileCompletions
		}
		if complete != nil {
			// It fails only for a flag that there is not, or that has one.
			_ = cmd.RegisterFlagCompletionFunc(s.Flag, complete)
		}
	}
	switch {
	case c.Name == "completion":
		cmd.ValidArgsFunction = cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp)
	case strings.Contains(c.Args, "FILE"), strings.Contains(c.Args, "DIR"), strings.Contains(c.Args, "--"):
		cmd.ValidArgsFunction = nil
	}
}
