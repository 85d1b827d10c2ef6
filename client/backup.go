package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
)

// backupMagic begins each backup, and the SHA-256 of all that is before it ends one.
const backupMagic = "RKVSTATE"

// BackupInfo says what a backup is of.
type BackupInfo struct {
	Bytes    int64
	Endpoint string // that sent it
}

// Backup writes a backup of one moment, for raftkv restore, to w. It has checked that
// the backup is whole when it returns no error; after an error what was written to w is of no
// use. It is tried again at other endpoints until one begins to send, and not after that. An error
// of w ends it.
func (c *Client) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	r := &request{op: "backup", method: http.MethodGet, path: "/v1/snapshot", silence: streamSilence}
	a, err := c.open(ctx, r)
	if err != nil {
		return BackupInfo{}, err
	}
	defer func() { _ = a.stream.Close() }()
	whole := &wholeWriter{to: w, sum: sha256.New()}
	n, err := io.Copy(whole, a.stream)
	if whole.err != nil {
		return BackupInfo{}, &Error{Op: r.op, Attempts: 1, Detail: "it cannot be written: " + whole.err.Error(), cause: whole.err}
	}
	if err == nil {
		err = whole.finish()
	}
	if err != nil {
		return BackupInfo{}, c.brokenOff(r, a, nil, err)
	}
	return BackupInfo{Bytes: n, Endpoint: a.from.base}, nil
}

// wholeWriter passes a backup on, and tells at its end whether it is whole.
type wholeWriter struct {
	to    io.Writer
	sum   hash.Hash
	begin []byte // its first bytes
	last  []byte // its last bytes, which are not in sum
	err   error  // of to
}

// Write takes in the next bytes.
func (w *wholeWriter) Write(p []byte) (int, error) {
	if room := len(backupMagic) - len(w.begin); room > 0 {
		w.begin = append(w.begin, p[:min(room, len(p))]...)
	}
	if extra := len(w.last) + len(p) - sha256.Size; extra > 0 {
		old := min(extra, len(w.last))
		w.sum.Write(w.last[:old])
		w.sum.Write(p[:extra-old])
		w.last = append(w.last[:0], w.last[old:]...)
		w.last = append(w.last, p[extra-old:]...)
	} else {
		w.last = append(w.last, p...)
	}
	n, err := w.to.Write(p)
	w.err = err
	return n, err
}

// finish reports whether what was written is a whole backup.
func (w *wholeWriter) finish() error {
	switch {
	case string(w.begin) != backupMagic:
		return fmt.Errorf("%w: it is no backup", ErrStranger)
	case !bytes.Equal(w.sum.Sum(nil), w.last):
		return fmt.Errorf("%w: the backup is cut short or damaged", ErrStranger)
	}
	return nil
}
