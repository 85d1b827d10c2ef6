package offline

import (
	"fmt"
	"raftkv/internal/config"
	"strings"
)

// Usage returns the text of --help.
func Usage() string {
	var b strings.Builder
	b.WriteString(`raftkv is a replicated key-value server; its client is curl. With flags alone
it is the server. With a command first, it works on files:

`)
	for _, c := range offlineCommands() {
		fmt.Fprintf(&b, "  raftkv %-19s %s\n", c.name, c.about)
	}
	b.WriteString(`
raftkv COMMAND --help tells more. Flags of the server (default in parentheses):
`)
	for _, s := range new(config.Config).Settings(new(string)) {
		fmt.Fprintf(&b, "  --%-24s %s\n", s.Flag+" "+s.Arg, s.Help)
	}
	b.WriteString(`  --version                  print the versions and exit
  --help                     print this and exit

Each flag but the last two can also be set in the environment: --data-dir is
RAFTKV_DATA_DIR. The flag wins. An empty variable counts as not set.

Examples:
  The first of three members, and the others likewise with --id 2 and --id 3:
    raftkv --id 1 --port 12380 \
      --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379

  A fourth, which adds itself to the running cluster:
    raftkv --id 4 --port 42380 --join \
      --cluster http://127.0.0.1:12379,4=http://127.0.0.1:42379
`)
	return b.String()
}
