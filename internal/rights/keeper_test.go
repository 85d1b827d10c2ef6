package rights

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// keeperTest is a keeper of a file, and what it has logged.
type keeperTest struct {
	*testing.T
	*Keeper
	file string
	logs *observer.ObservedLogs
}

func newKeeperTest(t *testing.T, text string) *keeperTest {
	kt := &keeperTest{T: t, file: filepath.Join(t.TempDir(), "rights.yaml")}
	kt.write(text)
	core, logs := observer.New(zap.DebugLevel)
	kt.logs = logs
	k, err := New(Config{Log: zap.New(core), File: kt.file})
	testkit.Must(t, err)
	kt.Keeper = k
	return kt
}

func (kt *keeperTest) write(text string) {
	kt.T.Helper()
	testkit.Must(kt.T, os.WriteFile(kt.file, []byte(text), 0o600))
}

// name returns who a token is of, or the code of the problem.
func (kt *keeperTest) name(token string) string {
	c, err := kt.Table().Identify(nil, "Bearer "+token)
	if err != nil {
		return problem.CodeOf(err)
	}
	return c.Name()
}

func entryOf(name, token, rights string) string {
	return "- {name: " + name + ", tokens: " + hashOf(token) + ", rights: " + rights + "}\n"
}

// Guarantee: it fails closed at the start: without a file, or with one that is wrong, there is
// no keeper.
func TestKeeperStart(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	testkit.Must(t, os.WriteFile(broken, []byte("entries: []"), 0o600))
	for _, file := range []string{filepath.Join(dir, "none"), broken, dir} {
		if k, err := New(Config{Log: zap.NewNop(), File: file}); err == nil || k != nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Guarantee: another text is in force at once, whatever the file's time says; a broken one, or
// none, keeps the rights that there were, and is told once; the next good one ends that.
func TestKeeperReload(t *testing.T) {
	kt := newKeeperTest(t, "entries:\n"+entryOf("a", "t-a", "all"))
	changes := 0
	kt.OnChange(func() { changes++ })
	check := func(what, a, b string, trouble bool, want int) {
		t.Helper()
		if kt.name("t-a") != a || kt.name("t-b") != b || (kt.Trouble() != nil) != trouble || changes != want {
			t.Errorf("%s: a token is %q, the other %q, trouble %v, %d changes", what, kt.name("t-a"), kt.name("t-b"), kt.Trouble(), changes)
		}
	}
	hash := kt.Table().Hash()
	kt.Look()
	check("nothing new", "a", "unauthenticated", false, 0)
	info, err := os.Stat(kt.file)
	testkit.Must(t, err)
	kt.write("entries:\n" + entryOf("b", "t-b", "all"))
	testkit.Must(t, os.Chtimes(kt.file, info.ModTime(), info.ModTime()))
	kt.Look()
	check("another", "unauthenticated", "b", false, 1)
	if kt.Table().Hash() == hash {
		t.Error("the hash has not changed")
	}
	for _, text := range []string{"entries:\n" + entryOf("a", "t-a", "everything"), "anonymous: [", ""} {
		kt.write(text)
		kt.Look()
		kt.Look()
		check("a broken one", "unauthenticated", "b", true, 1)
	}
	testkit.Must(t, os.Remove(kt.file))
	kt.Look()
	kt.Look()
	check("none", "unauthenticated", "b", true, 1)
	if n := kt.logs.FilterMessageSnippet("not in force").Len(); n != 4 {
		t.Errorf("%d lines tell of 4 broken files", n)
	}
	kt.write("entries:\n" + entryOf("b", "t-b", "all"))
	kt.Look()
	check("the same again", "unauthenticated", "b", false, 2)

	// As Kubernetes does it.
	dir := filepath.Dir(kt.file)
	testkit.Must(t, os.Remove(kt.file))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "one"), []byte("entries:\n"+entryOf("a", "t-a", "all")), 0o600))
	testkit.Must(t, os.Symlink("one", kt.file))
	kt.Look()
	check("a link", "a", "unauthenticated", false, 3)
	testkit.Must(t, os.Rename(kt.file, kt.file+"2"))
	kt.Look()
	check("gone for a moment", "a", "unauthenticated", true, 3)
	testkit.Must(t, os.Rename(kt.file+"2", kt.file))
	kt.Look()
	check("back as it was", "a", "unauthenticated", false, 4)

	reg := prometheus.NewRegistry()
	kt.Register(reg)
	families, err := reg.Gather()
	testkit.Must(t, err)
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"raftkv_auth_reloads_total ok": 4, "raftkv_auth_reloads_total failed": 5, "raftkv_auth_trouble": 0, "raftkv_auth_failures_total forbidden": 0} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
}

