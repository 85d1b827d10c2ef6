package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"raftkv/client"
	"raftkv/internal/config"
	"regexp"
	"strings"
	"testing"
)

// node is an endpoint that says it is node id, or is not ready.
func node(t *testing.T, id int, ready bool, members string) *httptest.Server {
	role := "follower"
	if id == 2 {
		role = "leader"
	}
	f := &fake{t: t, answers: map[string]string{
		"GET /v1/status":  fmt.Sprintf(`200 {"id":%d,"cluster_id":"c1","role":%q,"leader":2,"term":3,"applied_index":17,"revision":9,"keys":4,"bytes":2048,"version":"v1","uptime_seconds":61}`, id, role),
		"GET /readyz":     "200 Content-Type: text/plain|ok",
		"GET /v1/members": "200 " + members,
	}}
	if !ready {
		f.answers["GET /readyz"] = `503 Content-Type: application/problem+json|{"code":"not_ready","status":503,"detail":"it has no leader","outcome":"not_applied"}`
	}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv
}

const threeMembers = `{"members":[{"id":1,"peer_url":"http://h:1","role":"voter","reachable":true,"match_index":17},{"id":2,"peer_url":"http://h:2","role":"voter","leader":true,"reachable":true,"match_index":17},{"id":3,"peer_url":"http://h:3","role":"learner","reachable":true,"match_index":17}],"removed":[]}`

// Guarantee: status has a row for each node, also for one that no endpoint leads to; what is
// not as it should be is said, exit 1.
func TestStatus(t *testing.T) {
	one, two, three := node(t, 1, true, threeMembers), node(t, 2, true, threeMembers), node(t, 3, true, threeMembers)
	all := strings.Join([]string{three.URL, one.URL, two.URL}, ",")
	code, out, errs := run(t, all, "", "status")
	want := `^ID  ENDPOINT +ROLE +READY  TERM  APPLIED  REVISION  KEYS  SIZE +VERSION  UP
1   http://127.0.0.1:\d+  follower  yes    3     17       9         4     2.0 KiB  v1       1m1s
2   http://127.0.0.1:\d+  leader    yes    3     17       9         4     2.0 KiB  v1       1m1s
3   http://127.0.0.1:\d+  follower  yes    3     17       9         4     2.0 KiB  v1       1m1s
$`
	if code != config.ExitOK || errs != "" || !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	code, out, errs = run(t, all, "", "status", "--output", "json")
	var nodes []nodeStatus
	if err := json.Unmarshal([]byte(out), &nodes); err != nil || code != config.ExitOK || len(nodes) != 3 || !nodes[1].Member.Leader || nodes[2].Status.Keys != 4 || nodes[0].Endpoint != one.URL {
		t.Errorf("exit %d, %v\n%s%s", code, err, out, errs)
	}

	code, out, errs = run(t, one.URL, "", "status")
	if code != config.ExitOK || !regexp.MustCompile(`(?m)^3   - +learner +-`).MatchString(out) || errs != "" {
		t.Errorf("two of three are behind no endpoint: exit %d\n%s%s", code, out, errs)
	}

	lame := node(t, 3, false, threeMembers)
	gone := httptest.NewServer(nil)
	gone.Close()
	code, out, errs = run(t, strings.Join([]string{one.URL, two.URL, lame.URL, gone.URL}, ","), "", "status")
	if code != config.ExitFault || !regexp.MustCompile(`(?m)^3 .* no +3 `).MatchString(out) || !regexp.MustCompile(`(?m)^- +`+gone.URL+` +no answer`).MatchString(out) ||
		!strings.Contains(errs, lame.URL) || !strings.Contains(errs, "it has no leader") || !strings.Contains(errs, gone.URL) || strings.Contains(errs, one.URL+":") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// Guarantee: each thing that is not as it should be is named.
func TestStatusFindsFaults(t *testing.T) {
	no := false
	up := func(id uint64) nodeStatus {
		return nodeStatus{Endpoint: fmt.Sprint("e", id), ID: id, Ready: true, Status: &client.Status{ID: id}}
	}
	down := nodeStatus{Endpoint: "e9", Fault: "refused"}
	leader := client.Member{ID: 1, Leader: true}
	for _, tt := range []struct {
		asked   []nodeStatus
		members []client.Member
		given   bool
		rows    int
		want    string
	}{
		{[]nodeStatus{up(1)}, []client.Member{leader}, true, 1, ""},
		{[]nodeStatus{up(1), down}, []client.Member{leader}, true, 2, "e9: refused"},
		{[]nodeStatus{up(1), down}, []client.Member{leader}, false, 1, ""},
		{[]nodeStatus{down}, nil, false, 1, "e9: refused"},
		{[]nodeStatus{up(1), up(2)}, []client.Member{{ID: 1}, {ID: 2}}, true, 2, "no node leads"},
		{[]nodeStatus{up(1)}, []client.Member{leader, {ID: 2, Reachable: &no}}, true, 2, "the leader does not reach node 2"},
		{[]nodeStatus{{Endpoint: "e1", ID: 1, Ready: true, Status: &client.Status{Diverged: true}}}, []client.Member{leader}, true, 1, "its data is not that of the others"},
	} {
		nodes, problems := together(tt.asked, tt.members, tt.given)
		text := fmt.Sprint(errors.Join(problems...))
		if len(nodes) != tt.rows || (tt.want == "") != (len(problems) == 0) || !strings.Contains(text, tt.want) {
			t.Errorf("%+v: %d rows, %s; want %d, %s", tt, len(nodes), text, tt.rows, tt.want)
		}
	}
	var out strings.Builder
	if err := statusTable([]nodeStatus{up(1), down, {ID: 2, Member: &client.Member{Role: "voter"}}}, true)(&out); err != nil || strings.Count(out.String(), red) != 1 ||
		!regexp.MustCompile(`\n\x1b\[31m-   e9 .*-\x1b\[0m\n2 `).MatchString(out.String()) {
		t.Errorf("%q, %v", out.String(), err)
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 40: "5.0 TiB", 1 << 60: "1048576.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

// Guarantee: a value stands in one line of a table, whatever is in it, and is cut.
func TestOneLine(t *testing.T) {
	for value, want := range map[string]string{
		"":                             "",
		"hello":                        "hello",
		"äöü €":                        "äöü €",
		"two\nlines":                   `"two\nlines"`,
		"\xff\x00":                     `"\xff\x00"`,
		`"quoted"`:                     `"\"quoted\""`,
		strings.Repeat("x", 80):        strings.Repeat("x", 80),
		strings.Repeat("x", 81):        strings.Repeat("x", 77) + "...",
		strings.Repeat("ä", 999):       strings.Repeat("ä", 77) + "...",
		"a" + strings.Repeat("ä", 999): "a" + strings.Repeat("ä", 76) + "...",
		strings.Repeat("\x80", 999):    `"` + strings.Repeat(`\x80`, 77) + `..."`,
		strings.Repeat("€", 999):       strings.Repeat("€", 77) + "...",
	} {
		if got := oneLine([]byte(value)); got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
}
