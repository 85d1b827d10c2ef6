package remote

import (
	"context"
	"fmt"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"strconv"
	"time"
)

// Commands about single keys.

func keyCommands() []command.Command {
	return []command.Command{{
		Name: "get", Args: "KEY", About: "print the value of a key", Remote: true, New: newGet,
		Long: `Prints the value byte for byte; on a terminal it ends with a newline. With --output json
it is the item, with its revision and what is left of its time. Exit 3 if there is no such key.

The value is what the cluster has: it reflects every write that was acknowledged before.
With --stale or --min-revision the node that is asked answers by itself.`,
		Example: "raftkv get greeting\nraftkv get --wait 30s jobs/done\nraftkv get greeting --output json",
	}, {
		Name: "put", Args: "KEY [VALUE]", About: "write a key", Remote: true, New: newPut,
		Long: `Writes VALUE, or what is in a file, or on standard input with - or without VALUE. It prints
nothing; with --output json it is the revision of the write. Without --ttl or --lease the
key stays. Exit 3 if a condition does not hold; nothing is written then.

A VALUE that begins with a dash stands behind --, as in raftkv put key -- -v.`,
		Example: "raftkv put greeting hello\nraftkv put config -f app.conf\ndate | raftkv put now\nraftkv put lock me --if-absent --ttl 30s",
	}, {
		Name: "delete", Args: "[KEY]", About: "delete a key, or all under a prefix", Remote: true, New: newDelete,
		Long: `Deletes a key, exit 3 if it is not there; or with --prefix all keys under that, in one
revision, and prints how many there were. All keys of the cluster need --all.`,
		Example: "raftkv delete greeting\nraftkv delete --prefix jobs/\nraftkv delete greeting --if-revision 7",
	}, {
		Name: "list", Args: "[PREFIX]", About: "list keys and values", Remote: true, New: newList,
		Long: `Lists the keys under PREFIX, all without one, in order. In the table a value stands in one
line and is cut when it is long; with --output json each item is a line, with all of it.
With --keys-only there are just the keys, one a line. --delimiter / lists as a directory does:
what has a / behind the prefix is one line for each first part.`,
		Example: "raftkv list app/\nraftkv list app/ --keys-only --limit 10\nraftkv list app/ --delimiter /\nraftkv list --count",
	}, {
		Name: "add", Args: "KEY [DELTA]", About: "add to the number at a key, and print the new one", Remote: true, New: newAdd,
		Long: `Adds DELTA, 1 without it, to the decimal number at the key, and prints the new one. A key
that is missing counts as 0. --ttl counts when this creates the key. It is added once at
most, however often the request had to be sent.`,
		Example: "raftkv add visits\nraftkv add stock -3\nraftkv add calls/10.0.0.1 --ttl 1m",
	}, {
		Name: "append", Args: "PREFIX [VALUE]", About: "write a value under a new key, and print that", Remote: true, New: newAppend,
		Long: `Writes VALUE, or what is in a file or on standard input, under the next key that begins
with PREFIX, and prints the key. Keys of later calls are behind those of earlier ones: a
queue.`,
		Example: "raftkv append jobs/ 'resize image 7'",
	}}
}

// readFlags are how fresh a read has to be.
type readFlags struct {
	stale    bool
	maxAge   time.Duration
	revision uint64
}

func (f *readFlags) settings() []config.Setting {
	return []config.Setting{
		toggle("stale", "what the node that is asked has, at once", &f.stale),
		period("max-age", "with one of the others: it has heard from the leader within that time", &f.maxAge),
		number("min-revision", "REVISION", "what the node that is asked has, once it has that revision", &f.revision),
	}
}

func (f *readFlags) check(o *command.Call) {
	excludes(o, "stale", "min-revision")
	if f.maxAge > 0 && !f.stale && f.revision == 0 {
		o.Review.Check("max-age", f.maxAge, fmt.Errorf("expected also --stale or --min-revision"))
	}
}

func (f *readFlags) options() (all []client.ReadOption) {
	if f.stale {
		all = append(all, client.Stale())
	}
	if f.maxAge > 0 {
		all = append(all, client.MaxAge(f.maxAge))
	}
	if f.revision > 0 {
		all = append(all, client.MinRevision(f.revision))
	}
	return all
}

func newGet() command.Action {
	var f readFlags
	var wait time.Duration
	return command.Action{
		Settings: append(f.settings(), period("wait", "wait so long for a key that is not there", &wait)),
		Check:    f.check,
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			item, err := get(ctx, c, o.Arg(0), wait, f.options())
			if err != nil {
				return err
			}
			if o.Output == command.JSON {
				return o.PrintJSON(command.ItemOf(item))
			}
			return o.Raw(item.Value)
		}),
	}
}

// writeFlags are the conditions and the life of a write.
type writeFlags struct {
	absent, present bool
	revision, lease uint64
	ttl             time.Duration
}

