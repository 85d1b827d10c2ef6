package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"slices"
	"strings"
)

func importCommand() command.Command {
	return command.Command{
		Name: "import", Args: "FILE", About: "write the keys of an export, of Consul or of etcd", Remote: true, New: newImport,
		Long: `Writes the keys of a file: of raftkv export, of consul kv export, or of etcdctl get
--prefix "" -w json. FILE - is standard input. The file is read whole first: if it is
cut short or damaged, or if something in it cannot be a key here (empty, longer than
4096 bytes, a NUL, no UTF-8), that is told, all of it, and nothing is written.

Keys that are there are overwritten, with --if-absent they stay as they are. Keys are
written in transactions of up to 128, so others see some of them before the rest. What
was interrupted can be run again.

Revisions are not kept, and neither are leases, TTLs, Consul's flags and sessions: keys
that would have gone by themselves, such as locks, are left out, or with --keep-expiring
written to stay.`,
		Example: `raftkv import all.ndjson --dry-run
raftkv import all.ndjson
consul kv export app/ | raftkv import - --if-absent
etcdctl get --prefix "" -w json | raftkv import - --add-prefix from-etcd/`,
	}
}

func newImport() command.Action {
	p, dry := &plan{format: formatAuto}, false
	formats := []string{formatAuto, formatRaftkv, formatConsul, formatEtcd}
	return command.Action{
		Settings: []config.Setting{
			toggle("dry-run", "read and check the file, and write nothing", &dry),
			toggle("if-absent", "leave keys alone that are there", &p.ifAbsent),
			toggle("keep-expiring", "also write keys that had a TTL or a lease, to stay", &p.keepExpiring),
			text("strip-prefix", "P", "take P off the beginning of each key (none)", &p.strip),
			text("add-prefix", "P", "put P before each key (none)", &p.add),
			{Flag: "format", Arg: "FORMAT", Choices: formats, Help: strings.Join(formats, ", ") + " (auto, which looks)",
				Set: config.Into(&p.format, func(s string) (string, error) {
					if !slices.Contains(formats, s) {
						return "", errors.New("unknown")
					}
					return s, nil
				}, "one of "+strings.Join(formats, ", "))},
		},
		Run: func(ctx context.Context, o *command.Call) error { return runImport(ctx, o, p, dry) },
	}
}

// report is the answer of import.
type report struct {
	*survey
	written
	DryRun bool `json:"dry_run"`
}

func runImport(ctx context.Context, o *command.Call, p *plan, dry bool) (err error) {
	file, err := openTwice(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	found, err := p.survey(ctx, file)
	if err != nil {
		return fmt.Errorf("%s: %w; nothing was written", o.Arg(0), err)
	}
	p.format = found.Format
	if found.Bad > 0 {
		for _, problem := range found.problems {
			fmt.Fprintf(o.Stderr, "%s\n", problem)
		}
		return fmt.Errorf("%s has %d that cannot be keys here; nothing was written", o.Arg(0), found.Bad)
	}
	if o.Output != command.JSON {
		p.warn(o.Stderr, found)
	}
	if dry {
		return o.Print(report{survey: found, DryRun: true}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "would write %d keys with values of %d bytes, the largest of %d; nothing was written\n", found.Keys, found.Bytes, found.Largest)
			return err
		})
	}
	return withClient(o, func(c *client.Client) error {
		result, err := writeFile(ctx, o, p, file, clientStore{c})
		if err != nil {
			return fmt.Errorf("stopped with %d keys written; to run it again writes the others: %w", result.Keys, err)
		}
		return o.Print(report{survey: found, written: result}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "wrote %d keys\n", result.Keys)
			if p.ifAbsent && err == nil {
				_, err = fmt.Fprintf(w, "left %d alone that were there\n", result.Present)
			}
			return err
		})
	})
}

// writeFile writes what is in a file that was surveyed.
func writeFile(ctx context.Context, o *command.Call, p *plan, file *os.File, s store) (written, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return written{}, err
	}
	seen, done := startProgress(o, size, "import")
	defer done()
	im := importer{plan: p, store: s}
	return im.run(ctx, io.TeeReader(file, seen))
}

// warn says what of a file gets lost.
func (p *plan) warn(w io.Writer, s *survey) {
	switch {
	case s.Expiring > 0 && p.keepExpiring:
		fmt.Fprintf(w, "%d keys had a TTL or a lease; they stay from now on\n", s.Expiring)
	case s.Expiring > 0:
		fmt.Fprintf(w, "%d keys with a TTL or a lease are left out (--keep-expiring)\n", s.Expiring)
	}
	if s.Flags > 0 {
		fmt.Fprintf(w, "%d keys lose their flags of Consul\n", s.Flags)
	}
}

// openTwice opens a file so that it can be read twice. Standard input goes to a
// temporary file that nobody else sees, unless it is a file itself.
func openTwice(ctx context.Context, o *command.Call) (*os.File, error) {
	from := o.Stdin
	if o.Arg(0) != "-" {
		f, err := os.Open(o.Arg(0))
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return f, nil
		}
		defer func() { _ = f.Close() }() // it is only read
		from = f
	}
	f, err := os.CreateTemp("", "raftkv-import-*")
	if err != nil {
		return nil, err
	}
	fill := func() error {
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
		if _, err := io.Copy(f, untilDone{ctx, from}); err != nil {
			return err
		}
		_, err := f.Seek(0, io.SeekStart)
		return err
	}
	if err := fill(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	in  io.Reader
}

func (u untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.in.Read(b)
}

// clientStore is a cluster.
type clientStore struct{ c *client.Client }

func (s clientStore) write(ctx context.Context, entries []entry, ifAbsent bool) (written bool, err error) {
	if len(entries) == 1 { // not bounded by what a transaction may have
		var options []client.WriteOption
		if ifAbsent {
			options = append(options, client.IfAbsent())
		}
		_, err = s.c.Put(ctx, entries[0].key, entries[0].value, options...)
		if ifAbsent && errors.Is(err, client.PreconditionFailed) {
			return false, nil
		}
		return err == nil, tooLarge(err)
	}
	var conditions []client.Cond
	var ops []client.Op
	for _, e := range entries {
		if ifAbsent {
			conditions = append(conditions, client.Key(e.key).Missing())
		}
		ops = append(ops, client.PutOp(e.key, e.value))
	}
	result, err := s.c.Txn().If(conditions...).Then(ops...).Commit(ctx)
	return err == nil && result.Succeeded, tooLarge(err)
}

// tooLarge makes an error match errTooLarge if it says so.
func tooLarge(err error) error {
	if errors.Is(err, client.TooLarge) {
		return fmt.Errorf("%w: %w", errTooLarge, err)
	}
	return err
}
