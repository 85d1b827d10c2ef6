package remote

import (
	"context"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// The command list.

// line prints one value on a line.
func line(v any) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := fmt.Fprintln(w, v)
		return err
	}
}

// listFlags are what of a range is told.
type listFlags struct {
	readFlags
	limit                          uint64
	start, end, delimiter          string
	reverse, keysOnly, count, once bool
}

func (f *listFlags) settings() []config.Setting {
	return append([]config.Setting{
		toggle("keys-only", "no values", &f.keysOnly),
		number("limit", "N", "so many at most (all)", &f.limit),
		toggle("reverse", "from the last key to the first", &f.reverse),
		text("start", "KEY", "from this key on", &f.start),
		text("end", "KEY", "up to this key, and without it", &f.end),
		text("delimiter", "TEXT", "as a directory: one line for all that has the same up to TEXT", &f.delimiter),
		toggle("count", "just how many there are", &f.count),
		toggle("one-revision", "what was there at one moment, in one stream, however much it is", &f.once),
	}, f.readFlags.settings()...)
}

func (f *listFlags) check(o *command.Call) {
	f.readFlags.check(o)
	excludes(o, "count", "delimiter", "one-revision")
	if f.limit > maxLimit {
		o.Review.Check("limit", f.limit, fmt.Errorf("expected at most %d", maxLimit))
	}
}

// maxLimit is the largest --limit.
const maxLimit = 1 << 31

func (f *listFlags) options() (all []client.ListOption) {
	for _, o := range f.readFlags.options() {
		all = append(all, o)
	}
	if f.limit > 0 {
		all = append(all, client.Limit(int(f.limit)))
	}
	if f.start != "" {
		all = append(all, client.Start(f.start))
	}
	if f.end != "" {
		all = append(all, client.End(f.end))
	}
	for _, o := range []struct {
		given  bool
		option func() client.ListOption
	}{{f.reverse, client.Reverse}, {f.keysOnly, client.KeysOnly}, {f.once, client.OneRevision}} {
		if o.given {
			all = append(all, o.option())
		}
	}
	return all
}

func newList() command.Action {
	var f listFlags
	return command.Action{
		Settings: f.settings(), Check: f.check,
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			switch {
			case f.count:
				n, err := c.Count(ctx, o.Arg(0), f.options()...)
				if err != nil {
					return err
				}
				return o.Print(struct {
					Count int `json:"count"`
				}{n}, line(n))
			case f.delimiter != "":
				return f.groups(ctx, o, c)
			}
			rows := newRows(o, f.keysOnly)
			for item, err := range c.List(ctx, o.Arg(0), f.options()...) {
				if err == nil {
					err = rows.item(item)
				}
				if err != nil {
					return rows.broke(err)
				}
			}
			return rows.end()
		}),
	}
}

func (f *listFlags) groups(ctx context.Context, o *command.Call, c *client.Client) error {
	rows := newRows(o, f.keysOnly)
	for entry, err := range c.Groups(ctx, o.Arg(0), f.delimiter, f.options()...) {
		switch {
		case err != nil:
		case entry.Item != nil:
			err = rows.item(*entry.Item)
		default:
			err = rows.group(entry.Group)
		}
		if err != nil {
			return rows.broke(err)
		}
	}
	return rows.end()
}

// rows prints items, as they come.
type rows struct {
	o        *command.Call
	keysOnly bool
	w        *tabwriter.Writer
	n        int
}

// flushEvery is how many rows are put below each other before they are written.
const flushEvery = 1000

func newRows(o *command.Call, keysOnly bool) *rows {
	return &rows{o: o, keysOnly: keysOnly, w: tabwriter.NewWriter(o.Stdout, 0, 0, 2, ' ', 0)}
}

func (r *rows) item(i client.Item) error {
	switch {
	case r.o.Output == command.JSON:
		return r.o.PrintJSON(command.ItemOf(i))
	case r.keysOnly:
		return r.row(i.Key, "")
	}
	return r.row(i.Key, "\t"+oneLine(i.Value))
}

func (r *rows) group(prefix string) error {
	if r.o.Output == command.JSON {
		return r.o.PrintJSON(struct {
			Prefix string `json:"prefix"`
		}{prefix})
	}
	return r.row(prefix, "")
}

func (r *rows) row(key, rest string) error {
	if rest != "" || strings.ContainsAny(key, "\n\t\v\f") {
		key = oneLine([]byte(key))
	}
	_, err := fmt.Fprintf(r.w, "%s%s\n", key, rest)
	if r.n++; err == nil && r.n%flushEvery == 0 {
		err = r.w.Flush()
	}
	return err
}

// broke writes what came before an error.
func (r *rows) broke(err error) error {
	_ = r.w.Flush() // that err is told is more important
	return err
}

func (r *rows) end() error { return r.w.Flush() }

// longestValue is how many characters of a value stand in a table.
const longestValue = 80

// oneLine returns a value as it stands in a table.
func oneLine(v []byte) string {
	text, valid := string(v), utf8.Valid(v)
	if n := len(v); !valid && n > longestValue {
		text = string(v[:longestValue-len(cutOff)]) + cutOff
	} else if valid && utf8.RuneCountInString(text) > longestValue {
		text = string([]rune(text)[:longestValue-len(cutOff)]) + cutOff
	}
	if !valid || strings.HasPrefix(text, `"`) || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(text)
	}
	return text
}

// cutOff stands for what is not shown of a value.
const cutOff = "..."
