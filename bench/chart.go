package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// chart is how some figures grow along an axis.
type chart struct {
	file, title string
	x, y        string // what the axes are; x is logarithmic
	logY        bool
	binary      bool // x in powers of two, as sizes are
	curves      []*curve
}

// curve is one figure of one system.
type curve struct {
	name   string
	points plotter.XYs
}

// add adds a point to the curve of a name, which it makes if need be.
func (c *chart) add(name string, x, y float64) {
	for _, cu := range c.curves {
		if cu.name == name {
			cu.points = append(cu.points, plotter.XY{X: x, Y: y})
			return
		}
	}
	c.curves = append(c.curves, &curve{name, plotter.XYs{{X: x, Y: y}}})
}

// The colours of the curves, which also people tell apart who see few colours.
var palette = []color.RGBA{
	{0x00, 0x72, 0xb2, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0xe6, 0x9f, 0x00, 0xff},
}

// draw writes the chart as SVG.
func (c *chart) draw(dir string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.ConstantTicks(c.ticks())
	if c.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, logTicks{}
	} else {
		p.Y.Min, p.Y.Tick.Marker = 0, wholeTicks{}
	}
	p.Legend.Top, p.Legend.Left = true, c.rises() // where the curves are not
	p.Add(plotter.NewGrid())
	for i, cu := range c.curves {
		line, points, err := plotter.NewLinePoints(cu.points)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		line.Color, points.Color = palette[i%len(palette)], palette[i%len(palette)]
		line.Width = vg.Points(1.5)
		p.Add(line, points)
		p.Legend.Add(cu.name, line, points)
	}
	if !c.logY {
		p.Y.Max *= 1.15 // room for the legend
	}
	return p.Save(16*vg.Centimeter, 10*vg.Centimeter, filepath.Join(dir, c.file))
}

// ticks marks the places that were measured, and no others.
func (c *chart) ticks() []plot.Tick {
	var ticks []plot.Tick
	seen := map[float64]bool{}
	for _, cu := range c.curves {
		for _, p := range cu.points {
			if !seen[p.X] {
				ticks = append(ticks, plot.Tick{Value: p.X, Label: c.short(p.X)})
			}
			seen[p.X] = true
		}
	}
	return ticks
}

// logTicks marks 1 to 9 of each power of ten and labels 1, 2 and 5: most of these
// axes have only one or two powers.
type logTicks struct{}

// Ticks implements plot.Ticker.
func (logTicks) Ticks(lo, hi float64) (ticks []plot.Tick) {
	for power := math.Floor(math.Log10(lo)); ; power++ {
		for digit := 1.0; digit < 10; digit++ {
			t := plot.Tick{Value: digit * math.Pow(10, power)}
			if t.Value > hi {
				return ticks
			}
			if digit == 1 || digit == 2 || digit == 5 {
				t.Label = strconv.FormatFloat(t.Value, 'f', max(0, int(-power)), 64)
			}
			ticks = append(ticks, t)
		}
	}
}

// wholeTicks labels as the library does, without decimals.
type wholeTicks struct{ plot.DefaultTicks }

// Ticks implements plot.Ticker.
func (w wholeTicks) Ticks(lo, hi float64) []plot.Tick {
	ticks := w.DefaultTicks.Ticks(lo, hi)
	for i, t := range ticks {
		if !t.IsMinor() {
			ticks[i].Label = strconv.FormatFloat(t.Value, 'f', 0, 64)
		}
	}
	return ticks
}

// rises tells whether the first curve ends higher than it begins.
func (c *chart) rises() bool {
	points := c.curves[0].points
	return points[len(points)-1].Y > points[0].Y
}

// unit is a large number that has a letter.
type unit struct {
	size int64
	name string
}

// short returns a place on the axis, as 10k or, with binary, 64Ki for 65536.
func (c *chart) short(x float64) string {
	units := []unit{{1e6, "M"}, {1e3, "k"}}
	if c.binary {
		units = []unit{{1 << 20, "Mi"}, {1 << 10, "Ki"}}
	}
	n := int64(x)
	for _, u := range units {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return fmt.Sprint(n)
}

// outcome returns the chart as numbers.
func (c *chart) outcome() outcome {
	o := outcome{Row: c.title, Notes: []string{c.y + ", by " + c.x + "; " + c.file}}
	for _, cu := range c.curves {
		l := line{Name: cu.name}
		for _, p := range cu.points {
			l.Figures = append(l.Figures, figure{Name: c.short(p.X), Value: p.Y, decimals: 1})
		}
		o.Lines = append(o.Lines, l)
	}
	return o
}
