package main

import (
	"fmt"
	"io"
	"slices"
)

// figure returns a figure of a lane by its name.
func (l *laneResult) figure(name string) float64 {
	switch name {
	case figureP50:
		return l.ms(50)
	case figureP99:
		return l.ms(99)
	}
	return l.rate()
}

// spread is how far the turns of a lane lie apart, as a part of their mean.
func spread(rates []float64) float64 {
	if len(rates) == 0 {
		return 0
	}
	sum := 0.0
	for _, r := range rates {
		sum += r
	}
	return (slices.Max(rates) - slices.Min(rates)) / 2 / (sum / float64(len(rates)))
}

// verdict is a target with what was measured.
type verdict struct {
	Row    string  `json:"row"`
	Target string  `json:"target"`
	Value  float64 `json:"value"`
	Met    bool    `json:"met"`
}

// judge returns what became of the targets of a row. Those whose lanes were not
// measured are left out.
func (m *measured) judge() []verdict {
	var out []verdict
	for _, t := range m.row.targets {
		own, rival := m.lane(t.lane), m.lane(t.rival)
		if own == nil || rival == nil {
			continue
		}
		ratio := own.figure(t.figure) / rival.figure(t.figure)
		sound := own.errors == 0 && rival.errors == 0
		v := verdict{Row: m.row.name, Value: ratio, Met: sound && ratio >= t.least}
		if t.most > 0 {
			v.Met = sound && ratio <= t.most
			v.Target = fmt.Sprintf("%s of %s at most %g x %s", t.figure, t.lane, t.most, t.rival)
		} else {
			v.Target = fmt.Sprintf("%s of %s at least %g x %s", t.figure, t.lane, t.least, t.rival)
		}
		out = append(out, v)
	}
	return out
}

func (m *measured) lane(name string) *laneResult {
	i := slices.IndexFunc(m.lanes, func(l *laneResult) bool { return l.name == name })
	if i < 0 {
		return nil
	}
	return m.lanes[i]
}

// print writes a row for people. What the first lane is of each other stands in
// the last column.
func (m *measured) print(w io.Writer) {
	title := fmt.Sprintf("%s, values of %s", m.row.name, bytesText(m.row.size))
	if m.rate > 0 {
		title += fmt.Sprintf(", %.0f requests/s", m.rate)
	}
	fmt.Fprintf(w, "\n%s\n", title)
	fmt.Fprintf(w, "  %-24s %9s %5s %9s %9s %9s %10s %10s %8s\n",
		"", "rate/s", "+-", "p50 ms", "p99 ms", "p99.9 ms", "server us", "client us", "raftkv x")
	for i, l := range m.lanes {
		ratio := "-"
		if first := m.lanes[0]; i > 0 && l.rate() > 0 {
			ratio = fmt.Sprintf("%.2f", first.rate()/l.rate())
		}
		fmt.Fprintf(w, "  %-24s %9.0f %4.0f%% %9.2f %9.2f %9.2f %10.1f %10.1f %8s%s\n", l.name, l.rate(), 100*spread(l.turnRates),
			l.ms(50), l.ms(99), l.ms(99.9), l.perOp(l.serverCPU), l.perOp(l.clientCPU), ratio, l.remarks())
	}
}

// remarks says what casts doubt on a lane.
func (l *laneResult) remarks() string {
	text := ""
	if l.errors > 0 {
		text += fmt.Sprintf("  INVALID: %d errors, such as: %v", l.errors, l.firstErr)
	}
	if l.leaderMoves > 0 {
		text += fmt.Sprintf("  the leader changed %d times", l.leaderMoves)
	}
	return text
}

func bytesText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// printVerdicts writes the targets and what became of them.
func printVerdicts(w io.Writer, verdicts []verdict) {
	if len(verdicts) == 0 {
		return
	}
	fmt.Fprintf(w, "\nTargets\n")
	for _, v := range verdicts {
		met := "met"
		if !v.Met {
			met = "NOT MET"
		}
		fmt.Fprintf(w, "  %-42s %-62s %10.2f  %s\n", v.Row, v.Target, v.Value, met)
	}
}
