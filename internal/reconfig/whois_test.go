//go:build unix

package reconfig

import (
	"context"
	"errors"
	"raftkv/internal/address"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"strings"
	"testing"
)

// Guarantee: nobody has to answer for a member to be added; two answers that are alike refuse it, whatever stands between.
func TestOneNode(t *testing.T) {
	answers := map[string]peerclient.Process{"http://a:1": 1, "http://b:1": 2, "http://alias-of-a:1": 1, "http://alias-of-c:1": 3, "http://new:1": 4}
	ms := New(Config{ID: 3, Process: 3, Who: func(_ context.Context, url string) (peerclient.Process, error) {
		if p, ok := answers[url]; ok {
			return p, nil
		}
		return 0, errors.New("nobody answers")
	}})
	m := membership.New([]address.Peer{{ID: 1, URL: "http://a:1"}, {ID: 2, URL: "http://b:1"}, {ID: 3, URL: "http://c:1"}, {ID: 4, URL: "http://down:1"}})
	for _, test := range []struct {
		id   uint64
		url  string
		want string
	}{
		{5, "http://new:1", ""}, {5, "http://nobody:1", ""}, {5, "http://alias-of-a:1", "member 1"}, {5, "http://alias-of-c:1", "member 3"},
		{1, "http://alias-of-a:1", ""}, {3, "http://alias-of-c:1", ""}, {2, "http://alias-of-a:1", "member 1"}, {4, "http://alias-of-c:1", "member 3"},
	} {
		err := ms.checkOneNode(t.Context(), m, test.id, test.url)
		if (err == nil) != (test.want == "") || (err != nil && (!errors.Is(err, problem.ErrSameNode) || !strings.Contains(err.Error(), test.want))) {
			t.Errorf("member %d at %s: %v, want %q", test.id, test.url, err, test.want)
		}
	}
	// A member that has moved, and was not restarted yet, is still at its old address: another may take that.
	answers["http://old-of-b:1"] = answers["http://b:1"]
	delete(answers, "http://b:1")
	if err := ms.checkOneNode(t.Context(), m, 5, "http://old-of-b:1"); err != nil {
		t.Error(err)
	}
}
