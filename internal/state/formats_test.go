package state

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Guarantee: docs/formats.md has every kind of command with its level, every kind of
// record, and the level of this program.
func TestFormatsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for k, row := range kinds {
		if k > 0 && !regexp.MustCompile(fmt.Sprintf(`(?m)^\| %d \| [a-z; ]+ \| %d \|`, k, row.level)).MatchString(text) {
			t.Errorf("there is no row of kind %d at level %d", k, row.level)
		}
	}
	records := []byte{itemRecord, sumRecord}
	for _, p := range parts {
		records = append(records, p.records...)
	}
	_, table, _ := strings.Cut(text, "| kind | record |")
	for _, kind := range records {
		if !strings.Contains(table, fmt.Sprintf("\n| %d | ", kind)) {
			t.Errorf("there is no row of record %d", kind)
		}
	}
	if !strings.Contains(text, fmt.Sprintf("This program knows level %d.", ProgramLevel)) || !strings.Contains(text, fmt.Sprintf("\n| %d | ", ProgramLevel)) {
		t.Errorf("level %d is not there", ProgramLevel)
	}
}
