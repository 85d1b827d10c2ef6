package main

import "github.com/prometheus/client_golang/prometheus"

// Each part of a node registers what it has to count.

// gauge registers a metric that goes up and down.
func gauge(reg prometheus.Registerer, name, help string, value func() float64) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// counter registers a metric that only goes up.
func counter(reg prometheus.Registerer, name, help string, value func() float64) {
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
}

// counters registers a metric that only goes up and has a label, with a function
// for each value of the label.
func counters(reg prometheus.Registerer, name, help, label string, values map[string]func() uint64) {
	for of, value := range values {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{label: of},
		}, func() float64 { return float64(value()) }))
	}
}
