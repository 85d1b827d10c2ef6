// Package following answers: what is done at each change? It has the command watch,
// which prints changes, or runs a command for each. How changes are told, and told on when a
// node fails, is for package client.
package following

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"raftkv/client"
	"raftkv/internal/child"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Commands returns the commands of this room.
func Commands() []command.Command {
	return []command.Command{{
		Name: "watch", Args: "[KEY...] [-- COMMAND [ARG...]]", About: "tell of changes, or run a command for each", Remote: true, New: newWatch,
		Long: `Tells of each change of each KEY and of the keys under --prefix, which is repeatable, of
all keys without them: a line each with the revision, what has happened (put, delete or
expire), the key and the value. It goes on at another node when one fails, and leaves
nothing out. With --state it tells first what is there, as puts, then says synced. With
--after it begins behind a revision; if the changes from there on are not known any more
it ends, exit 1.

With COMMAND behind --, or --exec, that is run for each change, one after the other: the
change as JSON on its standard input, with the key in RAFTKV_KEY, the revision in
RAFTKV_REVISION, and put, delete or expire in RAFTKV_TYPE. It is no text for a shell,
and a key cannot become one. What comes while it runs waits. If it fails, watch ends
with its exit status, unless there is --keep-going. A signal ends COMMAND, too.
RAFTKV_TOKEN and RAFTKV_TOKEN_FILE are taken out of its environment, unless there is
--keep-token.

Who needs each change once, across restarts, keeps the revision of the last one that was
dealt with, and begins there with --after. The changes of one transaction have one
revision.`,
		Example: `raftkv watch --prefix config/
raftkv watch deploy --limit 1
raftkv watch --prefix config/ --state -- ./render --all
raftkv watch site.conf --types put --state -- sh -c 'raftkv get "$RAFTKV_KEY" >new && mv new site.conf && ./reload'
raftkv watch --prefix jobs/ --types put --output json | jq -r .key`,
	}}
}

// flags are those of watch.
type flags struct {
	cfg       client.WatchConfig
	exec      string
	limit     uint64
	keepGoing bool
	keepToken bool
}

func newWatch() command.Action {
	f := new(flags)
	toggle := func(flag, help string, field *bool) config.Setting {
		return config.Setting{Flag: flag, Help: help + " (false)", Set: config.Into(field, strconv.ParseBool, "true or false")}
	}
	return command.Action{
		Settings: []config.Setting{
			{Flag: "prefix", Arg: "P", Help: "changes of keys that begin with P; repeatable (all keys)", Repeats: true, Set: add(&f.cfg.Prefixes)},
			{Flag: "types", Arg: "LIST", Help: "only these of put, delete, expire (all)", Set: config.Into(&f.cfg.Types, parseTypes, "")},
			{Flag: "after", Arg: "REVISION", Help: "begin behind it, 0 with the first (now)", Set: config.Into(&f.cfg.After, parseAfter, "a revision")},
			toggle("state", "tell first what is there", &f.cfg.State),
			toggle("keys-only", "leave values out", &f.cfg.KeysOnly),
			{Flag: "limit", Arg: "N", Help: "end behind so many (none)", Set: config.Into(&f.limit, parseLimit, "")},
			{Flag: "exec", Arg: "COMMAND", Help: "run this for each; its arguments stand behind -- (none)", Set: config.Into(&f.exec, config.ParseText, "")},
			toggle("keep-going", "go on when COMMAND fails", &f.keepGoing),
			toggle("keep-token", "leave RAFTKV_TOKEN and RAFTKV_TOKEN_FILE in COMMAND's environment", &f.keepToken),
		},
		Check: f.check,
		Run:   f.run,
	}
}

func add(list *[]string) func(string) error {
	return func(s string) error {
		if s == "" {
			return errors.New("expected a value")
		}
		*list = append(*list, s)
		return nil
	}
}

func parseTypes(s string) (types []client.EventType, err error) {
	for t := range strings.SplitSeq(s, ",") {
		switch t := client.EventType(t); t {
		case client.Put, client.Delete, client.Expire:
			types = append(types, t)
		default:
			return nil, errors.New("expected put, delete and expire, with commas between")
		}
	}
	return types, nil
}

func parseAfter(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if n == 0 {
		n = client.Beginning
	}
	return n, err
}

func parseLimit(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, errors.New("expected a number from 1 on")
	}
	return n, nil
}

func (f *flags) check(o *command.Call) {
	f.cfg.Keys = o.Args
	wrong := func(text string) { o.Review.Errs = append(o.Review.Errs, errors.New(text)) }
	if f.cfg.State && f.cfg.After != 0 {
		wrong("expected only one of --state and --after")
	}
	if o.Program != nil && len(o.Program) == 0 && f.exec == "" {
		wrong("expected COMMAND behind --")
	}
	if f.program(o) == nil && (f.keepGoing || f.keepToken) {
		wrong("expected COMMAND beside --keep-going and --keep-token")
	}
}

// program is the command line that is run for each event, or nil.
func (f *flags) program(o *command.Call) []string {
	if f.exec == "" {
		return o.Program
	}
	return slices.Concat([]string{f.exec}, o.Program)
}

func (f *flags) run(ctx context.Context, o *command.Call) error {
	do := func(e event) error { return say(o, e) }
	if program := f.program(o); program != nil {
		if err := child.Find(program[0]); err != nil {
			return command.ExitError{Status: child.Code(err), Err: err}
		}
		stdout, stderr, err := outputs(o)
		if err != nil {
			return err
		}
		h := hook{
			program: program, keepGoing: f.keepGoing, keepToken: f.keepToken, said: o.Stderr,
			start: func(c child.Command) (process, error) {
				c.Stdout, c.Stderr = stdout, stderr
				return child.Start(c)
			},
		}
		do = func(e event) error { return h.run(ctx, e) }
	}
	c, err := o.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f.follow(ctx, func(cfg client.WatchConfig) iter.Seq2[client.Change, error] { return c.Watch(ctx, cfg) }, do)
}

