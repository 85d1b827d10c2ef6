// Package statefile answers: how are records framed in a file, so that any damage
// is found? A file is a magic, blocks of records with a checksum each, and a digest
// of the whole; state files and backups are such files. What the records mean is
// not known here.
package statefile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"raftkv/internal/durable"
)

// The state file holds the state of a snapshot, as a stream of records. This
// file knows how records are framed and protected, not what they mean.
//
// Format version 1, integers little-endian:
//
//	header  8 bytes magic, u32 version
//	block*  u32 length of payload (never 0), u32 CRC-32C of payload, payload
//	        payload = records: uvarint length, kind byte, length bytes
//	end     u32 0, u64 number of records, SHA-256 over every byte before it
//
// The checksum per block is there so that a reader learns of damage before it
// uses a record, not at the end of a file of gigabytes. The hash at the end is
// there for what the blocks cannot see: a block left out, twice, or moved.
const (
	Magic        = "RKVSTATE" // the first bytes of a file
	stateVersion = 1

	// blockSize is where a block is closed. A record never spans blocks,
	// so a large record makes a large block, up to stateBlockMax.
	blockSize     = 64 << 10
	stateBlockMax = 128 << 20
)

// ErrBad: the file is cut short, damaged, or no state file.
var ErrBad = errors.New("bad state file")

// errStateFinished: record or finish was called after finish.
var errStateFinished = errors.New("state file is already finished")

// Writer writes a state file. After an error it stays failed: a file with
// a hole must not get a valid end. Not safe for concurrent use.
type Writer struct {
	out     io.Writer
	sum     hash.Hash
	block   []byte // payload of the block that is open
	records uint64
	started bool // the header is written
	err     error
}

// NewWriter returns a writer to w. The file is valid only after finish.
// Writes to w are at least a block, so it need not be buffered.
func NewWriter(w io.Writer) *Writer {
	return &Writer{out: w, sum: sha256.New()}
}

// Record appends one record. The payload is copied or written before it
// returns.
func (w *Writer) Record(kind byte, payload []byte) error {
	if w.err != nil {
		return w.err
	}
	if size := len(payload) + binary.MaxVarintLen64 + 1; size > stateBlockMax {
		// Refused, not failed: nothing was written, the file is still whole.
		return fmt.Errorf("state record of %d bytes: the limit is %d", len(payload), stateBlockMax-binary.MaxVarintLen64-1)
	} else if len(w.block) > 0 && len(w.block)+size > blockSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.block = binary.AppendUvarint(w.block, uint64(len(payload)))
	w.block = append(w.block, kind)
	w.block = append(w.block, payload...)
	w.records++
	if len(w.block) >= blockSize {
		return w.flush()
	}
	return nil
}

// Finish closes the last block and writes the end. It does not sync.
func (w *Writer) Finish() error {
	if w.err != nil {
		return w.err
	}
	if err := w.flush(); err != nil {
		return err
	}
	end := binary.LittleEndian.AppendUint32(nil, 0)
	end = binary.LittleEndian.AppendUint64(end, w.records)
	if err := w.write(end); err != nil {
		return err
	}
	if err := w.write(w.sum.Sum(nil)); err != nil {
		return err
	}
	w.err = errStateFinished
	return nil
}

// flush writes the open block, and before the first one the header.
func (w *Writer) flush() error {
	var head []byte
	if !w.started {
		w.started = true
		head = binary.LittleEndian.AppendUint32([]byte(Magic), stateVersion)
	}
	if len(w.block) > 0 {
		head = binary.LittleEndian.AppendUint32(head, uint32(len(w.block)))
		head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(w.block, durable.CRC))
	}
	if err := w.write(head); err != nil {
		return err
	}
	if err := w.write(w.block); err != nil {
		return err
	}
	if cap(w.block) > 4*blockSize {
		w.block = nil // one large record must not cost memory for the rest
	}
	w.block = w.block[:0]
	return nil
}

func (w *Writer) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := w.out.Write(b); err != nil {
		w.err = fmt.Errorf("write state: %w", err)
		return w.err
	}
	w.sum.Write(b)
	return nil
}

// Reader reads a state file. Errors name the offset of the block; the
// caller, who knows the path, adds it. Not safe for concurrent use.
type Reader struct {
	in      *bufio.Reader
	sum     hash.Hash
	buf     bytes.Buffer // payload of the current block
	rest    []byte       // what is left of it
	offset  int64        // bytes read so far
	block   int64        // offset at which the current block starts
	records uint64
	Digest  [sha256.Size]byte // the hash at the end, once it is verified
	err     error             // sticks; io.EOF after the verified end
}

