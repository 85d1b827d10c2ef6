// Package cli answers: which command does a command line name? It puts the commands of
// all rooms into one tree, and makes help, completion, the man page and docs/cli.md of it.
// It knows no command by name but those about the command line itself.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/following"
	"raftkv/internal/holding"
	"raftkv/internal/offline"
	"raftkv/internal/remote"
	"raftkv/internal/transfer"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Commands returns the table of all commands, in the order of the help. A new command is
// a row of its room, and nothing else.
func Commands() []command.Command {
	return slices.Concat(
		remote.Commands(),
		following.Commands(),
		holding.Commands(),
		transfer.Commands(),
		offline.Commands(),
		own(),
	)
}

// Run runs the command whose words args begin with, and returns the exit status.
func Run(ctx context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) int {
	o := &command.Call{Env: env, Stdin: stdin, Stdout: stdout, Stderr: stderr}
	root := tree(o, strings.HasPrefix(args[0], cobra.ShellCompRequestCmd))
	root.SetArgs(args)
	root.SetOut(stdout) // where completions go
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	return finish(o, err)
}

// finish says what became of a command. Its help is what it may have been asked for.
func finish(o *command.Call, err error) int {
	if errors.Is(err, config.ErrHelp) {
		if _, err = io.WriteString(o.Stdout, helpOf(o.Name)); err == nil {
			return config.ExitOK
		}
	}
	return o.Finish(err)
}

// tree returns the commands as cobra has them. What they do, they do with o. The one
// reader of flags is config.Review; with completing, cobra reads them, too, to know what
// can follow.
func tree(o *command.Call, completing bool) *cobra.Command {
	root := &cobra.Command{
		Use: "raftkv", SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		RunE:                       func(cmd *cobra.Command, args []string) error { return unknown(cmd, Commands(), args[0]) },
		SuggestionsMinimumDistance: suggestionDistance,
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	config.AddFlags(root.Flags(), serverSettings(), nil)
	for _, c := range Commands() {
		sub := branch(o, completing, c, nil)
		if c.Name == "help" {
			root.SetHelpCommand(sub)
		}
		root.AddCommand(sub)
	}
	return root
}

// suggestionDistance is in how many letters a word may differ from the command that it
// was meant to be.
const suggestionDistance = 2

// branch returns one command, and those below it.
func branch(o *command.Call, completing bool, c command.Command, words []string) *cobra.Command {
	words = append(slices.Clone(words), c.Name)
	cmd := &cobra.Command{
		Use: strings.TrimSpace(c.Name + " " + c.Args), Short: c.About, Args: cobra.ArbitraryArgs,
		SuggestionsMinimumDistance: suggestionDistance, ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.Name = strings.Join(words, " ")
		if len(c.Sub) > 0 && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			return unknown(cmd, c.Sub, args[0])
		}
		if c.New != nil {
			return c.Run(cmd.Context(), o, args)
		}
		if slices.ContainsFunc(args, func(arg string) bool { return arg == "--help" || arg == "-h" || arg == "-help" }) {
			return config.ErrHelp
		}
		return config.NewUsageError(fmt.Errorf("expected one of %s behind it", strings.Join(names(c.Sub), ", ")))
	}
	cmd.DisableFlagParsing = !completing
	flags(cmd, c)
	for _, sub := range c.Sub {
		cmd.AddCommand(branch(o, completing, sub, words))
	}
	return cmd
}

// unknown says that there is no such command, and which is near it.
func unknown(cmd *cobra.Command, there []command.Command, word string) error {
	text := fmt.Sprintf("there is no command %q", strings.TrimPrefix(cmd.CommandPath()+" "+word, "raftkv "))
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	} else {
		text += fmt.Sprintf("; there are %s", strings.Join(names(there), ", "))
	}
	if !cmd.HasParent() {
		text += "\nWith flags alone, raftkv is the server."
	}
	return config.NewUsageError(errors.New(text))
}

func names(commands []command.Command) (all []string) {
	for _, c := range commands {
		all = append(all, c.Name)
	}
	return all
}

// serverSettings are the flags of the server.
func serverSettings() []config.Setting { return new(config.Config).Settings(new(string)) }
