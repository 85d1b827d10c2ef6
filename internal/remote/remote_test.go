package remote

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// row returns the command that args begin with, and the rest of them.
func row(t *testing.T, args []string) (command.Command, string, []string) {
	t.Helper()
	at, name := command.Command{Sub: Commands()}, ""
	for len(at.Sub) > 0 && len(args) > 0 {
		i := slices.IndexFunc(at.Sub, func(c command.Command) bool { return c.Name == args[0] })
		if i < 0 {
			break
		}
		at, name, args = at.Sub[i], strings.TrimSpace(name+" "+args[0]), args[1:]
	}
	return at, name, args
}

// run runs a command against endpoints.
func run(t *testing.T, endpoints, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	c, name, rest := row(t, args)
	var out, errs bytes.Buffer
	env := func(v string) (string, bool) {
		if v == "RAFTKV_ENDPOINTS" && endpoints != "" {
			return endpoints, true
		}
		return "", false
	}
	o := &command.Call{Name: name, Env: env, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs}
	code = o.Finish(c.Run(t.Context(), o, rest))
	return code, out.String(), errs.String()
}

// fake answers each request by the next of its answers, and keeps what was asked.
type fake struct {
	t       *testing.T
	mu      sync.Mutex
	asked   []string
	answers map[string]string // by method and path
}

// ServeHTTP answers "200 BODY", or "200 Header: value|BODY".
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	q, err := url.QueryUnescape(r.URL.RawQuery)
	if err != nil {
		f.t.Error(err)
	}
	line := strings.TrimSpace(fmt.Sprintf("%s %s?%s %s%s %s", r.Method, r.URL.Path, q, r.Header.Get("If-Match"), r.Header.Get("If-None-Match"), body))
	f.mu.Lock()
	f.asked = append(f.asked, line)
	answer, ok := f.answers[r.Method+" "+r.URL.Path]
	f.mu.Unlock()
	if !ok {
		answer = `404 Content-Type: application/problem+json|{"code":"not_found","status":404,"detail":"there is no such key","outcome":"not_applied"}`
	}
	var status int
	if _, err := fmt.Sscan(answer, &status); err != nil {
		f.t.Error(err)
	}
	_, answer, _ = strings.Cut(answer, " ")
	if headers, rest, found := strings.Cut(answer, "|"); found {
		answer = rest
		for header := range strings.SplitSeq(headers, ";;") {
			name, value, _ := strings.Cut(header, ": ")
			w.Header().Set(name, value)
		}
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Raftkv-Cluster-Id", "c1")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, answer) // who has gone is none of the test's
}

const item = `{"key":"k","value":"v\u0000<","create_revision":1,"mod_revision":2,"version":2,"expires_in_seconds":1.5}`

