package durable

import (
	"context"
	"errors"
	"io/fs"
	"os"
)

// FreeStep is how much of a large file is freed at once. To free some hundred
// megabytes in one go holds up the disk, and with it the syncs of other files, for
// as long as it takes.
const FreeStep = 16 << 20

// Free removes a file, a large one in steps: its end is cut off and synced, until
// what is left is small. It stops between two steps when ctx has ended. What is
// left then has the old name and part of the old content, so a file has to have a
// name before by which nobody takes it for whole.
//
// A file that goes on to exist elsewhere, under another name or because another
// process has it open, is removed as it is: nothing of it is freed, or not now, and
// it must not change there.
func Free(ctx context.Context, path string) error {
	if err := shrink(ctx, path); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.Remove(path)
}

// shrink cuts steps off a file's end until one is left.
func shrink(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil // to remove it takes other rights
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil || info.Size() <= FreeStep || usedElsewhere(f, info) {
		return errors.Join(err, f.Close())
	}
	for size := info.Size() - FreeStep; err == nil && size > 0; size -= FreeStep {
		if err = ctx.Err(); err == nil {
			err = f.Truncate(size)
		}
		if err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}
