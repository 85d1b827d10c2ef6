package exposure

import (
	"os"
	"raftkv/internal/config"
	"regexp"
	"strings"
	"testing"
)

// Guarantee: SECURITY.md explains each opening that a node can have, and names no flag and no
// metric that there is not.
func TestSecurityIsDocumented(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	text, metrics := read("SECURITY.md"), read("docs/metrics.md")
	for _, o := range openings {
		if !strings.Contains(text, "`"+o.name+"`") || !strings.Contains(metrics, o.name) {
			t.Errorf("SECURITY.md or docs/metrics.md lacks %s", o.name)
		}
	}
	flags := map[string]bool{"version": true}
	cfg, list := config.DefaultConfig(), ""
	for _, s := range cfg.Settings(&list) {
		flags[s.Flag] = true
	}
	for _, m := range regexp.MustCompile("`[^`\\n]*?--([a-z][a-z-]*)").FindAllStringSubmatch(text, -1) {
		if !flags[m[1]] {
			t.Errorf("there is no flag --%s", m[1])
		}
	}
	for _, name := range regexp.MustCompile(`raftkv_[a-z_]+`).FindAllString(text, -1) {
		if !strings.Contains(metrics, "`"+name+"`") {
			t.Errorf("there is no metric %s", name)
		}
	}
	if n := strings.Count(text, "\n"); n > 130 {
		t.Errorf("%d lines are no page any more", n)
	}
}