func (f *writeFlags) conditions() []config.Setting {
	return []config.Setting{
		toggle("if-absent", "only if there is no such key; else exit 3", &f.absent),
		toggle("if-present", "only if the key is there; else exit 3", &f.present),
		number("if-revision", "REVISION", "only if the key was last written in that revision; else exit 3", &f.revision),
	}
}

func (f *writeFlags) life() []config.Setting {
	return []config.Setting{
		period("ttl", "the key goes away by itself after that time, 100ms to a year (it stays)", &f.ttl),
		number("lease", "ID", "the key goes away with that lease (none)", &f.lease),
	}
}

func (f *writeFlags) check(o *command.Call) {
	excludes(o, "if-absent", "if-present", "if-revision")
	excludes(o, "ttl", "lease")
}

func (f *writeFlags) options() (all []client.WriteOption) {
	if f.absent {
		all = append(all, client.IfAbsent())
	}
	if f.present {
		all = append(all, client.IfPresent())
	}
	if f.revision > 0 {
		all = append(all, client.IfRevision(f.revision))
	}
	if f.ttl > 0 {
		all = append(all, client.TTL(f.ttl))
	}
	if f.lease > 0 {
		all = append(all, client.WithLease(f.lease))
	}
	return all
}

// fileFlag is where a value may come from.
func fileFlag(file *string) config.Setting {
	s := text("file", "FILE", "the value is in this file; - is standard input", file)
	s.Short = "f"
	return s
}

func newPut() command.Action {
	var f writeFlags
	var file string
	return command.Action{
		Settings: append(append([]config.Setting{fileFlag(&file)}, f.conditions()...), f.life()...),
		Check: func(o *command.Call) {
			f.check(o)
			checkValue(o, 1, file)
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			v, err := value(o, 1, file)
			if err != nil {
				return err
			}
			revision, err := c.Put(ctx, o.Arg(0), v, f.options()...)
			if err != nil {
				return err
			}
			return o.Print(written{o.Arg(0), revision}, silent)
		}),
	}
}

// written is the answer to a write, in JSON.
type written struct {
	Key      string `json:"key"`
	Revision uint64 `json:"mod_revision"`
}

func newDelete() command.Action {
	var f writeFlags
	var prefix string
	var all bool
	return command.Action{
		Settings: append(config.Only(f.conditions(), "if-revision"),
			text("prefix", "PREFIX", "all keys that begin with it", &prefix), toggle("all", "all keys of the cluster", &all)),
		Check: func(o *command.Call) {
			given := 0
			for _, g := range []bool{len(o.Args) > 0, prefix != "", all} {
				if g {
					given++
				}
			}
			if given != 1 && o.Review.Sound("prefix", "all") {
				o.Review.Errs = append(o.Review.Errs, fmt.Errorf("expected KEY, --prefix or --all, and only one of them"))
			}
			if f.revision > 0 && len(o.Args) == 0 {
				o.Review.Check("if-revision", f.revision, fmt.Errorf("expected only with KEY"))
			}
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			if len(o.Args) > 0 {
				deleted, err := c.Delete(ctx, o.Arg(0), f.options()...)
				if err == nil && !deleted {
					err = command.No("there is no key %q", o.Arg(0))
				}
				if err != nil {
					return err
				}
				return o.Print(deletedKeys{1}, silent)
			}
			var n int
			var err error
			if all {
				n, err = c.DeleteAll(ctx)
			} else {
				n, err = c.DeletePrefix(ctx, prefix)
			}
			if err != nil {
				return err
			}
			return o.Print(deletedKeys{n}, line(n))
		}),
	}
}

type deletedKeys struct {
	Deleted int `json:"deleted"`
}

func newAdd() command.Action {
	var f writeFlags
	delta := int64(1)
	return command.Action{
		Settings: append(f.conditions(), config.Only(f.life(), "ttl")...),
		Check: func(o *command.Call) {
			f.check(o)
			if len(o.Args) > 1 {
				delta = operand(o, 1, "DELTA", parseDelta)
			}
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			n, err := c.Add(ctx, o.Arg(0), delta, f.options()...)
			if err != nil {
				return err
			}
			return o.Print(struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			}{o.Arg(0), strconv.FormatInt(n, 10)}, line(n))
		}),
	}
}

func parseDelta(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("expected a whole number of 64 bits")
	}
	return n, nil
}

func newAppend() command.Action {
	var f writeFlags
	var file string
	return command.Action{
		Settings: append([]config.Setting{fileFlag(&file)}, f.life()...),
		Check: func(o *command.Call) {
			f.check(o)
			checkValue(o, 1, file)
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			v, err := value(o, 1, file)
			if err != nil {
				return err
			}
			key, revision, err := c.Append(ctx, o.Arg(0), v, f.options()...)
			if err != nil {
				return err
			}
			return o.Print(written{key, revision}, line(key))
		}),
	}
}