// outputs are the files that a command writes to: those of this process.
func outputs(o *command.Call) (stdout, stderr *os.File, err error) {
	stdout, ok := o.Stdout.(*os.File)
	stderr, ok2 := o.Stderr.(*os.File)
	if !ok || !ok2 {
		return nil, nil, errors.New("a command can be run with files as its output alone")
	}
	return stdout, stderr, nil
}

// event is a line of the output. Of a state that is told, Revision is the key's; of a change, the
// change's. One of type synced has no item.
type event struct {
	Revision uint64           `json:"revision"`
	Type     client.EventType `json:"type"`
	command.Item
}

// synced is the type of the event that says that all of the state was told.
const synced client.EventType = "synced"

// errLimit ends a watch that has told enough.
var errLimit = errors.New("enough")

// follow does something at each event. It ends without an error when ctx ends: a watch that is
// asked to stop has done all that it was there for.
func (f *flags) follow(ctx context.Context, watch func(client.WatchConfig) iter.Seq2[client.Change, error], do func(event) error) error {
	cfg, told := f.cfg, uint64(0)
	var failed error
	each := func(e event) error {
		if failed != nil {
			return failed
		}
		if failed = do(e); failed == nil && e.Type != synced {
			if told++; told == f.limit {
				failed = errLimit
			}
		}
		return failed
	}
	if cfg.State {
		cfg.Synced = func(revision uint64) { _ = each(event{Revision: revision, Type: synced}) } // seen below
	}
	for change, err := range watch(cfg) {
		if failed == nil && err != nil && ctx.Err() == nil {
			return err
		}
		if failed != nil || err != nil {
			break
		}
		for _, e := range change.Events {
			line := event{Revision: change.Revision, Type: e.Type, Item: command.ItemOf(e.Item)}
			if line.Revision == 0 {
				line.Revision = e.ModRevision
			}
			if each(line) != nil {
				break
			}
		}
		if failed != nil {
			break
		}
	}
	if errors.Is(failed, errLimit) || ctx.Err() != nil {
		return nil
	}
	return failed
}

// MarshalJSON leaves the fields of an item out that an event does not have.
func (e event) MarshalJSON() ([]byte, error) {
	short := struct {
		Revision uint64           `json:"revision"`
		Type     client.EventType `json:"type"`
		Key      string           `json:"key,omitempty"`
	}{e.Revision, e.Type, e.Key}
	if e.Type != client.Put {
		return json.Marshal(short)
	}
	type plain event
	return json.Marshal(plain(e))
}

// shownBytes is how much of a value a line for people has.
const shownBytes = 200

// say prints an event.
func say(o *command.Call, e event) error {
	return o.Print(e, func(w io.Writer) error {
		line := fmt.Sprintf("%d\t%s", e.Revision, e.Type)
		if e.Type != synced {
			line += "\t" + printable(e.Key)
		}
		switch {
		case e.Value != nil:
			line += "\t" + printable(*e.Value)
		case e.Base64 != nil:
			line += fmt.Sprintf("\t(%d bytes)", len(e.Base64))
		}
		_, err := io.WriteString(w, line+"\n")
		return err
	})
}

// printable is a text on one line, and not more of it than one can look at.
func printable(s string) string {
	cut := ""
	if len(s) > shownBytes {
		end := shownBytes
		for !utf8.RuneStart(s[end]) {
			end--
		}
		s, cut = s[:end], "..."
	}
	quoted := strconv.Quote(s)
	if quoted != `"`+s+`"` {
		s = quoted
	}
	return s + cut
}

// process is a command that runs; *child.Child is one.
type process interface {
	Done() <-chan struct{}
	Code() int
	End(kill time.Time) error
}

// hook runs a command for each event.
type hook struct {
	program   []string
	keepGoing bool
	keepToken bool
	said      io.Writer
	start     func(child.Command) (process, error)
}

// hookGrace is how long a command has to clean up when the watch is to end.
const hookGrace = 5 * time.Second

// run runs the command for one event, and waits for it. Without keepGoing the error of a
// command that fails has its exit status.
func (h *hook) run(ctx context.Context, e event) error {
	if e.Type == synced {
		return nil
	}
	input, err := json.Marshal(e)
	if err != nil {
		return err
	}
	set := map[string]string{"RAFTKV_KEY": e.Key, "RAFTKV_REVISION": strconv.FormatUint(e.Revision, 10), "RAFTKV_TYPE": string(e.Type)}
	var without []string
	if !h.keepToken {
		without = child.TokenVariables
	}
	p, err := h.start(child.Command{Args: h.program, Env: child.Environment(os.Environ(), set, without...), Input: append(input, '\n')})
	if err != nil {
		return command.ExitError{Status: child.Code(err), Err: err}
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return p.End(time.Now().Add(hookGrace))
	}
	code := p.Code()
	if code == 0 {
		return nil
	}
	err = fmt.Errorf("%s ended with status %d at revision %d, key %q", h.program[0], code, e.Revision, e.Key)
	if h.keepGoing {
		_, _ = fmt.Fprintf(h.said, "raftkv watch: %v\n", err) // nobody is left to tell of an error
		return nil
	}
	return command.ExitError{Status: code, Err: err}
}