// NewReader reads and checks the header. A file of a newer version is
// refused with durable.ErrNewer, anything else that is wrong with
// ErrBad; an error of r itself is neither.
func NewReader(r io.Reader) (*Reader, error) {
	sr := &Reader{in: bufio.NewReaderSize(r, blockSize), sum: sha256.New()}
	var head [len(Magic) + 4]byte
	if err := sr.read(head[:]); err != nil {
		return nil, err
	}
	if string(head[:len(Magic)]) != Magic {
		return nil, sr.bad("wrong magic %q", head[:len(Magic)])
	}
	switch v := binary.LittleEndian.Uint32(head[len(Magic):]); {
	case v > stateVersion:
		return nil, fmt.Errorf("state file %w: version %d, this program knows %d", durable.ErrNewer, v, stateVersion)
	case v < 1:
		return nil, sr.bad("version %d", v)
	}
	return sr, nil
}

// Next returns the next record. The payload is valid until the next call. The
// error is io.EOF only when the end was there, every record was counted, the
// hash matched and nothing followed: until then, what was read must not be
// taken for the whole.
func (r *Reader) Next() (kind byte, payload []byte, err error) {
	if r.err != nil {
		return 0, nil, r.err
	}
	if len(r.rest) == 0 {
		if r.err = r.readBlock(); r.err != nil {
			r.rest = nil
			return 0, nil, r.err
		}
	}
	n, used := binary.Uvarint(r.rest)
	if used <= 0 || uint64(len(r.rest)-used) <= n {
		r.err = r.bad("a record reaches past its block")
		return 0, nil, r.err
	}
	body := r.rest[used+1 : used+1+int(n)]
	kind = r.rest[used]
	r.rest = r.rest[used+1+int(n):]
	r.records++
	return kind, body, nil
}

// readBlock reads the next block into rest, or checks the end and returns
// io.EOF.
func (r *Reader) readBlock() error {
	r.block = r.offset
	var word [4]byte
	if err := r.read(word[:]); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(word[:])
	if size == 0 {
		return r.readEnd()
	}
	if size > stateBlockMax {
		return r.bad("length %d is over the limit", size)
	}
	if err := r.read(word[:]); err != nil {
		return err
	}
	if err := r.readPayload(int64(size)); err != nil {
		return err
	}
	if crc32.Checksum(r.buf.Bytes(), durable.CRC) != binary.LittleEndian.Uint32(word[:]) {
		return r.bad("checksum does not match")
	}
	r.rest = r.buf.Bytes()
	return nil
}

// readPayload grows the buffer as bytes arrive rather than by what the length
// announces: a damaged length must not cost 128 MiB.
func (r *Reader) readPayload(size int64) error {
	if r.buf.Cap() > 4*blockSize && size <= blockSize {
		r.buf = bytes.Buffer{} // one large record must not cost memory for the rest
	}
	r.buf.Reset()
	n, err := io.CopyN(&r.buf, r.in, size)
	r.offset += n
	r.sum.Write(r.buf.Bytes())
	return r.readError(err)
}

// readEnd checks the end block, behind its marker.
func (r *Reader) readEnd() error {
	var count [8]byte
	if err := r.read(count[:]); err != nil {
		return err
	}
	want := r.sum.Sum(nil) // before the hash itself is read
	var got [sha256.Size]byte
	if err := r.read(got[:]); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(count[:]); n != r.records {
		return r.bad("the end announces %d records, the file has %d", n, r.records)
	}
	if !bytes.Equal(want, got[:]) {
		return r.bad("hash does not match")
	}
	switch _, err := r.in.ReadByte(); {
	case err == nil:
		return r.bad("there are bytes behind the end")
	case err != io.EOF:
		return fmt.Errorf("read state at offset %d: %w", r.offset, err)
	}
	r.Digest = got
	return io.EOF
}

func (r *Reader) read(b []byte) error {
	n, err := io.ReadFull(r.in, b)
	r.offset += int64(n)
	r.sum.Write(b[:n])
	return r.readError(err)
}

// readError tells a file that is too short from a disk that cannot be read:
// the one is damage, the other may pass.
func (r *Reader) readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return r.bad("cut short at offset %d", r.offset)
	}
	return fmt.Errorf("read state at offset %d: %w", r.offset, err)
}

func (r *Reader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: block at offset %d: %s", ErrBad, r.block, fmt.Sprintf(format, args...))
}
