package testkit

import "go.uber.org/zap/zaptest/observer"

// Messages returns what was logged, without the fields.
func Messages(logs *observer.ObservedLogs) (got []string) {
	for _, e := range logs.All() {
		got = append(got, e.Message)
	}
	return got
}
