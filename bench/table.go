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
	Targets []verdict `json:"targets,omitempty"`
}

// line is what one system did in a row.
type line struct {
	Name    string    `json:"name"`
	Figures []figure  `json:"figures"`
	Turns   []float64 `json:"turns,omitempty"` // the rate of each turn
	Remarks []string  `json:"remarks,omitempty"`
}

// figure is a number with a name, which ends in its unit.
type figure struct {
	Name     string  `json:"name"`
	Value    float64 `json:"value"`
	decimals int
}

// verdict is a target, what was measured, and whether that is enough.
type verdict struct {
	Target string  `json:"target"`
	Value  float64 `json:"value"`
	Met    bool    `json:"met"`
}

// atMost and atLeast judge a value.
func atMost(what string, value, most float64) verdict {
	return verdict{fmt.Sprintf("%s at most %g", what, most), value, value <= most}
}

func atLeast(what string, value, least float64) verdict {
	return verdict{fmt.Sprintf("%s at least %g", what, least), value, value >= least}
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
		fmt.Fprintf(w, "  target: %s: %.2f, %s\n", v.Target, v.Value, v.word())
	}
}

func (f figure) width() int { return max(9, len(f.Name)) }

func (v verdict) word() string {
	if v.Met {
		return "met"
	}
	return "NOT MET"
}

// printTargets writes all targets once more, at the end of a long table.
func printTargets(w io.Writer, outcomes []outcome) {
	title := "\nTargets\n"
	for _, o := range outcomes {
		for _, v := range o.Targets {
			fmt.Fprintf(w, "%s  %-8s %8.2f  %s: %s\n", title, v.word(), v.Value, o.Row, v.Target)
			title = ""
		}
	}
}

// outcome turns what the lanes of a row did into a part of the table.
func (m *measured) outcome() outcome {
	o := outcome{Row: m.row.name, Notes: []string{"values of " + bytesText(m.row.size)}, Targets: m.judge()}
	if m.rate > 0 {
		o.Notes = append(o.Notes, fmt.Sprintf("%.0f requests/s, latency from when a request was due", m.rate))
	}
	for _, l := range m.lanes {
		first := m.lanes[0] // raftkv's, if it was measured
		ratio := figure{Name: "first is x", Value: first.rate() / max(1, l.rate()), decimals: 2}
		if m.rate > 0 {
			ratio = figure{Name: "first's p99 is x", Value: first.ms(99) / l.ms(99), decimals: 2}
		}
		o.Lines = append(o.Lines, line{Name: l.name, Turns: l.turnRates, Remarks: l.remarks(), Figures: []figure{
			{Name: "rate/s", Value: l.rate()},
			{Name: "+- %", Value: 100 * spread(l.turnRates)},
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
		ratio := own.figure(t.figure) / rival.figure(t.figure)
		what := fmt.Sprintf("%s of %s / %s", t.figure, t.lane, t.rival)
		v := atLeast(what, ratio, t.least)
		if t.most > 0 {
			v = atMost(what, ratio, t.most)
		}
		v.Met = v.Met && own.errors == 0 && rival.errors == 0
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
// not exceed.
func quantile(values []float64, part float64) float64 {
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
