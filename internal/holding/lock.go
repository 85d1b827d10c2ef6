package holding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/client"
	"raftkv/internal/child"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"strconv"
	"sync"
	"time"
)

// Exit statuses besides those of the command that runs.
const exitLost = 4 // it was ended, because what it ran under was lost

// Commands returns the commands of this room.
func Commands() []command.Command {
	return []command.Command{lockCommand(), electCommand()}
}

func lockCommand() command.Command {
	return command.Command{
		Name: "lock", Args: "NAME -- COMMAND [ARG...]", About: "run a command while nobody else holds a lock", Remote: true, New: newLock,
		Long: `Waits until it has the lock NAME, runs COMMAND, and gives the lock back. The lock is the
key lock/NAME, which lives as long as a lease: programs that use package client, and
curl, mean the same one. COMMAND is no text for a shell; sh -c 'TEXT' is one.

The exit status is that of COMMAND, 128 and the signal's number if a signal has ended
it; 3 if the lock was not got within --wait (0s: at once), 4 if it was lost and COMMAND
was ended, 126 or 127 if COMMAND cannot be run. Signals go to COMMAND, and standard
input and output are its own.

What is promised: COMMAND runs only while the lock is held. When its lease cannot be
kept alive, COMMAND gets SIGTERM in time, and SIGKILL after --grace, and has ended
before anybody else can get the lock; so has everything else in its process group, which
is also ended when COMMAND has. A second process sees to that while raftkv itself is
stopped, or if it is killed. What has made a group of its own, as timeout does if a shell
of COMMAND starts it, is found on Linux while its parents run, but not if raftkv is
killed. A daemon, which nobody waits for, is not found.

What is not: if the lease is revoked (raftkv lease revoke) or its key deleted, others
can have the lock at once. Then, or if a whole machine stands still for longer than
--ttl, or its clock goes wrong by more than one in a hundred, COMMAND may overlap with
the next holder; and what it has sent elsewhere may arrive late in any case. Against
that there is only the fencing token, in RAFTKV_FENCE, which is larger for each holder:
what the lock protects has to refuse one that is smaller than one it has seen. If that
is in raftkv itself, a transaction refuses it, with the condition that the key in
RAFTKV_KEY has RAFTKV_FENCE as its create_revision.

RAFTKV_TOKEN and RAFTKV_TOKEN_FILE are not in COMMAND's environment, unless there is
--keep-token.`,
		Example: `raftkv lock nightly -- ./make-report --all
raftkv lock deploy --wait 10s -- sh -c './deploy "$RAFTKV_FENCE"'
raftkv lock migrate --wait 0s -- ./migrate || [ $? = 3 ]`,
	}
}

func electCommand() command.Command {
	return command.Command{
		Name: "elect", Args: "NAME [-- COMMAND [ARG...]]", About: "run a command while this one is the leader, or tell who is", Remote: true, New: newElect,
		Long: `Waits until it is the leader of NAME, runs COMMAND, and resigns when COMMAND has ended.
The leader is who holds the key leader/NAME, whose value is --value: where others find
the leader, for example. For the rest it is as raftkv lock: COMMAND is ended before
there can be another leader, RAFTKV_FENCE has the fencing token, and the exit statuses
are the same.

Without COMMAND, and with --observe, it tells who leads, a line for each change until a
signal comes: the fencing token and the value, or 0 while nobody leads.`,
		Example: `raftkv elect scheduler --value http://10.0.0.7:8080 -- ./scheduler
raftkv elect scheduler --observe`,
	}
}

// defaultGracePart is the part of --ttl that --grace is without the flag.
const defaultGracePart = 5

// Limits of --ttl. A shorter one would be lost with each change of leader.
const (
	leastTTL = 2 * time.Second
	mostTTL  = 24 * time.Hour
)

// forever is --wait without the flag.
const forever = -1

// flags are those of lock and elect.
type flags struct {
	ttl       time.Duration
	wait      time.Duration
	grace     time.Duration
	keepToken bool
	value     string
	observe   bool
}

func (f *flags) settings() []config.Setting {
	return []config.Setting{
		{Flag: "wait", Arg: "TIME", Help: "how long to wait for it, 0s for not at all (as long as it takes)", Set: config.Into(&f.wait, parseWait, "")},
		{Flag: "ttl", Arg: "TIME", Help: "it is free this long after raftkv has died (10s)", Set: config.Into(&f.ttl, parseTTL, "")},
		{Flag: "grace", Arg: "TIME", Help: "between SIGTERM and SIGKILL when it is lost (a fifth of --ttl)", Set: config.Into(&f.grace, parseWait, "")},
		{Flag: "keep-token", Help: "leave RAFTKV_TOKEN and RAFTKV_TOKEN_FILE in COMMAND's environment (false)",
			Set: config.Into(&f.keepToken, strconv.ParseBool, "true or false")},
	}
}

