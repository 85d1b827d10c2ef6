package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/config"
	"strings"
	"unicode/utf8"
)

// A file is read whole before anything of it is written.

// plan says what of a file is to be written, and under which keys.
type plan struct {
	format       string
	strip, add   string // prefixes that are taken off the keys and put before them
	keepExpiring bool   // keys that had a TTL or a lease are written, too, to stay
	ifAbsent     bool   // keys that are there are left alone
}

// survey is what was found in a file.
type survey struct {
	Format   string `json:"format"`
	Keys     uint64 `json:"keys"`          // to be written
	Bytes    uint64 `json:"bytes"`         // of their values
	Largest  int    `json:"largest_value"` // in bytes
	Expiring uint64 `json:"expiring"`      // keys with a TTL or a lease, which are left out or written to stay
	Flags    uint64 `json:"consul_flags"`  // keys whose flags are dropped
	Bad      uint64 `json:"unusable_keys"` // what cannot be keys here
	problems []string
}

// maxProblems is how many keys are told that cannot be keys here. The others are counted.
const maxProblems = 1000

// keyProblem says why a text cannot be a key, or "".
func keyProblem(key string) string {
	switch {
	case key == "":
		return "a key is not empty"
	case len(key) > config.MaxKeyBytes:
		return fmt.Sprintf("it has %d bytes, a key has at most %d", len(key), config.MaxKeyBytes)
	case !utf8.ValidString(key):
		return "a key is valid UTF-8"
	case strings.IndexByte(key, 0) >= 0:
		return "a key has no NUL in it"
	}
	return ""
}

// rename returns the key under which p writes a key of a file, and why it cannot.
func (p *plan) rename(key string) (to, problem string) {
	rest, ok := strings.CutPrefix(key, p.strip)
	if !ok {
		return key, fmt.Sprintf("it does not begin with %q", p.strip)
	}
	to = p.add + rest
	return to, keyProblem(to)
}

// leaves reports whether p leaves an entry out.
func (p *plan) leaves(e entry) bool { return e.ends && !p.keepExpiring }

// each reads a file to its end, and calls use for what p writes of it, under its new
// key. An error of use ends it.
func (p *plan) each(ctx context.Context, in io.Reader, use func(e entry, problem string) error) (format string, err error) {
	r := newReader(in, p.format)
	for {
		if err := ctx.Err(); err != nil {
			return r.format, err
		}
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.format, nil
		}
		if err != nil {
			return r.format, err
		}
		var problem string
		e.key, problem = p.rename(e.key)
		if err := use(e, problem); err != nil {
			return r.format, err
		}
	}
}

// survey reads a file. Its error says that the file cannot be read, is not whole, or
// has the same key twice; what cannot be a key is in the result.
func (p *plan) survey(ctx context.Context, in io.Reader) (*survey, error) {
	s := new(survey)
	seen := make(map[[16]byte]struct{})
	format, err := p.each(ctx, in, func(e entry, problem string) error {
		if problem != "" {
			if s.Bad++; s.Bad <= maxProblems {
				s.problems = append(s.problems, fmt.Sprintf("%s: %s", quote(e.key), problem))
			}
			return nil
		}
		sum := [16]byte(sha256Of(e.key))
		if _, twice := seen[sum]; twice {
			return fmt.Errorf("key %s is in it twice", quote(e.key))
		}
		seen[sum] = struct{}{}
		if e.flags != 0 {
			s.Flags++
		}
		if e.ends {
			s.Expiring++
		}
		if p.leaves(e) {
			return nil
		}
		s.Keys++
		s.Bytes += uint64(len(e.value))
		s.Largest = max(s.Largest, len(e.value))
		return nil
	})
	s.Format = format
	return s, err
}

// sha256Of is half of a key's hash: that tells keys apart, and many of them fit into memory.
func sha256Of(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:16]
}
