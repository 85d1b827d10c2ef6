package web

import "testing"

// Guarantee: a read that waits is known for one however its query is written, so that it ends with
// the certificate of its client, and counts as what it is.
func TestRouteLabelOfPolls(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"", "kv"}, {"wait=1s", "poll"}, {"as=text&wait=1s", "poll"}, {"await=1s", "kv"},
		{"%77ait=1s", "poll"}, {"as=text&w%61it=1s", "poll"}, {"as=%26wait=1s", "kv"}, {"a+b=c&wait=1s", "poll"},
	} {
		if got := RouteLabel("GET", "/v1/kv/a", tt.query); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.query, got, tt.want)
		}
	}
}