// Guarantee: each command asks for what its flags say, and prints what comes back, for people
// and for programs.
func TestRequests(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "value")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const ok = `200 ETag: "7"|`
	member := `{"id":4,"peer_url":"http://127.0.0.1:4","client_url":"","role":"learner","leader":false}`
	for _, tt := range []struct {
		args, stdin string
		answers     map[string]string
		asked       string // the last of the requests
		out, json   string
	}{
		{"get k", "", map[string]string{"GET /v1/kv/k": "200 " + item}, "GET /v1/kv/k?", "v\x00<",
			`{"key":"k","value":"v\u0000<","create_revision":1,"mod_revision":2,"version":2,"expires_in_seconds":1.5}`},
		{"get k --stale --max-age 2s", "", map[string]string{"GET /v1/kv/k": "200 " + item}, "GET /v1/kv/k?consistency=stale&max_age=2s", "v\x00<", ""},
		{"get --min-revision=9 k", "", map[string]string{"GET /v1/kv/k": "200 " + item}, "GET /v1/kv/k?min_revision=9", "v\x00<", ""},
		{"get a//b", "", map[string]string{"GET /v1/kv": "200 " + item}, "GET /v1/kv?key=a//b", "v\x00<", ""},
		{"put k v", "", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  v", "", `{"key":"k","mod_revision":7}`},
		{"put k -5", "", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  -5", "", ""},
		{"put k -- -v", "", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  -v", "", ""},
		{"put k", "from stdin", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  from stdin", "", ""},
		{"put k -", "from stdin", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  from stdin", "", ""},
		{"put k -f -", "from stdin", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  from stdin", "", ""},
		{"put k --file " + file, "", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?  from a file", "", ""},
		{"put k v --if-absent --ttl 30s", "", map[string]string{"PUT /v1/kv/k": ok}, "PUT /v1/kv/k?ttl=30s * v", "", ""},
		{"put k v --if-revision 6 --lease 3", "", map[string]string{"PUT /v1/kv/k": ok}, `PUT /v1/kv/k?lease=3 "6" v`, "", ""},
		{"put k v --if-present", "", map[string]string{"PUT /v1/kv/k": ok}, `PUT /v1/kv/k? * v`, "", ""},
		{"delete k", "", map[string]string{"DELETE /v1/kv/k": "204 "}, "DELETE /v1/kv/k?", "", `{"deleted":1}`},
		{"delete k --if-revision 6", "", map[string]string{"DELETE /v1/kv/k": "204 "}, `DELETE /v1/kv/k? "6"`, "", ""},
		{"delete --prefix p/", "", map[string]string{"DELETE /v1/kv": `200 {"deleted":3,"revision":8}`}, "DELETE /v1/kv?prefix=p/", "3\n", `{"deleted":3}`},
		{"delete --all", "", map[string]string{"DELETE /v1/kv": `200 {"deleted":3,"revision":8}`}, "DELETE /v1/kv?all=true&limit=10000", "3\n", ""},
		{"add n", "", map[string]string{"POST /v1/add": ok + "1"}, "POST /v1/add?key=n  1", "1\n", `{"key":"n","value":"1"}`},
		{"add n -3 --ttl 1m", "", map[string]string{"POST /v1/add": ok + "-2"}, "POST /v1/add?key=n&ttl=1m0s  -3", "-2\n", ""},
		{"append p/ v", "", map[string]string{"POST /v1/kv": `201 ETag: "7";;Location: /v1/kv/p%2F1|`}, "POST /v1/kv?prefix=p/  v", "p/1\n", `{"key":"p/1","mod_revision":7}`},
		{"list p/", "", map[string]string{"GET /v1/kv": `200 {"revision":9,"items":[` + item + `]}`}, "", "k  \"v\\x00<\"\n",
			`{"key":"k","value":"v\u0000<","create_revision":1,"mod_revision":2,"version":2,"expires_in_seconds":1.5}`},
		{"list --keys-only", "", map[string]string{"GET /v1/kv": `200 {"revision":9,"items":[{"key":"k","create_revision":1,"mod_revision":2,"version":2}]}`}, "", "k\n",
			`{"key":"k","create_revision":1,"mod_revision":2,"version":2}`},
		{"list --count p/", "", map[string]string{"GET /v1/kv": `200 {"revision":9,"count":5}`}, "GET /v1/kv?count=true&prefix=p/", "5\n", `{"count":5}`},
		{"list --delimiter / p/", "", map[string]string{"GET /v1/kv": `200 {"revision":9,"items":[` + item + `],"prefixes":["p/a/"]}`}, "", "k  \"v\\x00<\"\np/a/\n", ""},
		{"lease grant 30s", "", map[string]string{"POST /v1/leases": `201 {"id":3,"ttl_seconds":30}`}, `POST /v1/leases?  {"ttl":"30s"}`, "3\n", `{"id":3,"ttl_seconds":30}`},
		{"lease keep 3", "", map[string]string{"PUT /v1/leases/3": `200 {"id":3,"expires_in_seconds":30}`}, "PUT /v1/leases/3?", "30s\n", `{"id":3,"expires_in_seconds":30}`},
		{"lease show 3", "", map[string]string{"GET /v1/leases/3": `200 {"id":3,"ttl_seconds":30,"expires_in_seconds":7.5,"key_count":1,"keys":["k"]}`}, "GET /v1/leases/3?",
			"lease       3\ntime        30s\nexpires in  7.5s\nkeys        1\n  k\n", `{"id":3,"ttl_seconds":30,"expires_in_seconds":7.5,"key_count":1,"keys":["k"]}`},
		{"lease list", "", map[string]string{"GET /v1/leases": `200 {"leases":[{"id":3,"ttl_seconds":30,"expires_in_seconds":7.5,"key_count":0}]}`}, "GET /v1/leases?",
			"LEASE  TIME  EXPIRES IN  KEYS  OWNER\n3      30s   7.5s        0\n", `{"id":3,"ttl_seconds":30,"expires_in_seconds":7.5,"key_count":0}`},
		{"lease revoke 3", "", map[string]string{"DELETE /v1/leases/3": "204 "}, "DELETE /v1/leases/3?", "", `{"id":3}`},
		{"member add http://127.0.0.1:4 --id 4 --role learner", "", map[string]string{"POST /v1/members": "201 " + member}, `POST /v1/members?  {"id":4,"peer_url":"http://127.0.0.1:4","role":"learner"}`, "4\n", ""},
		{"member add http://127.0.0.1:4 --force", "", map[string]string{"POST /v1/members": "201 " + member}, `POST /v1/members?force=true  {"peer_url":"http://127.0.0.1:4"}`, "4\n", ""},
		{"member remove 4", "", map[string]string{"DELETE /v1/members/4": "204 "}, "DELETE /v1/members/4?", "", `{"removed":4}`},
		{"member promote 4", "", map[string]string{"PATCH /v1/members/4": "200 " + member}, `PATCH /v1/members/4?  {"role":"voter"}`,
			"ID  ROLE     REACHABLE  MATCH  PEER URL            CLIENT URL\n4   learner  -          -      http://127.0.0.1:4  -\n", ""},
		{"member update 4 --peer-url http://127.0.0.1:5", "", map[string]string{"PATCH /v1/members/4": "200 " + member}, `PATCH /v1/members/4?  {"peer_url":"http://127.0.0.1:5"}`, "*", ""},
		{"leader", "", map[string]string{"GET /v1/members": `200 {"members":[{"id":2,"peer_url":"http://127.0.0.1:2","leader":true,"role":"voter"}],"removed":[]}`}, "GET /v1/members?", "2\n", `{"leader":2}`},
		{"leader move", "", map[string]string{"POST /v1/leader": `200 {"leader":3}`}, "POST /v1/leader?  {}", "3\n", `{"leader":3}`},
		{"leader move 2", "", map[string]string{"POST /v1/leader": `200 {"leader":2}`}, `POST /v1/leader?  {"id":2}`, "2\n", ""},
	} {
		f := &fake{t: t, answers: tt.answers}
		srv := httptest.NewServer(f)
		code, out, errs := run(t, srv.URL, tt.stdin, strings.Fields(tt.args)...)
		if code != config.ExitOK || out != tt.out && tt.out != "*" || errs != "" {
			t.Errorf("%s: exit %d\n%q, want\n%q\n%s", tt.args, code, out, tt.out, errs)
		}
		if tt.asked != "" && f.asked[len(f.asked)-1] != tt.asked {
			t.Errorf("%s asked for %q, want %q", tt.args, f.asked, tt.asked)
		}
		if tt.json != "" {
			_, name, rest := row(t, strings.Fields(tt.args))
			code, out, errs := run(t, srv.URL, tt.stdin, slices.Concat(strings.Fields(name), []string{"--output", "json"}, rest)...)
			if code != config.ExitOK || out != tt.json+"\n" || errs != "" {
				t.Errorf("%s with JSON: exit %d\n%s, want\n%s\n%s", tt.args, code, out, tt.json, errs)
			}
		}
		srv.Close()
	}
}

// Guarantee: no is exit 3, an error 1, and both are said on standard error, once.
func TestRefusals(t *testing.T) {
	failed := `412 Content-Type: application/problem+json;;ETag: "7"|{"code":"precondition_failed","status":412,"detail":"the condition does not hold","outcome":"not_applied"}`
	for _, tt := range []struct {
		args    string
		answers map[string]string
		code    int
		errs    string
		problem string
	}{
		{"get k", nil, 3, `^raftkv get: "k": not_found: there is no such key`, "not_found"},
		{"put k v --if-absent", map[string]string{"PUT /v1/kv/k": failed}, 3, `^raftkv put: "k": precondition_failed: the condition does not hold`, "precondition_failed"},
		{"delete k", nil, 3, `^raftkv delete: there is no key "k"$`, ""},
		{"leader", map[string]string{"GET /v1/members": `200 {"members":[],"removed":[]}`}, 3, `^raftkv leader: no node leads$`, ""},
		{"add n", map[string]string{"POST /v1/add": `409 Content-Type: application/problem+json|{"code":"not_a_number","status":409,"detail":"the value is no number","outcome":"not_applied"}`}, 1,
			`^raftkv add: "n": not_a_number: the value is no number`, "not_a_number"},
		{"get k --token-file /nonexistent", map[string]string{"GET /v1/kv/k": "200 " + item}, 1, "/nonexistent", ""},
	} {
		srv := httptest.NewServer(&fake{t: t, answers: tt.answers})
		code, out, errs := run(t, srv.URL, "", strings.Fields(tt.args)...)
		if code != tt.code || out != "" || !regexp.MustCompile(tt.errs).MatchString(strings.TrimSuffix(errs, "\n")) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit %d\n%s%s", tt.args, code, out, errs)
		}
		var said struct {
			Error, Code, Outcome string
			Exit                 int
		}
		code, _, errs = run(t, srv.URL, "", append(strings.Fields(tt.args), "--output=json")...)
		if err := json.Unmarshal([]byte(errs), &said); err != nil || code != tt.code || said.Exit != tt.code || said.Code != tt.problem || tt.problem != "" && said.Outcome != "not_applied" {
			t.Errorf("%s with JSON: exit %d, %+v, %v\n%s", tt.args, code, said, err, errs)
		}
		srv.Close()
	}
}

// Guarantee: all that is wrong with a command line is named at once, exit 2, and nothing is asked.
func TestUsage(t *testing.T) {
	f := &fake{t: t}
	srv := httptest.NewServer(f)
	defer srv.Close()
	for args, want := range map[string][]string{
		"get": {"expected KEY"},
		"get a b --stale --min-revision 3 --wait 0s --bogus": {`unexpected argument "b": expected no more than 1`, "only one of --stale and --min-revision", "--wait", "--bogus"},
		"get a --max-age 1s": {"--max-age", "--stale or --min-revision"},
		"get a --endpoints ftp://x,http://h:1/path --timeout -1s": {`"ftp://x"`, `"http://h:1/path"`, "--timeout"},
		"get a --endpoints http://h:1,http://h:1/ --key x":        {"only once", "--key", "also --cert"},
		"get a --endpoints= -o xml":                               {"--endpoints", "table, json"},
		"put":                                                     {"expected KEY [VALUE]"},
		"put a b c":                                               {`"c"`},
		"put a b --file x --ttl 1 --lease y":                      {"--file", "no VALUE", "--ttl", "--lease"},
		"put a b --ttl 1s --lease 3 --if-absent --if-revision 3":  {"--ttl and --lease", "--if-absent and --if-revision"},
		"delete":                                 {"KEY, --prefix or --all"},
		"delete a --prefix b":                    {"only one of them"},
		"delete --prefix b --if-revision 3":      {"--if-revision", "only with KEY"},
		"add a x":                                {`DELTA "x"`, "whole number"},
		"add a 9223372036854775808":              {"DELTA", "64 bits"},
		"list a --count --delimiter / --limit x": {"--count and --delimiter", "--limit"},
		"list --limit 2147483649":                {"--limit", "2147483648"},
		"txn a b":                                {`"b"`},
		"lease grant 5":                          {"TIME", "with its unit"},
		"lease keep x":                           {`ID "x"`},
		"lease revoke 0":                         {`ID "0"`},
		"member add x --id 0 --role king":        {"PEER-URL", "--id", "voter, learner"},
		"member update 4":                        {"--peer-url or --role"},
		"member remove":                          {"expected ID"},
		"leader move x":                          {`ID "x"`},
		"status x":                               {`"x"`},
	} {
		code, out, errs := run(t, srv.URL, "x", strings.Fields(args)...)
		if code != config.ExitUsage || out != "" {
			t.Errorf("%s: exit %d\n%s%s", args, code, out, errs)
		}
		for _, w := range want {
			if !strings.Contains(errs, w) {
				t.Errorf("%s: %q is not said in\n%s", args, w, errs)
			}
		}
	}
	if len(f.asked) > 0 {
		t.Errorf("it asked %q", f.asked)
	}
}

// A value may be as long as any node takes, and not longer.
func TestReadAll(t *testing.T) {
	if v, err := readAll(strings.NewReader("12345"), "f", 5); err != nil || string(v) != "12345" {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := readAll(strings.NewReader("123456"), "f", 5); err == nil || v != nil || !strings.Contains(err.Error(), "f has more than 5 bytes") {
		t.Errorf("%q, %v", v, err)
	}
}
