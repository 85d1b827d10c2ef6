package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// outcome is a row of the table, measured.
type outcome struct {
	Row     string    `json:"row"`
	Notes   []string  `json:"notes,omitempty"` // how it was measured
	Lines   []line    `json:"lines"`
	Targets []verdict `json:"-"` // all are together at the end of a report
}

// line is what one system did in a row.
type line struct {
	Name    string    `json:"name"`
	Figures []figure  `json:"figures"`
	Turns   []float64 `json:"turns,omitempty"`     // the rate of each turn
	P99     []float64 `json:"p99_turns,omitempty"` // likewise, ms
	Remarks []string  `json:"remarks,omitempty"`
}

// figure is a number with a name, which ends in its unit.
type figure struct {
	Name     string  `json:"name"`
	Value    float64 `json:"value"`
	decimals int
}

// verdict is a target, what was measured, and whether that is enough: the median
// of the turns, if there were any, which stand beside it with their extremes.
type verdict struct {
	Row     string    `json:"row"`
	What    string    `json:"what"` // for most a ratio
	Median  float64   `json:"median"`
	Lowest  float64   `json:"lowest"`
	Highest float64   `json:"highest"`
	Turns   []float64 `json:"turns,omitempty"` // in their order
	Target  string    `json:"target"`
	Met     bool      `json:"met"`
}

// atMost and atLeast judge the median of values.
func atMost(what string, most float64, values ...float64) verdict {
	v := judged(what, fmt.Sprintf("at most %g", most), values)
	v.Met = len(values) > 0 && v.Median <= most
	return v
}

func atLeast(what string, least float64, values ...float64) verdict {
	v := judged(what, fmt.Sprintf("at least %g", least), values)
	v.Met = len(values) > 0 && v.Median >= least
	return v
}

func judged(what, target string, values []float64) verdict {
	v := verdict{What: what, Target: target}
	if len(values) > 0 {
		v.Median, v.Lowest, v.Highest = quantile(values, 0.5), slices.Min(values), slices.Max(values)
	}
	if len(values) > 1 {
		v.Turns = values
	}
	return v
}

// value says what was measured, with its spread if there is one.
func (v verdict) value() string {
	text := fmt.Sprintf("%.2f", v.Median)
	if len(v.Turns) > 0 {
		text += fmt.Sprintf(" (%.2f to %.2f)", v.Lowest, v.Highest)
	}
	return text
}

// print writes an outcome for people.
func (o outcome) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", o.Row)
	for _, n := range o.Notes {
		fmt.Fprintf(w, "  (%s)\n", n)
	}
	if len(o.Lines) > 0 {
		fmt.Fprintf(w, "  %-24s", "")
		for _, f := range o.Lines[0].Figures {
			fmt.Fprintf(w, " %*s", f.width(), f.Name)
		}
		fmt.Fprintln(w)
	}
	for _, l := range o.Lines {
		fmt.Fprintf(w, "  %-24s", l.Name)
		for _, f := range l.Figures {
			fmt.Fprintf(w, " %*.*f", f.width(), f.decimals, f.Value)
		}
		fmt.Fprintln(w, strings.Join(append([]string{""}, l.Remarks...), "  "))
	}
	for _, v := range o.Targets {
		fmt.Fprintf(w, "  target: %s %s: %s, %s\n", v.What, v.Target, v.value(), v.word())
	}
}

func (f figure) width() int { return max(9, len(f.Name)) }

func (v verdict) word() string {
	if v.Met {
		return "met"
	}
	return "NOT MET"
}

// targets returns the targets of all rows.
func targets(outcomes []outcome) []verdict {
	var all []verdict
	for _, o := range outcomes {
		for _, v := range o.Targets {
			v.Row = o.Row
			all = append(all, v)
		}
	}
	return all
}

// printTargets writes all targets once more, at the end of a long table.
func printTargets(w io.Writer, all []verdict) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nTargets: the median of the turns (the lowest and the highest)\n")
	for _, v := range all {
		fmt.Fprintf(w, "  %-8s %-22s %-13s  %s: %s\n", v.word(), v.value(), v.Target, v.Row, v.What)
	}
}

