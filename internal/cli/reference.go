package cli

import (
	"fmt"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// Reference returns docs/cli.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("# The command line\n\n" + referenceHead)
	sections(&b, Commands(), "", 2)
	b.WriteString("## The server\n\n```text\n" + config.FlagTable(serverSettings()) + "```\n")
	return b.String()
}

const referenceHead = ``

// sections writes a section for each command.
func sections(b *strings.Builder, commands []command.Command, before string, depth int) {
	for _, c := range commands {
		name := strings.TrimSpace(before + " " + c.Name)
		fmt.Fprintf(b, "%s raftkv %s\n\n```text\n%s```\n\n", strings.Repeat("#", depth), name, helpOf(name))
		sections(b, c.Sub, name, depth)
	}
}

// manPage returns the man page, as man takes it.
func manPage() string {
	return string(md2man.Render([]byte(Reference())))
}
