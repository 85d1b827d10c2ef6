package cli

import (
	"context"
	"fmt"
	"io"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/version"
	"slices"
	"strconv"
	"strings"
)

// Help, and the commands about the program itself.

// own are the commands about the command line and the program.
func own() []command.Command {
	return []command.Command{completionCommand(), {
		Name: "version", About: "print the versions of the program and of what it stands on",
		Long:    "Prints what raftkv --version prints. The nodes of a cluster say theirs in raftkv status.",
		Example: "raftkv version",
		New:     func() command.Action { return command.Action{Run: runVersion} },
	}, helpCommand()}
}

func runVersion(_ context.Context, o *command.Call) error {
	b := version.This()
	return o.Print(map[string]string{"version": b.Version, "revision": b.Revision, "go": b.GoVersion}, func(w io.Writer) error {
		_, err := io.WriteString(w, b.Text())
		return err
	})
}

func helpCommand() command.Command {
	return command.Command{
		Name: "help", Args: "[COMMAND] [SUBCOMMAND]", About: "print this, or more of a command",
		Long: "Prints what raftkv --help or raftkv COMMAND --help prints. With --man it is the man page of all\n" +
			"commands, with --markdown the reference in docs/cli.md, with --output json the table of commands.",
		Example: "raftkv help put\nraftkv help member add\nraftkv help --man | man -l -",
		New:     newHelp,
	}
}

func newHelp() command.Action {
	var man, markdown bool
	return command.Action{
		Settings: []config.Setting{
			{Flag: "man", Help: "the man page, for man (false)", Set: config.Into(&man, strconv.ParseBool, "true or false")},
			{Flag: "markdown", Help: "the reference of all commands (false)", Set: config.Into(&markdown, strconv.ParseBool, "true or false")},
		},
		Check: func(o *command.Call) {
			if _, err := find(o.Args); err != nil {
				o.Review.Errs = append(o.Review.Errs, err)
			}
			if len(o.Args) > 0 && (man || markdown) {
				o.Review.Check("man", man, fmt.Errorf("expected no COMMAND with it"))
			}
		},
		Run: func(_ context.Context, o *command.Call) error {
			text := helpOf(strings.Join(o.Args, " "))
			switch {
			case man:
				text = manPage()
			case markdown:
				text = Reference()
			}
			return o.Print(described(Commands()), func(w io.Writer) error {
				_, err := io.WriteString(w, text)
				return err
			})
		},
	}
}

// find returns the command that words name, none for none.
func find(words []string) (command.Command, error) {
	at := command.Command{Sub: Commands()}
	for i, word := range words {
		n := slices.IndexFunc(at.Sub, func(c command.Command) bool { return c.Name == word })
		if n < 0 {
			cmd, _, err := tree(&command.Call{}, false).Find(words[:i])
			if err != nil {
				return command.Command{}, err
			}
			return command.Command{}, unknown(cmd, at.Sub, word)
		}
		at = at.Sub[n]
	}
	return at, nil
}

// helpOf returns the help of a command, of the whole program for none.
func helpOf(name string) string {
	words := strings.Fields(name)
	c, err := find(words)
	if err != nil || len(words) == 0 {
		return Usage()
	}
	own, shared := c.Flags()
	text := head(name, c)
	if len(shared) > 0 {
		heading := "\nFlags of every command:\n"
		if c.Remote {
			heading = "\nFlags of every command that asks a cluster:\n"
		}
		text += heading + config.FlagTable(shared)
	}
	if variables := environment(slices.Concat(own, shared), c.Remote); variables != "" {
		text += "\nIn the environment, unless the flag is given:\n" + variables
	}
	return text + "\nExample:\n" + indent(c.Example)
}

// head is what a command says of itself, without what it has in common with others.
func head(name string, c command.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "raftkv %s\n\n%s\n", strings.TrimSpace(name+" "+c.Args), c.Long)
	if len(c.Sub) > 0 {
		b.WriteString("\nCommands:\n" + list(c.Sub, "raftkv "+name+" "))
	}
	if own, _ := c.Flags(); len(own) > 0 {
		b.WriteString("\nFlags (default in parentheses):\n" + config.FlagTable(own))
	}
	return b.String()
}

// environment lists the variables that stand in for flags.
func environment(settings []config.Setting, remote bool) string {
	var all []string
	for _, s := range settings {
		if s.Env != "" {
			all = append(all, fmt.Sprintf("  %-26s --%s\n", s.Env, s.Flag))
		}
	}
	if remote {
		all = append(all, fmt.Sprintf("  %-26s the token itself, which is no flag because others could see it\n", command.TokenVariable))
	}
	return strings.Join(all, "")
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"
}

// list is a table of commands.
func list(commands []command.Command, before string) string {
	var b strings.Builder
	var rows [][]string
	for _, c := range commands {
		rows = append(rows, []string{"  " + before + strings.TrimSpace(c.Name+" "+c.Args), c.About})
	}
	_ = command.WriteTable(&b, rows...) // memory takes all of it
	return b.String()
}

// Usage returns the text of --help.
func Usage() string {
	return `raftkv is a replicated key-value server, and its client. With flags alone it is
the server. With a command first, it is the client, or works on files:

` + list(Commands(), "raftkv ") + `
raftkv COMMAND --help tells more. Flags of the server (default in parentheses):
` + config.FlagTable(serverSettings()) + `  --version                  print the versions and exit
  --help                     print this and exit

Each flag but the last two can also be set in the environment: --data-dir is
RAFTKV_DATA_DIR. The flag wins. An empty variable counts as not set.

Examples:
` + indent(serverExamples)
}

const serverExamples = `The first of three members, and the others likewise with --id 2 and --id 3:
  raftkv --id 1 --port 12380 \
    --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379

A fourth, which adds itself to the running cluster:
  raftkv --id 4 --port 42380 --join \
    --cluster http://127.0.0.1:12379,4=http://127.0.0.1:42379
`

// description is a command in the JSON of help.
type description struct {
	Name     string        `json:"name"`
	Args     string        `json:"args,omitempty"`
	About    string        `json:"about"`
	Example  string        `json:"example,omitempty"`
	Flags    []flagOf      `json:"flags,omitempty"`
	Commands []description `json:"commands,omitempty"`
}

type flagOf struct {
	Flag     string `json:"flag"`
	Arg      string `json:"arg,omitempty"`
	About    string `json:"about"`
	Variable string `json:"variable,omitempty"`
}

func described(commands []command.Command) (all []description) {
	for _, c := range commands {
		d := description{Name: c.Name, Args: c.Args, About: c.About, Example: c.Example, Commands: described(c.Sub)}
		own, shared := c.Flags()
		for _, s := range slices.Concat(own, shared) {
			d.Flags = append(d.Flags, flagOf{s.Flag, s.Arg, s.Help, s.Env})
		}
		all = append(all, d)
	}
	return all
}