func newFlags() *flags { return &flags{ttl: client.DefaultLockTTL, wait: forever, grace: forever} }

func parseWait(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("expected a time with its unit, as in 0s, 500ms or 10s")
	}
	return d, nil
}

func parseTTL(s string) (time.Duration, error) {
	d, err := command.ParsePeriod(s)
	if err == nil && (d < leastTTL || d > mostTTL) {
		err = fmt.Errorf("expected a time from %v to %v", leastTTL, mostTTL)
	}
	return d, err
}

// check notes what is wrong with the flags together.
func (f *flags) check(o *command.Call) {
	if f.grace == forever {
		f.grace = f.ttl / defaultGracePart
	}
	if f.grace > f.ttl/2 && o.Review.Sound("grace", "ttl") {
		o.Review.Check("grace", f.grace, fmt.Errorf("expected at most half of --ttl, %v", f.ttl/2))
	}
	if len(o.Args) > 0 {
		// The name is part of a key, which the node looks at before anything is run.
		if o.Args[0] == "" {
			o.Review.Errs = append(o.Review.Errs, errors.New("expected a NAME that is not empty"))
		}
	}
}

func newLock() command.Action {
	f := newFlags()
	return command.Action{
		Settings: f.settings(), Check: f.check,
		Run: func(ctx context.Context, o *command.Call) error {
			if g, err := guardOf(o.Env); g != nil || err != nil {
				if err != nil {
					return err
				}
				return g.watch(o.Stdin)
			}
			return f.hold(ctx, o, func(c *client.Client) candidate {
				m := c.Mutex(o.Args[0], client.LockTTL(f.ttl))
				return candidate{key: m.Key(), wait: m.Lock, try: m.TryLock, until: m.Until, release: m.Unlock}
			})
		},
	}
}

func newElect() command.Action {
	f := newFlags()
	return command.Action{
		Settings: append(f.settings(),
			config.Setting{Flag: "value", Arg: "TEXT", Help: "what others see of the leader (host name and process ID)", Set: config.Into(&f.value, config.ParseText, "")},
			config.Setting{Flag: "observe", Help: "tell who leads, and run nothing (false)", Set: config.Into(&f.observe, strconv.ParseBool, "true or false")}),
		Check: func(o *command.Call) {
			f.check(o)
			if f.observe == (len(o.Program) > 0) {
				o.Review.Errs = append(o.Review.Errs, errors.New("expected either --observe or -- COMMAND behind it"))
			}
		},
		Run: func(ctx context.Context, o *command.Call) error {
			if f.observe {
				return observe(ctx, o)
			}
			return f.hold(ctx, o, func(c *client.Client) candidate {
				e := c.Election(o.Args[0], client.LockTTL(f.ttl))
				value := []byte(f.value)
				if f.value == "" {
					host, _ := os.Hostname() // for people alone
					value = fmt.Appendf(nil, "%s:%d", host, os.Getpid())
				}
				campaign := func(ctx context.Context) (uint64, context.Context, error) { return e.Campaign(ctx, value) }
				return candidate{key: e.Key(), wait: campaign, until: e.Until, release: e.Resign}
			})
		},
	}
}

// candidate is a key that is to be held: a client.Mutex or a client.Election.
type candidate struct {
	key     string
	wait    func(context.Context) (uint64, context.Context, error)
	try     func(context.Context) (uint64, context.Context, error) // nil: wait a moment
	until   func() time.Time
	release func(context.Context) error
}

