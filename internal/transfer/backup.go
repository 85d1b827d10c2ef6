package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"regexp"
	"slices"
	"strconv"
	"time"
)

func backupCommand() command.Command {
	return command.Command{
		Name: "backup", Args: "FILE", About: "write a backup of the cluster, or one each hour", Remote: true, New: newBackup,
		Long: `Writes all that is in the cluster, as it is at one moment, to FILE, for raftkv restore;
FILE - is standard output. FILE is replaced once the backup is whole, checked and on the
disk; if anything fails it stays as it was, exit 1.

With --every it goes on until it gets a signal, and FILE is a directory: it makes a
backup of a name with date and time in it each time, at once unless the last one is
younger than that, and keeps the newest --keep of them. Other files in the directory are
left alone. A backup that fails is told on standard error and tried again after a tenth
of the time, a minute at most; older ones are only removed after one that is whole.

Whoever has a backup has all values, and what tokens are called: keep it as a secret.
The file can be read by its owner alone.`,
		Example: `raftkv backup cluster.state
raftkv backup - | gzip > cluster.state.gz
raftkv backup --every 1h --keep 24 /var/backups/raftkv`,
	}
}

// Backups of --every.
const (
	backupTime = "20060102T150405Z" // in UTC, so that names sort by time
	leastEvery = time.Second
	mostRetry  = time.Minute
	retryPart  = 10
	maxKeep    = 100000
)

// backupName matches the files that a directory of backups consists of.
var backupName = regexp.MustCompile(`^raftkv-([0-9]{8}T[0-9]{6}Z)\.state$`)

func newBackup() command.Action {
	var every time.Duration
	keep := 24
	return command.Action{
		Settings: []config.Setting{
			{Flag: "every", Arg: "TIME", Help: "make one each time this has passed (one alone)", Set: config.Into(&every, parseEvery, "")},
			{Flag: "keep", Arg: "N", Help: "with --every, how many are kept (24)", Set: config.Into(&keep, parseKeep, "")},
		},
		Check: func(o *command.Call) {
			switch {
			case every == 0 && o.Review.Names["keep"] != "":
				wrong(o, "expected --every beside %s", o.Review.Name("keep"))
			case every > 0 && o.Arg(0) == "-":
				wrong(o, "expected a directory, and not -, beside %s", o.Review.Name("every"))
			case every == 0 && o.Arg(0) == "-" && command.IsTerminal(o.Stdout):
				wrong(o, "expected standard output to be a file or a pipe: a backup is not for a terminal")
			}
		},
		Run: func(ctx context.Context, o *command.Call) error {
			return withClient(o, func(c *client.Client) error {
				b := backups{o: o, take: c.Backup, keep: keep, every: every, now: time.Now, remove: os.Remove}
				switch {
				case every > 0:
					b.dir = o.Arg(0)
					return b.run(ctx)
				case o.Arg(0) == "-":
					_, err := b.write(ctx, o.Stdout)
					return err
				}
				path, err := inRealDir(o.Arg(0))
				if err != nil {
					return err
				}
				return b.make(ctx, path)
			})
		},
	}
}

func parseEvery(s string) (time.Duration, error) {
	d, err := command.ParsePeriod(s)
	if err == nil && d < leastEvery {
		err = fmt.Errorf("expected at least %v", leastEvery)
	}
	return d, err
}

func parseKeep(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxKeep {
		return 0, fmt.Errorf("expected a number from 1 to %d", maxKeep)
	}
	return n, nil
}

// backups makes backups.
type backups struct {
	o      *command.Call
	take   func(context.Context, io.Writer) (client.BackupInfo, error)
	now    func() time.Time
	remove func(path string) error // a file
	dir    string
	every  time.Duration
	keep   int
}

// made is the answer of backup.
type made struct {
	File     string `json:"file"`
	Bytes    int64  `json:"bytes"`
	Endpoint string `json:"endpoint"`
}

// make makes one backup in a file, and says so.
func (b *backups) make(ctx context.Context, path string) error {
	var info client.BackupInfo
	err := durable.WriteFile(path, func(w io.Writer) (err error) {
		info, err = b.write(ctx, w)
		return err
	})
	if err != nil {
		return err
	}
	return b.o.Print(made{path, info.Bytes, info.Endpoint}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: %d bytes from %s\n", path, info.Bytes, info.Endpoint)
		return err
	})
}

// write writes a backup to w. Package client makes sure that it is whole.
func (b *backups) write(ctx context.Context, w io.Writer) (client.BackupInfo, error) {
	seen, done := startProgress(b.o, -1, "backup")
	defer done()
	return b.take(ctx, io.MultiWriter(w, seen))
}

// run makes backups until ctx ends.
func (b *backups) run(ctx context.Context) error {
	if err := b.tidy(); err != nil {
		return err
	}
	for wait := b.untilDue(); ; {
		if !sleep(ctx, wait) {
			return nil
		}
		begun := b.now()
		err := b.one(ctx, begun)
		if ctx.Err() != nil {
			return nil // it is asked to end, and has left nothing behind
		}
		wait = b.every
		if err != nil {
			fmt.Fprintf(b.o.Stderr, "raftkv backup: %s: %v\n", begun.UTC().Format(time.RFC3339), err)
			wait = min(b.every/retryPart, mostRetry)
		}
		wait = max(0, wait-b.now().Sub(begun))
	}
}

// one makes a backup, and removes those that are too many then.
func (b *backups) one(ctx context.Context, at time.Time) error {
	name := "raftkv-" + at.UTC().Format(backupTime) + ".state"
	if err := b.make(ctx, filepath.Join(b.dir, name)); err != nil {
		return err
	}
	names, err := b.names()
	if err != nil {
		return err
	}
	// What was just made stays, whatever the clock says of the others.
	names = slices.DeleteFunc(names, func(n string) bool { return n == name })
	for _, n := range names[:max(0, len(names)-b.keep+1)] {
		// The backup is made: to make another one sooner would only push out older ones that are
		// good. Whoever shares the directory may have been quicker.
		if err := b.remove(filepath.Join(b.dir, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(b.o.Stderr, "raftkv backup: an old backup stays: %v\n", err)
		}
	}
	return nil
}

// names returns the backups in the directory, the oldest first.
func (b *backups) names() ([]string, error) {
	files, err := os.ReadDir(b.dir) // in order
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if f.Type().IsRegular() && backupName.MatchString(f.Name()) {
			names = append(names, f.Name())
		}
	}
	return names, nil
}

// tidy makes the directory if it is not there, and removes what a crash has left in it.
func (b *backups) tidy() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if m := temporaryBackup.FindString(f.Name()); m != "" && f.Type().IsRegular() {
			if err := os.Remove(filepath.Join(b.dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// temporaryBackup matches what durable.WriteFile calls a file before it is whole.
var temporaryBackup = regexp.MustCompile(`^raftkv-[0-9]{8}T[0-9]{6}Z\.state\.tmp[0-9]+$`)

// untilDue is how long the newest backup is good for: who restarts this often does not
// get a backup each time.
func (b *backups) untilDue() time.Duration {
	names, err := b.names()
	if err != nil || len(names) == 0 {
		return 0
	}
	at, err := time.Parse(backupTime, backupName.FindStringSubmatch(names[len(names)-1])[1])
	if err != nil {
		return 0
	}
	age := b.now().Sub(at)
	if age < 0 { // of a clock that was wrong
		return 0
	}
	return max(0, b.every-age)
}
