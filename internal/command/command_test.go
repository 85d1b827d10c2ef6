package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"raftkv/client"
	"raftkv/internal/config"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestOperands(t *testing.T) {
	for args, want := range map[string][4]any{
		"":                               {0, 0, false, false},
		"KEY":                            {1, 1, false, false},
		"[PREFIX]":                       {0, 1, false, false},
		"KEY [VALUE]":                    {1, 2, false, false},
		"KEY...":                         {1, anyNumber, false, false},
		"[KEY...]":                       {0, anyNumber, false, false},
		"[KEY]...":                       {0, anyNumber, false, false},
		"NAME -- COMMAND [ARG...]":       {1, 1, true, true},
		"NAME [-- COMMAND [ARG...]]":     {1, 1, true, false},
		"[KEY...] [-- COMMAND [ARG...]]": {0, anyNumber, true, false},
		"-- COMMAND":                     {0, 0, true, true},
	} {
		least, most, program, needed := Command{Args: args}.Operands()
		if got := [4]any{least, most, program, needed}; got != want {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
}

// try runs a command line of a command that notes what it gets.
func try(c Command, env map[string]string, args ...string) (o *Call, err error) {
	if c.New == nil {
		c.New = func() Action { return Action{Run: func(context.Context, *Call) error { return nil }} }
	}
	o = &Call{Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	return o, c.Run(context.Background(), o, args)
}

// Guarantee: the command line behind -- is the program's, word for word, and must be there
// where it is needed.
func TestProgram(t *testing.T) {
	needs, may := Command{Args: "NAME -- COMMAND [ARG...]"}, Command{Args: "[KEY...] [-- COMMAND [ARG...]]"}
	o, err := try(needs, nil, "n", "-o=json", "--", "sh", "-c", "x --output table", "--")
	if err != nil || !reflect.DeepEqual(o.Args, []string{"n"}) || !reflect.DeepEqual(o.Program, []string{"sh", "-c", "x --output table", "--"}) || o.Output != JSON {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"n"}, {"n", "--"}, {"--", "sh"}, {"n", "sh"}} {
		if _, err := try(needs, nil, args...); StatusOf(err) != config.ExitUsage || !strings.Contains(err.Error(), needs.Args) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if o, err := try(may, nil, "a", "b"); err != nil || len(o.Args) != 2 || o.Program != nil {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := try(may, nil, "--"); err != nil || o.Program == nil || len(o.Program) > 0 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := try(Command{Args: "KEY [VALUE]"}, nil, "--", "-k", "--output"); err != nil || !reflect.DeepEqual(o.Args, []string{"-k", "--output"}) {
		t.Errorf("%+v, %v", o, err)
	}
}

// Guarantee: flags of connecting come from the command line, else from the environment, else
// they are what the documents say.
func TestConnection(t *testing.T) {
	remote := Command{Remote: true}
	o, err := try(remote, nil)
	want := Connection{Endpoints: strings.Split(DefaultEndpoints, ","), Timeout: DefaultTimeout, endpointsText: DefaultEndpoints}
	if err != nil || !reflect.DeepEqual(o.Connection, want) || o.Output != Table {
		t.Errorf("%+v, %v", o.Connection, err)
	}
	env := map[string]string{
		"RAFTKV_ENDPOINTS": "https://a:1, b:2/", "RAFTKV_TOKEN": "secret", "RAFTKV_TOKEN_FILE": "f", "RAFTKV_CACERT": "ca",
		"RAFTKV_CLIENT_CERT": "c", "RAFTKV_CLIENT_KEY": "k", "RAFTKV_TIMEOUT": "5s", "RAFTKV_OUTPUT": "json", "RAFTKV_KEY": "no", "RAFTKV_CERT": "no",
	}
	o, err = try(remote, env)
	want = Connection{[]string{"https://a:1", "http://b:2"}, "f", "secret", "ca", "c", "k", 5 * time.Second, "https://a:1, b:2/"}
	if err != nil || !reflect.DeepEqual(o.Connection, want) || o.Output != JSON {
		t.Errorf("%+v, %v", o.Connection, err)
	}
	o, err = try(remote, env, "-endpoints", "http://c:3", "--token-file=g", "--cacert", "x", "--cert", "y", "--key", "z", "--timeout=1m", "--output", "table")
	want = Connection{[]string{"http://c:3"}, "g", "secret", "x", "y", "z", time.Minute, "http://c:3"}
	if err != nil || !reflect.DeepEqual(o.Connection, want) || o.Output != Table {
		t.Errorf("%+v, %v", o.Connection, err)
	}
	if _, err := try(Command{}, nil, "--endpoints", "http://c:3"); StatusOf(err) != config.ExitUsage {
		t.Errorf("a command that asks no cluster: %v", err)
	}
}

// Guarantee: the token of a file counts more than that in the environment, and goes with each
// request.
func TestClientToken(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Raftkv-Cluster-Id", "c1")
		fmt.Fprint(w, `{"members":[],"removed":[]}`)
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("of-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, nil, ""},
		{map[string]string{"RAFTKV_TOKEN": "of-env"}, nil, "Bearer of-env"},
		{map[string]string{"RAFTKV_TOKEN": "of-env"}, []string{"--token-file", file}, "Bearer of-the-file"},
		{map[string]string{"RAFTKV_TOKEN": "of-env", "RAFTKV_TOKEN_FILE": file}, nil, "Bearer of-the-file"},
	} {
		o, err := try(Command{Remote: true}, tt.env, append(tt.args, "--endpoints", srv.URL)...)
		if err != nil {
			t.Fatal(err)
		}
		c, err := o.Client()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Members(t.Context()); err != nil || got != tt.want {
			t.Errorf("%v: %q, %v", tt.env, got, err)
		}
		c.Close()
	}
}

// Guarantee: an error is exit 1, a wrong command line 2, a no 3, and what a command says itself
// is what it says.
func TestStatuses(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
		said string
	}{
		{nil, 0, ""},
		{errors.New("broken"), 1, "raftkv get: broken\n"},
		{errors.New("get \"k\": broken"), 1, "raftkv get: \"k\": broken\n"},
		{config.NewUsageError(errors.New("wrong")), 2, "raftkv get: wrong\nRun raftkv get --help for more.\n"},
		{No("there is no %q", "k"), 3, "raftkv get: there is no \"k\"\n"},
		{fmt.Errorf("call: %w", client.NotFound), 3, "raftkv get: call: not_found\n"},
		{client.PreconditionFailed, 3, "raftkv get: precondition_failed\n"},
		{client.NoSuchLease, 3, "raftkv get: no_such_lease\n"},
		{client.NoLeader, 1, "raftkv get: no_leader\n"},
		{ErrSaid, 1, ""},
		{fmt.Errorf("lock: %w", ExitError{Status: 4, Err: errors.New("lost")}), 4, "raftkv get: lock: lost\n"},
		{ExitError{Status: 130}, 130, ""},
	} {
		var errs bytes.Buffer
		o := &Call{Name: "get", Stderr: &errs}
		if got := o.Finish(tt.err); got != tt.want || errs.String() != tt.said {
			t.Errorf("%v: exit %d, %q; want %d, %q", tt.err, got, errs.String(), tt.want, tt.said)
		}
	}
}

// Guarantee: a value is written as it is when nobody looks on, and what is no terminal has no colours.
func TestRaw(t *testing.T) {
	var out bytes.Buffer
	o := &Call{Stdout: &out, Env: os.LookupEnv}
	if err := o.Raw([]byte("a\x00b")); err != nil || out.String() != "a\x00b" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if o.Colour(&out) || IsTerminal(&out) {
		t.Error("a buffer is a terminal")
	}
}

// Guarantee: an interrupted command says so, and is exit 1.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := &Call{Env: os.LookupEnv}
	c := Command{New: func() Action { return Action{Run: func(ctx context.Context, _ *Call) error { return ctx.Err() }} }}
	if err := c.Run(ctx, o, nil); StatusOf(err) != config.ExitFault || err.Error() != "interrupted" {
		t.Error(err)
	}
}

// full takes no more than so many bytes.
type full int

func (f *full) Write(b []byte) (int, error) {
	if *f -= full(len(b)); *f < 0 {
		return 0, errors.New("full")
	}
	return len(b), nil
}

// Guarantee: an answer that cannot be written whole is an error, in each form.
func TestAnswersThatCannotBeWritten(t *testing.T) {
	rows := [][]string{{"a", "b"}, {"longer", "c"}}
	var out bytes.Buffer
	if err := WriteTable(&out, rows...); err != nil || out.String() != "a       b\nlonger  c\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	table := func(w io.Writer) error { return WriteTable(w, rows...) }
	for form, most := range map[string]int{Table: out.Len(), JSON: len("[[\"a\",\"b\"],[\"longer\",\"c\"]]\n")} {
		enough, short := full(most), full(most-1)
		if err := (&Call{Output: form, Stdout: &enough}).Print(rows, table); err != nil {
			t.Errorf("%s: %v", form, err)
		}
		if err := (&Call{Output: form, Stdout: &short}).Print(rows, table); err == nil {
			t.Errorf("%s: no error", form)
		}
	}
	short := full(1)
	if err := (&Call{Stdout: &short}).Raw([]byte("ab")); err == nil {
		t.Error("raw: no error")
	}
}
