package main

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// client sends requests of one connection, one at a time.
type client interface {
	// do makes one request, and returns an error unless it succeeded.
	do(op operation, key uint64) error
	// value reads a key, linearizably, for checking.
	value(key uint64) ([]byte, error)
	close()
}

// operation is a kind of request.
type operation int

const (
	put operation = iota
	get
	getStale  // from what the node has, without asking the others
	list      // the thousand keys that a key is one of, linearizably
	txn       // if a key of the client's own has the revision that it should, writes it and another
	keepAlive // of a lease of the client's own

	operations = int(iota)
)

// writes tells whether an operation writes the key that it is given.
func (op operation) writes() bool { return op == put || op == txn }

const (
	// listed is how many keys a list has. They are those that differ in as many of
	// their last digits as it has zeros.
	listed       = 1000
	listedDigits = 3
	// leaseSeconds is the time of a client's lease. Each is revoked when its turn is
	// over, so that its end is not the load of the next.
	leaseSeconds = 60
	// firstGuard is the first of the keys whose revisions transactions compare: each
	// client has one, far from the keys of all rows.
	firstGuard = 4_000_000
)

// thousand returns the first key of the list that a key is in.
func thousand(key uint64) uint64 { return key - key%listed }

// dialer makes the clients of n workers for one node, to write values made by v.
type dialer func(addr string, n int, v valueMaker, limit time.Duration) ([]client, error)

const keySize = 16

// appendKey appends the text of a key, always keySize bytes.
func appendKey(b []byte, key uint64) []byte {
	b = append(b, "key-000000000000"...)
	setKey(b[len(b)-keySize:], key)
	return b
}

// setKey writes the number of a key into its text.
func setKey(b []byte, key uint64) { setDigits(b[4:keySize], key) }

// setDigits fills b with the last digits of a number.
func setDigits(b []byte, n uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// valueMaker makes values. All that one turn writes to a key is the same, and
// differs from what others write: so a read afterwards shows whether what was
// acknowledged is there.
type valueMaker struct {
	size  int
	nonce uint32 // of the turn
}

// headSize is how many bytes at the front of a value differ between keys and
// turns. A multiple of three, so that base64 has a border behind it. Values that
// are shorter are the same for all keys.
const headSize = nonceSize + keySize

const nonceSize = 8

// make returns the value of a key.
func (v valueMaker) make(key uint64) []byte {
	b := fmt.Appendf(nil, "%0*x", nonceSize, v.nonce)
	if v.size >= headSize {
		b = appendKey(b, key)
	}
	for i := len(b); i < v.size; i++ {
		b = append(b, byte('a'+i%26))
	}
	return b[:v.size]
}

// setHead turns a value of the turn into that of another key.
func setHead(value []byte, key uint64) {
	if len(value) >= headSize {
		setKey(value[nonceSize:headSize], key)
	}
}

// check returns an error unless c reads what v wrote to a key.
func (v valueMaker) check(c client, key uint64) error {
	got, err := c.value(key)
	if err != nil {
		return fmt.Errorf("reading key %d back: %w", key, err)
	}
	if want := v.make(key); !bytes.Equal(got, want) {
		return fmt.Errorf("key %d was written, and holds %q instead of %q", key, clip(got), clip(want))
	}
	return nil
}

func clip(b []byte) string { return string(b[:min(len(b), 40)]) }

// statusError is an answer that is no success.
type statusError struct {
	status int
	body   string
}

func (e statusError) Error() string { return "status " + strconv.Itoa(e.status) + ": " + e.body }