// outcome turns what the lanes of a row did into a part of the table.
func (m *measured) outcome() outcome {
	notes := append([]string{"values of " + bytesText(m.row.size)}, m.row.notes...)
	o := outcome{Row: m.row.name, Notes: notes, Targets: m.judge()}
	if m.row.rate > 0 {
		o.Notes = append(o.Notes, fmt.Sprintf("%.0f requests/s, latency from when a request was due", m.row.rate))
	}
	for _, l := range m.lanes {
		first := m.lanes[0] // raftkv's, if it was measured
		ratio := figure{Name: "first is x", Value: quantile(ratios(first, l, figureRate), 0.5), decimals: 2}
		if m.row.rate > 0 {
			ratio = figure{Name: "first's p99 is x", Value: quantile(ratios(first, l, figureP99), 0.5), decimals: 2}
		}
		rates := l.figures(figureRate)
		o.Lines = append(o.Lines, line{Name: l.name, Turns: rates, P99: l.figures(figureP99), Remarks: l.remarks(), Figures: []figure{
			{Name: "rate/s", Value: l.rate()},
			{Name: "+- %", Value: 100 * spread(rates)},
			{Name: "p50 ms", Value: l.ms(50), decimals: 2},
			{Name: "p99 ms", Value: l.ms(99), decimals: 2},
			{Name: "p99.9 ms", Value: l.ms(99.9), decimals: 2},
			{Name: "server us/op", Value: l.perOp(l.serverCPU), decimals: 1},
			{Name: "client us/op", Value: l.perOp(l.clientCPU), decimals: 1},
			ratio,
		}})
	}
	return o
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
		all := ratios(own, rival, t.figure)
		what := fmt.Sprintf("%s of %s / %s", t.figure, t.lane, t.rival)
		v := atLeast(what, t.least, all...)
		if t.most > 0 {
			v = atMost(what, t.most, all...)
		}
		v.Met = v.Met && own.errors == 0 && rival.errors == 0 && v.Lowest > 0
		out = append(out, v)
	}
	return out
}

// ratios returns a figure of one lane, relative to that of another, turn by
// turn. Where there is nothing to divide it is 0.
func ratios(own, rival *laneResult, name string) []float64 {
	var out []float64
	theirs := rival.figures(name)
	for i, value := range own.figures(name) {
		if i < len(theirs) {
			out = append(out, ratio(value, theirs[i]))
		}
	}
	return out
}

// ratio returns a / b, and 0 where there is nothing to divide by: JSON has no
// word for infinity.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (m *measured) lane(name string) *laneResult {
	i := slices.IndexFunc(m.lanes, func(l *laneResult) bool { return l.name == name })
	if i < 0 {
		return nil
	}
	return m.lanes[i]
}

// figures returns a figure of a lane by its name, of each turn.
func (l *laneResult) figures(name string) []float64 {
	var out []float64
	for _, t := range l.turns {
		switch name {
		case figureP50:
			out = append(out, t.p50)
		case figureP99:
			out = append(out, t.p99)
		case figureCPU:
			out = append(out, t.cpu)
		default:
			out = append(out, t.rate)
		}
	}
	return out
}

// remarks says what casts doubt on a lane.
func (l *laneResult) remarks() []string {
	var out []string
	if l.errors > 0 {
		out = append(out, fmt.Sprintf("INVALID: %d errors, the first: %v", l.errors, l.firstErr))
	}
	if l.leaderMoves > 0 {
		out = append(out, fmt.Sprintf("the leader changed: %d terms", l.leaderMoves))
	}
	return out
}

// spread is how far the turns of a lane lie from their middle at most, as a part
// of their mean.
func spread(rates []float64) float64 {
	if len(rates) == 0 {
		return 0
	}
	return (slices.Max(rates) - slices.Min(rates)) / 2 / max(1, mean(rates))
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// quantile returns the smallest value that so large a part of the values does
// not exceed; of none, 0.
func quantile(values []float64, part float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(part * float64(len(sorted)))
	if float64(i) == part*float64(len(sorted)) {
		i-- // exactly so many are no larger
	}
	return sorted[max(0, min(i, len(sorted)-1))]
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
