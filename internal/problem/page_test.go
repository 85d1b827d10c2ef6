package problem

import (
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/errors.md anew")

// Guarantee: docs/errors.md is the page that nodes serve; go test ./internal/problem -update
// writes it.
func TestErrorsAreDocumented(t *testing.T) {
	const name = "../../docs/errors.md"
	if *update {
		if err := os.WriteFile(name, []byte(Page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != Page() {
		t.Errorf("%s is not what the table of errors says: go test ./internal/problem -update", name)
	}
}

// Guarantee: for each code there is something to do.
func TestAdvice(t *testing.T) {
	known := make(map[string]bool)
	for _, p := range Problems {
		known[p.Code] = true
		if advice[p.Code] == "" {
			t.Errorf("no advice for %s", p.Code)
		}
	}
	for code := range advice {
		if !known[code] {
			t.Errorf("advice for %s, which no error has", code)
		}
	}
}