// Guarantee: what lasts is told when its right goes, once, by whatever it was given; and not
// while it stays.
func TestWhileMay(t *testing.T) {
	const read = "[{right: read, prefixes: [a/]}]"
	kt := newKeeperTest(t, "entries:\n"+entryOf("a", "t-a", read)+"anonymous: "+read)
	begin := func(authorization string) (why *error, stop func()) {
		t.Helper()
		ctx, c, err := kt.Admit(t.Context(), Shown{Authorization: authorization})
		if err != nil || CallerOf(ctx) != c {
			t.Fatal(c, err)
		}
		why = new(error)
		return why, WhileMay(ctx, func(err error) {
			if *why != nil {
				t.Error("it is told twice")
			}
			*why = err
		}, OnPrefix(Read, "a/"))
	}
	named, stopNamed := begin("Bearer t-a")
	defer stopNamed()
	nobody, stopNobody := begin("")
	defer stopNobody()
	ended, stop := begin("Bearer t-a")
	stop()
	kt.write("entries:\n" + entryOf("a", "t-a", "[{right: read, prefixes: ['']}]") + "anonymous: " + read)
	kt.Look()
	if *named != nil || *nobody != nil {
		t.Fatalf("lost while there was more: %v, %v", *named, *nobody)
	}
	kt.write("entries:\n" + entryOf("a", "t-a", "[{right: read, prefixes: [a/b]}]") + "anonymous: " + read)
	kt.Look()
	if !errors.Is(*named, problem.ErrForbidden) || *nobody != nil || *ended != nil {
		t.Fatalf("%v, %v, %v", *named, *nobody, *ended)
	}
	kt.write("entries:\n" + entryOf("b", "t-b", "all"))
	kt.Look()
	if !errors.Is(*nobody, problem.ErrUnauthenticated) || *ended != nil {
		t.Fatalf("%v, %v", *nobody, *ended)
	}
	// One that was admitted by rights that have gone since is told at once.
	ctx, _, err := kt.Admit(t.Context(), Shown{Authorization: "Bearer t-b"})
	testkit.Must(t, err)
	kt.write("entries:\n" + entryOf("c", "t-c", "all"))
	kt.Look()
	var why error
	WhileMay(ctx, func(err error) { why = err }, OnPrefix(Read, "a/"))()
	if !errors.Is(why, problem.ErrUnauthenticated) {
		t.Error(why)
	}
	if len(kt.holds) != 2 {
		t.Errorf("%d are held, want the two that have not stopped", len(kt.holds))
	}
	// Where there are no rights nothing is lost, and With has nothing to ask again.
	WhileMay(t.Context(), func(error) { t.Error("lost without rights") })()
	WhileMay(With(t.Context(), &Caller{}), func(error) { t.Error("lost") }, OnKey(Read, "a"))()
}

// Guarantee: Run looks at the file every few seconds, and tells of failures once a second, with
// their number and without anybody's token.
func TestKeeperRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kt := newKeeperTest(t, "entries:\n"+entryOf("a", "t-a", "all"))
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- kt.Keeper.Run(ctx) }()
		kt.write("entries:\n" + entryOf("b", "t-b", "all"))
		time.Sleep(lookEvery - time.Millisecond)
		synctest.Wait()
		if kt.name("t-a") != "a" {
			t.Error("the file was read too early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if kt.name("t-b") != "b" {
			t.Error("the file was not read in time")
		}
		for range 1000 {
			_, err := kt.Table().Identify(nil, "Bearer t-wrong")
			kt.Failed(err)
		}
		for range 7 {
			kt.Failed((&Caller{name: "a"}).May(OnKey(Read, "k")))
		}
		kt.Failed(problem.ErrNotFound)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		lines := kt.logs.FilterMessageSnippet("for want of a right").All()
		if len(lines) != 1 {
			t.Fatalf("%d lines", len(lines))
		}
		fields := lines[0].ContextMap()
		if fields["unauthenticated"] != uint64(1000) || fields["forbidden"] != uint64(7) || !strings.Contains(fields["last"].(string), "a lacks the right read") {
			t.Errorf("%v", fields)
		}
		for _, l := range kt.logs.All() {
			for _, v := range l.ContextMap() {
				if text, ok := v.(string); ok && strings.Contains(text, "t-wrong") {
					t.Errorf("a token is in the log: %v", l)
				}
			}
		}
		end()
		testkit.Must(t, <-done)
	})
}
