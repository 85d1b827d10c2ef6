package main

import (
	"fmt"
	"image/color"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// chart is how some figures grow along an axis.
type chart struct {
	file, title string
	x, y        string // what the axes are; x is logarithmic
	logY        bool
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
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	} else {
		p.Y.Min = 0
	}
	p.Legend.Top = true
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
				ticks = append(ticks, plot.Tick{Value: p.X, Label: shortNumber(p.X)})
			}
			seen[p.X] = true
		}
	}
	return ticks
}

// shortNumber returns 1000000 as 1M and 65536 as 64Ki.
func shortNumber(v float64) string {
	n := int64(v)
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 20, "Mi"}, {1e6, "M"}, {1 << 10, "Ki"}, {1e3, "k"}} {
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
			l.Figures = append(l.Figures, figure{Name: shortNumber(p.X), Value: p.Y, decimals: 1})
		}
		o.Lines = append(o.Lines, l)
	}
	return o
}
