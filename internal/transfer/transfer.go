// Package transfer answers: how does what is in a cluster get into files and back? It
// has the commands export, import and backup. What a backup is made into a data directory
// by is package offline.
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
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Commands returns the commands of this room.
func Commands() []command.Command {
	return []command.Command{backupCommand(), exportCommand(), importCommand()}
}

func toggle(flag, help string, field *bool) config.Setting {
	return config.Setting{Flag: flag, Help: help + " (false)", Set: config.Into(field, strconv.ParseBool, "true or false")}
}

func text(flag, arg, help string, field *string) config.Setting {
	return config.Setting{Flag: flag, Arg: arg, Help: help, Set: config.Into(field, config.ParseText, "")}
}

// wrong notes what is wrong with the command line as a whole.
func wrong(o *command.Call, format string, args ...any) {
	o.Review.Errs = append(o.Review.Errs, fmt.Errorf(format, args...))
}

// startProgress returns where to write what passes, so that a person sees how far it is,
// and what clears that away. With size -1 it is not known how much will come. Without a
// terminal, or with --output json, nothing is shown.
func startProgress(o *command.Call, size int64, what string) (seen io.Writer, done func()) {
	if !command.IsTerminal(o.Stderr) || o.Output == command.JSON {
		return io.Discard, func() {}
	}
	bar := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(o.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(progressEvery), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	return bar, func() { _ = bar.Finish() } // it is but for the eye
}

const progressEvery = 100 * time.Millisecond

// output returns where a command writes its data: to standard output for "-", if that is no
// terminal, else to a file that appears once it is whole.
func toStdout(o *command.Call, file string) bool {
	return file == "-" || file == "" && o.Name != "backup"
}

// inRealDir returns a path in a directory that links were followed to, so that a file that is
// a link is replaced where it leads to. What is there and no file, such as /dev/stdout or
// /dev/null, is an error: it would be replaced by a file, for all programs.
func inRealDir(path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file that can be replaced; raftkv writes to standard output by itself, or for -", path)
	}
	to, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return path, nil
	}
	return to, err
}

// clientOf returns what commands of this room need of a client, and how to close it.
func withClient(o *command.Call, do func(c *client.Client) error) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c)
}

// sleep waits, and returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