// hold gets what make says, and runs the command under it.
func (f *flags) hold(ctx context.Context, o *command.Call, make func(*client.Client) candidate) error {
	if err := child.Find(o.Program[0]); err != nil {
		return command.ExitError{Status: child.Code(err), Err: err}
	}
	files, err := filesOf(o)
	if err != nil {
		return err
	}
	c, err := o.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	signals, stop := passedOn()
	defer stop()
	k := make(c)
	h, err := f.acquire(ctx, c, k, o.Stderr, "raftkv "+o.Name)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // by a signal that came before there was a command to pass it on to
		free, cancel := withoutEnd(ctx, releaseLimit)
		defer cancel()
		return errors.Join(errors.New("interrupted"), h.release(free))
	}
	r := &run{
		hold: h, times: timesOf(f.ttl, f.grace), guard: startGuard, signals: signals, say: o.Stderr, name: "raftkv " + o.Name,
		start: func() (process, error) {
			files.Args, files.Env = o.Program, environment(os.Environ(), h, k.key, f.keepToken)
			return child.Start(files)
		},
	}
	code, err := r.do(ctx)
	switch {
	case errors.Is(err, errLost) && errors.Is(err, errRunsOn):
		return command.ExitError{Status: exitLost, Err: fmt.Errorf("%s, %s: %w", k.key, o.Program[0], err)}
	case errors.Is(err, errLost):
		return command.ExitError{Status: exitLost, Err: fmt.Errorf("%s was lost, and %s was ended", k.key, o.Program[0])}
	case err != nil && code != 0:
		return command.ExitError{Status: code, Err: err}
	case err != nil:
		return err
	case code != 0:
		return command.ExitError{Status: code}
	}
	return nil
}

// filesOf are the command's standard input, output and errors: those of this process.
func filesOf(o *command.Call) (c child.Command, err error) {
	for _, f := range []struct {
		to   **os.File
		from any
	}{{&c.Stdin, o.Stdin}, {&c.Stdout, o.Stdout}, {&c.Stderr, o.Stderr}} {
		file, ok := f.from.(*os.File)
		if !ok {
			return c, errors.New("a command can be run with files as its standard input and output alone")
		}
		*f.to = file
	}
	return c, nil
}

// acquire waits for a key as long as --wait says. The error is one of exit 3 if somebody
// else had it all the time. That the cluster does not answer goes to say, under name.
func (f *flags) acquire(ctx context.Context, c *client.Client, k candidate, say io.Writer, name string) (hold, error) {
	get := k.wait
	waiting, cancel := context.WithCancel(ctx)
	switch {
	case f.wait == 0 && k.try != nil:
		get = k.try
	case f.wait == 0:
		waiting, cancel = context.WithTimeout(ctx, noWait)
	case f.wait > 0:
		waiting, cancel = context.WithTimeout(ctx, f.wait)
	}
	defer cancel()
	telling, stop := context.WithCancel(waiting)
	var told sync.WaitGroup
	told.Go(func() { tellSilence(telling, c, k.key, say, name) })
	fence, held, err := get(waiting)
	stop()
	told.Wait()
	switch {
	case err == nil:
		return hold{fence: fence, held: held, until: k.until, release: k.release}, nil
	case errors.Is(err, client.ErrHeld):
		return hold{}, command.No("%w", err)
	case f.wait < 0 || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
		return hold{}, err
	}
	return hold{}, notGot(ctx, c, k.key, f.wait, err)
}

// tellAfter is how long waiting takes before the cluster is looked at.
const tellAfter = 5 * time.Second

// tellSilence says once, when waiting has taken tellAfter, that the cluster does not answer.
// Waiting for another holder makes no line, so that a job of cron stays silent.
func tellSilence(ctx context.Context, c *client.Client, key string, say io.Writer, name string) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(tellAfter):
	}
	look, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	_, err := c.Get(look, key)
	if err == nil || errors.Is(err, client.NotFound) || ctx.Err() != nil {
		return
	}
	_, _ = fmt.Fprintf(say, "%s: still waiting: %v\n", name, err) // standard error, for people alone
}

// noWait is how long a candidate without try waits that is not to wait.
const noWait = 2 * time.Second

// lookLimit bounds looking who has a key that was not got, or not yet.
const lookLimit = 2 * time.Second

// notGot says who has a key that was not got. Without an answer from the cluster it is
// not known whether anybody has it, and the error is the one of waiting.
func notGot(ctx context.Context, c *client.Client, key string, waited time.Duration, err error) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	item, lookErr := c.Get(ctx, key)
	switch {
	case lookErr == nil:
		return command.No("%s was not got within %v: %.200q has it", key, waited, item.Value)
	case errors.Is(lookErr, client.NotFound):
		return command.No("%s was not got within %v", key, waited)
	}
	return err
}

// leader is a line of --observe in JSON.
type leader struct {
	Fence uint64        `json:"fence"` // 0: nobody leads
	Item  *command.Item `json:"leader,omitempty"`
}

// observe tells who leads until ctx ends.
func observe(ctx context.Context, o *command.Call) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	for item, err := range c.Election(o.Args[0]).Observe(ctx) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		line := leader{Fence: item.CreateRevision}
		if line.Fence > 0 {
			i := command.ItemOf(item)
			line.Item = &i
		}
		err := o.Print(line, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%d\t%s\n", line.Fence, item.Value)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
