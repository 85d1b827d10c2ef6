package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// report is all that came of a run, as it is written into a file.
type report struct {
	Machine machine   `json:"machine"`
	Seconds float64   `json:"seconds"` // that the run took
	Rows    []outcome `json:"rows"`
	Targets []verdict `json:"targets"`
}

// add adds rows, and their targets.
func (r *report) add(outcomes []outcome) {
	r.Rows = append(r.Rows, outcomes...)
	r.Targets = append(r.Targets, targets(outcomes)...)
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// readReport reads what write wrote.
func readReport(path string) (r report, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// drawFrom draws the picture of an earlier run.
func drawFrom(o options) error {
	r, err := readReport(o.from)
	if err != nil {
		return err
	}
	printTargets(os.Stdout, r.Targets)
	return r.draw(o.picture)
}

// line returns a line of a row, if both were measured.
func (r *report) line(row, name string) (line, bool) {
	for _, o := range r.Rows {
		if o.Row != row {
			continue
		}
		for _, l := range o.Lines {
			if l.Name == name {
				return l, true
			}
		}
	}
	return line{}, false
}

// figure returns a figure of a line, 0 if it has none of that name.
func (l line) figure(name string) float64 {
	for _, f := range l.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return 0
}
