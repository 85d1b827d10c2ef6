package api

import (
	"errors"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"strings"
	"testing"
)

// Guarantee: whatever an Idempotency-Key says, it is refused as bad, or a key within every
// bound, which its string in quotes is, too.
func FuzzRequestKey(f *testing.F) {
	for _, line := range []string{`"a"`, `"a";keep=60`, `a`, `"a\"b\\"; keep=10`, `"`, `"a`, `"a"x`, ``, ` `, `"a";keep=`, `a;keep=60`, "\x00", `"é"`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		k, err := parseRequestKey([]string{line})
		if err != nil {
			if !errors.Is(err, problem.ErrBadRequest) {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		if n := len(k.key.Name); !k.set || n == 0 || n > once.MaxName || !k.class.Known() || k.key.Owner != "" {
			t.Errorf("%q is %+v", line, k)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(k.key.Name) + `"`
		if again, err := parseRequestKey([]string{quoted}); err != nil || again.key != k.key {
			t.Errorf("%q is %+v, and %q is %+v, %v", line, k, quoted, again, err)
		}
	})
}
