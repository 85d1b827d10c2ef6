package transfer

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/durable"
)

func exportCommand() command.Command {
	return command.Command{
		Name: "export", Args: "[PREFIX]", About: "write keys and values as lines of JSON", Remote: true, New: newExport,
		Long: `Writes the keys under PREFIX, all without one, as they were at one revision: a line with
that revision, a line for each key, and {"end":true,"count":N}. A file without that last
line is not whole, and import refuses it. With --file the file is replaced once all is
in it; if that fails it stays as it was, exit 1.

What an export is for is moving keys, or working on them with jq. A backup (raftkv
backup) also has members, leases and revisions.`,
		Example: "raftkv export > all.ndjson\nraftkv export app/ --file app.ndjson\nraftkv export | jq -r 'select(.key).key'",
	}
}

func newExport() command.Action {
	var file string
	return command.Action{
		Settings: []config.Setting{fileFlag(&file)},
		Run: func(ctx context.Context, o *command.Call) error {
			return withClient(o, func(c *client.Client) error {
				seen, done := startProgress(o, -1, "export")
				defer done()
				write := func(w io.Writer) error {
					return writeExport(io.MultiWriter(w, seen), c.List(ctx, o.Arg(0), client.OneRevision()), c.Revision)
				}
				if toStdout(o, file) {
					return write(o.Stdout)
				}
				path, err := inRealDir(file)
				if err != nil {
					return err
				}
				return durable.WriteFile(path, write)
			})
		},
	}
}

// writeExport writes items as the HTTP API streams them. They are of the revision that
// revision returns once the first has come.
func writeExport(w io.Writer, items iter.Seq2[client.Item, error], revision func() uint64) error {
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	count, begun := 0, false
	begin := func() error {
		if begun {
			return nil
		}
		begun = true
		return enc.Encode(struct {
			Revision uint64 `json:"revision"`
		}{revision()})
	}
	for item, err := range items {
		if err == nil {
			err = begin()
		}
		if err == nil {
			count++
			err = enc.Encode(command.ItemOf(item))
		}
		if err != nil {
			_ = out.Flush() // what has come may be of use, and its end tells that it is not all
			return err
		}
	}
	if err := begin(); err != nil {
		return err
	}
	err := enc.Encode(struct {
		End   bool `json:"end"`
		Count int  `json:"count"`
	}{true, count})
	if err != nil {
		return err
	}
	return out.Flush()
}

func fileFlag(file *string) config.Setting {
	s := text("file", "FILE", "write to this file (standard output)", file)
	s.Short = "f"
	return s
}
