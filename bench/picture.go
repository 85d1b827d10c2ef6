package main

import (
	"errors"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// The picture shows the rates that most people ask for first: groups of bars, one
// group for a row, one bar for a lane, and on it what the turns reached.

// pictureRows are its groups, with their names on the axis.
var pictureRows = []struct{ row, label string }{
	{"PUT, 64 connections", "PUT, 64"},
	{"PUT, 256 connections", "PUT, 256"},
	{"GET, linearizable, 64 connections", "linearizable GET, 64"},
	{"GET, stale, 64 connections", "stale GET, 64"},
}

// pictureLane is a bar of each group.
type pictureLane struct {
	lane, label string
	colour      color.RGBA
}

// pictureLanes are the bars, in colours that also people tell apart who see few.
var pictureLanes = []pictureLane{
	{raftkvLeader, "raftkv", color.RGBA{0x00, 0x72, 0xb2, 0xff}},
	{grpcLeader, "etcd, gRPC", color.RGBA{0xd5, 0x5e, 0x00, 0xff}},
	{gatewayLeader, "etcd, HTTP gateway", color.RGBA{0xe6, 0x9f, 0x00, 0xff}},
	{natsLane, "NATS KV, synced always", color.RGBA{0x00, 0x9e, 0x73, 0xff}},
	{redisLane, "Redis, synced always, one node", color.RGBA{0xcc, 0x79, 0xa7, 0xff}},
	{bareHandlerLane, "net/http over a map, nothing stored", color.RGBA{0xa0, 0xa0, 0xa0, 0xff}},
}

const (
	pictureWidth  = 20 * vg.Centimeter
	pictureHeight = 11 * vg.Centimeter
	barWidth      = 0.35 * vg.Centimeter
	barGap        = 0.08 * vg.Centimeter
)

// bar is one bar: a rate in its group, and the slowest and the fastest turn.
type bar struct {
	group              float64
	rate, lowest, most float64
}

// bars returns the bars of a lane; rows in which it was not measured have none.
func (r *report) bars(lane string, rows []string) []bar {
	var out []bar
	for i, row := range rows {
		l, ok := r.line(row, lane)
		rate := l.figure("rate/s")
		if !ok || rate == 0 {
			continue
		}
		b := bar{group: float64(i), rate: rate, lowest: rate, most: rate}
		for _, t := range l.Turns {
			b.lowest, b.most = min(b.lowest, t), max(b.most, t)
		}
		out = append(out, b)
	}
	return out
}

// draw writes the picture as SVG.
func (r *report) draw(path string) error {
	var rows, labels []string
	for _, p := range pictureRows {
		for _, o := range r.Rows {
			if o.Row == p.row {
				rows, labels = append(rows, p.row), append(labels, p.label)
			}
		}
	}
	if len(rows) == 0 {
		return errors.New("the picture: none of its rows was measured")
	}
	p := plot.New()
	p.Title.Text = fmt.Sprintf("Requests a second; servers and clients share %d cores", r.Machine.Cores)
	p.X.Label.Text = "operation, connections"
	p.Y.Min, p.Y.Tick.Marker = 0, rateTicks{}
	p.Legend.Top, p.Legend.Left, p.Legend.ThumbnailWidth = true, true, barWidth
	p.Legend.TextStyle.Font.Size = 9
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	var lanes []pictureLane // that were measured in any row
	for _, l := range pictureLanes {
		if len(r.bars(l.lane, rows)) > 0 {
			lanes = append(lanes, l)
		}
	}
	for i, l := range lanes {
		offset := (vg.Length(i) - vg.Length(len(lanes)-1)/2) * (barWidth + barGap)
		if err := addBars(p, r.bars(l.lane, rows), len(rows), offset, l); err != nil {
			return fmt.Errorf("the picture, %s: %w", l.lane, err)
		}
	}
	p.NominalX(labels...)
	p.X.Min, p.X.Max = -0.5, float64(len(rows))-0.5
	p.Y.Max *= 1.45 // room for the legend
	return p.Save(pictureWidth, pictureHeight, path)
}

// addBars draws the bars of one lane, each with its rate above it and a line from
// the slowest to the fastest turn.
func addBars(p *plot.Plot, bars []bar, groups int, offset vg.Length, l pictureLane) error {
	values := make(plotter.Values, groups)
	var texts plotter.XYLabels
	for _, b := range bars {
		values[int(b.group)] = b.rate
		texts.XYs = append(texts.XYs, plotter.XY{X: b.group, Y: b.most})
		texts.Labels = append(texts.Labels, thousands(b.rate))
	}
	chart, err := plotter.NewBarChart(values, barWidth)
	if err != nil {
		return err
	}
	chart.Color, chart.Offset, chart.LineStyle.Width = l.colour, offset, 0
	numbers, err := plotter.NewLabels(texts)
	if err != nil {
		return err
	}
	numbers.Offset = vg.Point{X: offset, Y: 2}
	for i := range numbers.TextStyle {
		numbers.TextStyle[i].XAlign, numbers.TextStyle[i].Font.Size = -0.5, 6
	}
	p.Add(chart, spans{bars, offset}, numbers)
	p.Legend.Add(l.label, chart)
	return nil
}

// thousands returns a rate as people say it: 21k, or 1.3k where a digit more counts.
func thousands(rate float64) string {
	switch {
	case rate < 1000:
		return fmt.Sprintf("%.0f", rate)
	case rate < 9950:
		return fmt.Sprintf("%.1fk", rate/1000)
	}
	return fmt.Sprintf("%.0fk", rate/1000)
}

// rateTicks labels as the library does, in the words of thousands.
type rateTicks struct{ plot.DefaultTicks }

// Ticks implements plot.Ticker.
func (r rateTicks) Ticks(lo, hi float64) []plot.Tick {
	ticks := r.DefaultTicks.Ticks(lo, hi)
	for i, t := range ticks {
		if !t.IsMinor() {
			ticks[i].Label = thousands(t.Value)
		}
	}
	return ticks
}

// spans are the lines from the slowest to the fastest turn, upon the bars.
type spans struct {
	bars   []bar
	offset vg.Length
}

// Plot implements plot.Plotter.
func (s spans) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	style := draw.LineStyle{Color: color.Black, Width: vg.Points(0.7)}
	for _, b := range s.bars {
		at := x(b.group) + s.offset
		c.StrokeLine2(style, at, y(b.lowest), at, y(b.most))
	}
}
