package cli

import (
	"fmt"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/version"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// The reference of all commands: docs/cli.md, and the man page.

// Reference returns docs/cli.md.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# The command line

This page is made of the table of commands by ` + "`raftkv help --markdown`" + `, and says what
` + "`raftkv COMMAND --help`" + ` says.

` + referenceHead + "\n")
	b.WriteString("| command | |\n| --- | --- |\n")
	eachCommand(Commands(), "", func(name string, c command.Command) {
		fmt.Fprintf(&b, "| [`raftkv %s`](#raftkv-%s) | %s |\n", name, strings.ReplaceAll(name, " ", "-"), c.About)
	})
	b.WriteString("\n")
	sections(&b)
	b.WriteString("## The server\n\n```text\n" + config.FlagTable(serverSettings()) + "```\n")
	return b.String()
}

// manPage returns the man page, as man takes it.
func manPage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%% RAFTKV 1 \"\" \"raftkv %s\" \"User Commands\"\n", version.This().Version)
	b.WriteString(`
# NAME

raftkv - a replicated key-value server, and its client

# SYNOPSIS

**raftkv** [FLAG]...

**raftkv** COMMAND [FLAG|ARGUMENT]...

# DESCRIPTION

` + referenceHead + "\n# COMMANDS\n\n")
	sections(&b)
	b.WriteString("# FLAGS OF THE SERVER\n\n```text\n" + config.FlagTable(serverSettings()) + `~~~

Each can also be set in the environment: --data-dir is RAFTKV_DATA_DIR. The flag wins.
`)
	return string(md2man.Render([]byte(strings.ReplaceAll(b.String(), "~~~", "```"))))
}

// referenceHead is what holds for all commands.
const referenceHead = `With flags alone, ` + "`raftkv`" + ` is the server. With a command first it is the client of a cluster,
or works on files. Flags stand before or behind arguments; behind ` + "`--`" + ` there are none.

**Where the cluster is.** ` + "`--endpoints`, or `RAFTKV_ENDPOINTS`" + `, are base URLs of nodes,
separated by commas. A command asks one of them, and the next when that fails; it asks no
others, whatever the cluster says of its members. Without it the endpoints are
` + "`http://127.0.0.1:12380`, `:22380`, `:32380` and `:9121`" + `. For https there are ` + "`--cacert`,\n`--cert` and `--key`" + `, as curl has them.

**Who asks.** A token is in ` + "`RAFTKV_TOKEN`, or in the file that `--token-file` or `RAFTKV_TOKEN_FILE`" + `
names. There is no flag for the token itself, since everybody on a machine sees the flags of all
processes. It goes over https or to this machine, and nowhere else.

**What is tried again.** A request that fails goes to the next endpoint, for up to
` + "`--timeout`" + `. A write is sent under an Idempotency-Key, so it happens once at most. An error
says whether it did not happen, or may have happened.

**What is printed.** The answer goes to standard output, everything else to standard error. A
value is printed byte for byte. With ` + "`--output json`, or `RAFTKV_OUTPUT=json`" + `, the answer is a JSON
document, for a list one on each line; and an error is a JSON object on standard error, with
` + "`error`, `exit` and, from a node, `code` and `outcome`" + `.

| exit status | meaning |
| --- | --- |
| 0 | done |
| 1 | an error; standard error says which, and whether something may have happened |
| 2 | the command line is wrong; all that is wrong with it is named, and nothing was done |
| 3 | no: there is no such key, lease or member, a condition does not hold, or a lock was not got |
`

// eachCommand calls do for each command, those below another behind it.
func eachCommand(commands []command.Command, before string, do func(name string, c command.Command)) {
	for _, c := range commands {
		name := strings.TrimSpace(before + " " + c.Name)
		do(name, c)
		eachCommand(c.Sub, name, do)
	}
}

// sections writes a section for each command: what it says of itself, without what it has in
// common with others.
func sections(b *strings.Builder) {
	_, shared := command.Command{Remote: true, New: func() command.Action { return command.Action{} }}.Flags()
	b.WriteString("## Flags of every command\n\nOf those that work on files there is `--output` alone.\n\n```text\n" + config.FlagTable(shared) +
		"```\n\nIn the environment, unless the flag is given:\n\n```text\n" + environment(shared, true) + "```\n\n")
	eachCommand(Commands(), "", func(name string, c command.Command) {
		fmt.Fprintf(b, "## raftkv %s\n\n```text\n%s\nExample:\n%s```\n\n", name, head(name, c), indent(c.Example))
	})
}
