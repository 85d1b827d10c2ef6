package config

import (
	"strings"
	"testing"
)

// Guarantee: the error about a flag that does not exist names those that are near to it.
func TestUnknownFlagSuggests(t *testing.T) {
	for _, tt := range []struct{ flag, want string }{
		{"--prot", "--prot; did you mean --port?"},
		{"--potr=1", "--potr; did you mean --port?"},
		{"--data-dri", "--data-dri; did you mean --data-dir?"},
		{"--cart-fil", "--cart-fil; did you mean --cert-file?"},
		{"--cart-fl=x", "--cart-fl"}, // 3 are wrong
		{"--po", "--po"},
		{"--nothing-of-that-kind", "--nothing-of-that-kind"},
		{"-x", "unknown flag: -x"},
	} {
		_, err := Parse([]string{tt.flag}, mapEnv(nil))
		if err == nil || !strings.HasSuffix(strings.SplitN(err.Error(), "\n", 2)[0], tt.want) {
			t.Errorf("%s: %v, want %q", tt.flag, err, tt.want)
		}
	}
}

// Guarantee: what is swapped, missing, too much or another character counts as one.
func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"port", "port", 0}, {"prot", "port", 1}, {"tll", "ttl", 1}, {"abc", "xabc", 1}, {"abcd", "bcd", 1}, {"format", "from", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
