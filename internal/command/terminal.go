package command

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
)

// IsTerminal reports whether a person is at the other end of a stream of a Call.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Colour reports whether what is written to a stream may have colours: on a terminal that
// has them, unless NO_COLOR is set (no-color.org).
func (o *Call) Colour(stream any) bool {
	no, _ := o.Env("NO_COLOR")
	kind, _ := o.Env("TERM")
	return no == "" && kind != "dumb" && IsTerminal(stream)
}

// Raw writes a value as it is. On a terminal it ends with a newline, so that the prompt
// stands on a line of its own.
func (o *Call) Raw(value []byte) error {
	if IsTerminal(o.Stdout) && !bytes.HasSuffix(value, []byte("\n")) {
		value = append(bytes.Clone(value), '\n')
	}
	_, err := io.Copy(o.Stdout, bytes.NewReader(value))
	return err
}

// WriteTable writes rows, with their columns below each other.
func WriteTable(out io.Writer, rows ...[]string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}
