// Package meter registers metrics whose values are read when they are scraped, in
// one line each.
package meter

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Each part of a node registers what it has to count.

// Gauge registers a metric that goes up and down.
func Gauge(reg prometheus.Registerer, name, help string, value func() float64) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Counter registers a metric that only goes up.
func Counter(reg prometheus.Registerer, name, help string, value func() float64) {
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
}

// Counters registers a metric that only goes up and has a label, with a function
// for each value of the label.
func Counters(reg prometheus.Registerer, name, help, label string, values map[string]func() uint64) {
	for of, value := range values {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{label: of},
		}, func() float64 { return float64(value()) }))
	}
}
