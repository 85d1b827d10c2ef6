package refusal

import (
	"errors"
	"fmt"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A flood of refusals gets one line, and a count.
func TestRefusalsAreCounted(t *testing.T) {
	core, lines := observer.New(zap.WarnLevel)
	r := NewRefusals(zap.New(core))
	for range 1000 {
		r.Note(7, Refusal{Status: 400, Kind: RefusedTerm, Reason: "no"})
		r.Note(7, fmt.Errorf("wrapped: %w", Refusal{Status: 400, Kind: RefusedMalformed, Reason: "no"}))
		r.Note(7, Refusal{Status: 503, Kind: NotHostile, Reason: "later"})
		r.Note(7, errors.New("another error"))
	}
	if lines.Len() != 2 {
		t.Errorf("%d lines for two kinds", lines.Len())
	}
	if r.Count(RefusedTerm) != 1000 || r.Count(RefusedMalformed) != 1000 || r.Count(NotHostile) != 0 {
		t.Errorf("counts %v", r.counts)
	}
}
