package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The bounds of a transaction of an import. A server takes 128 operations, and as many bytes
// as its --max-value-size says, which is not known here: a transaction that is too
// large for it is made smaller.
const (
	batchOps   = 128
	batchBytes = 512 << 10
	// entryBytes counts for an operation besides its key and value.
	entryBytes = 64
)

// store is where an import writes to.
type store interface {
	// write writes entries in one transaction. With ifAbsent it writes them if none of
	// them is there, and returns false if one is.
	write(ctx context.Context, entries []entry, ifAbsent bool) (written bool, err error)
}

// errTooLarge matches the error of a write that is larger than the server takes.
var errTooLarge = errors.New("too large")

// written is what came of an import.
type written struct {
	Keys    uint64 `json:"written"`
	Present uint64 `json:"present"` // left alone, since they were there, with --if-absent
}

// importer writes what a plan says into a store.
type importer struct {
	plan   *plan
	store  store
	batch  []entry
	size   int
	result written
	last   string // the last key that was written or left alone
}

// run writes a file that was surveyed. On an error, the result says what was written before.
func (im *importer) run(ctx context.Context, in io.Reader) (written, error) {
	_, err := im.plan.each(ctx, in, func(e entry, problem string) error {
		switch {
		case problem != "":
			return fmt.Errorf("key %s: %s: the file has changed since it was read first", quote(e.key), problem)
		case im.plan.leaves(e):
			return nil
		}
		size := len(e.key) + len(e.value) + entryBytes
		if len(im.batch) == batchOps || len(im.batch) > 0 && im.size+size > batchBytes {
			if err := im.flush(ctx); err != nil {
				return err
			}
		}
		im.batch, im.size = append(im.batch, e), im.size+size
		return nil
	})
	if err == nil {
		err = im.flush(ctx)
	}
	return im.result, err
}

// flush writes what was gathered.
func (im *importer) flush(ctx context.Context) error {
	err := im.write(ctx, im.batch)
	im.batch, im.size = im.batch[:0], 0
	return err
}

// write writes entries, in halves where all at once is too much or some of them are there.
func (im *importer) write(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	ok, err := im.store.write(ctx, entries, im.plan.ifAbsent)
	switch {
	case err == nil && ok:
		im.result.Keys += uint64(len(entries))
	case err == nil && len(entries) == 1:
		im.result.Present++
	case err == nil || errors.Is(err, errTooLarge) && len(entries) > 1:
		half := len(entries) / 2
		if err := im.write(ctx, entries[:half]); err != nil {
			return err
		}
		return im.write(ctx, entries[half:])
	case errors.Is(err, errTooLarge):
		return fmt.Errorf("key %s: its value has %d bytes, which the server does not take; its flag --max-value-size says how many it does: %w",
			quote(entries[0].key), len(entries[0].value), err)
	default:
		return fmt.Errorf("from key %s on: %w", quote(entries[0].key), err)
	}
	im.last = entries[len(entries)-1].key
	return nil
}
