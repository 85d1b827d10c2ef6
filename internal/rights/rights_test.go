package rights

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"raftkv/internal/problem"
	"strings"
	"testing"
)

// hashOf is how a token stands in the file.
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hashPrefix + hex.EncodeToString(sum[:])
}

func parse(t testing.TB, text string) *Table {
	t.Helper()
	table, _, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return table
}

var sample = `
entries:
  - name: deployer
    tokens: ["` + hashOf("t-old") + `", "` + hashOf("t-new") + `"]
    rights:
      - {right: [read, write], prefixes: ["app/"], keys: [motd]}
      - {right: status}
  - name: web
    cert: [web.example, spiffe://kv/Web]
    rights:
      - {right: read, prefixes: ["public/", "pub", "public/deep/"]}
      - {right: read, keys: [b]}
  - name: root
    tokens: ` + hashOf("t-root") + `
    cert: root.example
    rights: all
  - name: saver
    tokens: ` + strings.ToUpper(hashOf("t-save"))[len(hashPrefix):] + `
    rights: [{right: backup}]
anonymous:
  - {right: read, keys: [motd]}
`

func init() {
	sample = strings.Replace(sample, "tokens: "+strings.ToUpper(hashOf("t-save"))[len(hashPrefix):], "tokens: "+hashPrefix+strings.ToUpper(hashOf("t-save"))[len(hashPrefix):], 1)
}

// Guarantee: a token that is sent decides alone, also where it is wrong; else the names of the
// certificate do, and who shows neither is anonymous.
func TestIdentify(t *testing.T) {
	table := parse(t, sample)
	for _, tt := range []struct {
		names         []string
		authorization string
		want          string // the name; "401"
	}{
		{nil, "", ""},
		{nil, "Bearer t-old", "deployer"},
		{nil, "Bearer t-new", "deployer"},
		{nil, "bearer t-root", "root"},
		{nil, "BEARER   t-save", "saver"},
		{[]string{"web.example"}, "", "web"},
		{[]string{"other.example", "WEB.example"}, "", "web"},
		{[]string{"spiffe://kv/Web"}, "", "web"},
		{[]string{"spiffe://kv/web"}, "", ""}, // another URI
		{[]string{"1.raftkv"}, "", ""},        // a member's name is nobody's here
		{[]string{"*.example"}, "", ""},
		{[]string{"web.example", "spiffe://kv/Web"}, "", "web"},
		{[]string{"web.example", "root.example"}, "", "401"},
		{[]string{"web.example"}, "Bearer t-root", "root"},
		{[]string{"root.example"}, "Bearer t-old", "deployer"},
		{[]string{"root.example"}, "Bearer wrong", "401"},
		{[]string{"root.example"}, "Basic dXNlcjpwYXNz", "401"},
		{nil, "Bearer wrong", "401"},
		{nil, "Bearer", "401"},
		{nil, "Bearer ", "401"},
		{nil, " ", "401"},
		{nil, "t-root", "401"},
		{nil, "Bearert-root", "401"},
		{nil, "Bearer t-root ", "401"},
		{nil, "Bearer T-ROOT", "401"},
		{nil, "Bearer t-root, Bearer t-old", "401"},
		{nil, "Bearer " + hashOf("t-root"), "401"},
		{nil, "Bearer " + hashOf("t-root")[len(hashPrefix):], "401"},
	} {
		c, err := table.Identify(tt.names, tt.authorization)
		got := "401"
		if err == nil {
			got = c.Name()
		} else if !errors.Is(err, problem.ErrUnauthenticated) {
			t.Errorf("%q %q: %v", tt.names, tt.authorization, err)
		}
		if got != tt.want {
			t.Errorf("%q %q is %q, want %q", tt.names, tt.authorization, got, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), "wrong") || strings.Contains(err.Error(), "t-root")) {
			t.Errorf("the error has a token: %v", err)
		}
	}
}

// Guarantee: rights add up, none reaches further than it says, a range lies in one prefix, and
// nobody's rights say anything but what the file does.
func TestMay(t *testing.T) {
	table := parse(t, sample)
	who := func(names []string, authorization string) *Caller {
		c, err := table.Identify(names, authorization)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	deployer, web, root := who(nil, "Bearer t-old"), who([]string{"web.example"}, ""), who(nil, "Bearer t-root")
	saver, nobody := who(nil, "Bearer t-save"), who(nil, "")
	for _, tt := range []struct {
		c     *Caller
		n     Need
		allow bool
	}{
		{deployer, OnKey(Read, "app/a"), true},
		{deployer, OnKey(Write, "app/"), true},
		{deployer, OnKey(Write, "motd"), true},
		{deployer, OnKey(Write, "motd2"), false},
		{deployer, OnKey(Write, "app"), false},
		{deployer, OnKey(Write, "App/a"), false},
		{deployer, OnKey(Write, "app0"), false},
		{deployer, OnKey(Write, "app/../b"), true}, // a key, literally
		{deployer, OnKey(Write, "/app/a"), false},
		{deployer, OnPrefix(Read, "app/"), true},
		{deployer, OnPrefix(Read, "app/a"), true},
		{deployer, OnPrefix(Read, "app"), false},
		{deployer, OnPrefix(Read, ""), false},
		{deployer, OnPrefix(Read, "motd"), false}, // that key alone
		{deployer, OnRange(Read, "", "app/", "app0"), true},
		{deployer, OnRange(Read, "", "app/a", "app/b"), true},
		{deployer, OnRange(Read, "", "app/a", "app0\x01"), false},
		{deployer, OnRange(Read, "", "app/a", ""), false},
		{deployer, OnRange(Read, "", "app", "app/b"), false},
		{deployer, OnRange(Read, "app", "app/", "app/z"), true},
		{deployer, OnRange(Read, "app/", "", "zzz"), true},
		{deployer, OnRange(Read, "", "motd", "motd\x00"), false},
		{deployer, OnSome(Write), true},
		{deployer, OnAnything(), true},
		{deployer, OfNode(Status), true},
		{deployer, OfNode(Backup), false},
		{deployer, OfNode(Admin), false},
		{deployer, OfNode(Read), false}, // it is of keys
		{deployer, Nothing(), true},
		{deployer, OnKey(Backup, "app/a"), false},

		{web, OnKey(Read, "public/a"), true},
		{web, OnKey(Read, "public/deep/a"), true},
		{web, OnKey(Read, "public0"), true}, // by pub
		{web, OnKey(Read, "b"), true},
		{web, OnKey(Write, "public/a"), false},
		{web, OnSome(Write), false},
		{web, OnAnything(), true},
		{web, OnKey(Read, "motd"), false}, // anonymous is not everybody

		{saver, OfNode(Backup), true},
		{saver, OnKey(Read, "motd"), false},
		{saver, OnAnything(), false},
		{nobody, OnKey(Read, "motd"), true},
		{nobody, OnKey(Write, "motd"), false},
		{nobody, OfNode(Status), false},
		{nobody, Nothing(), true},
		{root, OfNode(Admin), true},
		{root, OfNode(Backup), true},
		{root, OnPrefix(Write, ""), true},
		{nil, OfNode(Admin), true},
		{nil, OnPrefix(Write, ""), true},
	} {
		err := tt.c.May(Nothing(), tt.n)
		if (err == nil) != tt.allow {
			t.Errorf("%s: %s: %v", tt.c.Name(), tt.n, err)
		}
		want := problem.ErrForbidden
		if tt.c == nobody {
			want = problem.ErrUnauthenticated
		}
		if err != nil && (!errors.Is(err, want) || !strings.Contains(err.Error(), tt.n.String())) {
			t.Errorf("%s: %s: %v", tt.c.Name(), tt.n, err)
		}
		if err := tt.c.May(tt.n, Nothing()); (err == nil) != tt.allow {
			t.Errorf("%s, first: %s: %v", tt.c.Name(), tt.n, err)
		}
	}
	if err := (&Caller{name: "a"}).May(); err != nil {
		t.Error(err)
	}
}

// Guarantee: a need of a whole range is granted if and only if no key that it is of is outside
// one granted prefix. Keys here are of four letters, and the model tries all of them.
func TestRangeModel(t *testing.T) {
	universe := wordsOf("`abc", 4)
	short := append(wordsOf("`abc", 2), "")
	for _, granted := range append(wordsOf("ab", 2), "") {
		c := &Caller{name: "c"}
		c.give(Read, nil, []string{granted})
		for _, prefix := range short {
			for _, start := range short {
				for _, end := range short {
					checkRange(t, c, []string{granted}, universe, prefix, start, end)
				}
			}
		}
	}
}

// checkRange compares what is granted with the model. Where there is no key in the range it
// may be either.
func checkRange(t *testing.T, c *Caller, granted, universe []string, prefix, start, end string) {
	t.Helper()
	any, within := false, make([]bool, len(granted))
	for i := range within {
		within[i] = true
	}
	for _, key := range universe {
		if !strings.HasPrefix(key, prefix) || key < start || end != "" && key >= end {
			continue
		}
		any = true
		for i, g := range granted {
			within[i] = within[i] && strings.HasPrefix(key, g)
		}
	}
	want := false
	for _, w := range within {
		want = want || w
	}
	if got := c.May(OnRange(Read, prefix, start, end)) == nil; any && got != want {
		t.Fatalf("granted %q: prefix %q, start %q, end %q: %v, want %v", granted, prefix, start, end, got, want)
	}
}

// wordsOf returns all words of some letters up to a length.
func wordsOf(letters string, most int) (all []string) {
	last := []string{""}
	for range most {
		var next []string
		for _, w := range last {
			for _, l := range letters {
				next = append(next, w+string(l))
			}
		}
		all, last = append(all, next...), next
	}
	return all
}

// Guarantee: as TestRangeModel, for several prefixes at once, and for what a fuzzer finds.
func FuzzRange(f *testing.F) {
	f.Add("a", "ab", "ab", "", "b")
	f.Add("", "c", "a", "ab", "")
	f.Add("bb", "b", "", "ba", "bc")
	universe := wordsOf("`abc", 4)
	f.Fuzz(func(t *testing.T, g1, g2, prefix, start, end string) {
		for _, s := range []*string{&g1, &g2, &prefix, &start, &end} {
			*s = strings.Map(func(r rune) rune { return rune("`abc"[r&3]) }, *s)
			*s = (*s)[:min(2, len(*s))]
		}
		granted := []string{g1, g2}
		for _, g := range granted {
			if strings.HasPrefix(g, "`") || strings.HasSuffix(g, "c") {
				return // what is just below it, or behind it, is not among the model's keys
			}
		}
		c := &Caller{name: "c"}
		c.give(Read, nil, granted)
		checkRange(t, c, granted, universe, prefix, start, end)
	})
}

// Guarantee: the ends of prefixes are right also where the last byte is the highest.
func TestBehind(t *testing.T) {
	for prefix, want := range map[string]string{"": "", "a": "b", "a/": "a0", "a\xff": "b", "\xff": "", "\xff\xff": "", "é": "\xc3\xaa"} {
		if got := behind(prefix); got != want {
			t.Errorf("behind %q is %q, want %q", prefix, got, want)
		}
	}
	c := &Caller{name: "c"}
	c.give(Read, nil, []string{"\xff"})
	for _, n := range []Need{OnRange(Read, "", "\xff", ""), OnRange(Read, "", "\xff\x01", "\xff\x02"), OnKey(Read, "\xffa")} {
		if err := c.May(n); err != nil {
			t.Error(err)
		}
	}
	if c.May(OnRange(Read, "", "\xfe", "")) == nil || c.May(OnRange(Read, "", "a", "\xff")) == nil {
		t.Error("what is below the prefix is granted")
	}
}

// Guarantee: what is not known, doubled, or could be understood in two ways is refused, with
// its line.
func TestParseStrict(t *testing.T) {
	entry := "entries:\n- name: a\n  tokens: " + hashOf("a") + "\n"
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"# nothing\n", ""},
		{"{}", "line 1: it has neither"},
		{"- a", "line 1: the file takes"},
		{"entries: []", "line 1: entries is empty"},
		{"entries:\n  a: b", "line 2: entries is a list"},
		{"entries:\n- a", "line 2: an entry takes"},
		{"users:\n- name: a", `line 1: the file has no "users"`},
		{"anonymous: all\nanonymous: all", `line 2: "anonymous" is there twice`},
		{"anonymous: some", "line 1: rights, if they are not all, is a list"},
		{"anonymous: {right: read}", "line 1: rights, if they are not all, is a list"},
		{"anonymous: all\n---\nanonymous: all", ""},
		{"anonymous: &x all", "anchors"},
		{"entries: [] # not yet\ranonymous: all", "line 1: it has a line break within, at byte 22"},
		{"# a\n# b\u0085anonymous: all", "line 2: it has a line break within, at byte 4"},
		{"# a\u2028anonymous: all", "line 1: it has a line break within, at byte 4"},
		{"# a\u2029anonymous: all", "line 1: it has a line break within, at byte 4"},
		{"anonymous: all\r\r\n", "line 1: it has a line break within, at byte 15"},
		{"anonymous: !!str all", "line 1"},
		{"anonymous: all\nentries: *x", ""},
		{"anonymous:\n- {right: read, keys: [a], key: [b]}", `line 2: a right has no "key"`},
		{"anonymous:\n- {right: read, <<: {keys: [a]}}", `line 2: `},
		{"anonymous:\n- {keys: [a]}", "line 2: right is missing"},
		{"anonymous:\n- {right: reads, keys: [a]}", `line 2: there is no right "reads"`},
		{"anonymous:\n- {right: Read, keys: [a]}", `line 2: there is no right "Read"`},
		{"anonymous:\n- {right: [], keys: [a]}", "line 2: right is empty"},
		{"anonymous:\n- {right: [read, read], keys: [a]}", `line 2: right: "read" is there twice`},
		{"anonymous:\n- {right: read}", "line 2: read takes keys or prefixes"},
		{"anonymous:\n- {right: [read, status], keys: [a]}", "line 2: read and status stand apart"},
		{"anonymous:\n- {right: [status, read], keys: [a]}", "line 2: status and read stand apart"},
		{"anonymous:\n- {right: status, keys: [a]}", "line 2: status takes no keys"},
		{"anonymous:\n- {right: admin, prefixes: [a/]}", "line 2: admin takes no keys"},
		{"anonymous:\n- {right: backup, prefixes: [a/]}", "line 2: backup takes no keys"},
		{"anonymous:\n- right: read\n  keys: [a, a]", `line 3: keys: "a" is there twice`},
		{"anonymous:\n- right: read\n  keys: [a, 12]", "line 3: keys is a text: put 12 into quotes"},
		{"anonymous:\n- right: read\n  keys: [~]", "line 3: keys is a text"},
		{"anonymous:\n- right: read\n  keys:", "line 3: keys is a text"},
		{"anonymous:\n- right: read\n  keys: [[a]]", "line 3: keys is a text"},
		{"anonymous:\n- right: read\n  keys: ['']", "line 3: keys: no key is empty"},
		{"anonymous:\n- right: read\n  prefixes: [\"a\\0\"]", "line 3: prefixes: no key"},
		{"anonymous:\n- right: read\n  keys: [true]", "line 3: keys is a text"},
		{entry, "line 2: the entry has no rights"},
		{entry + "  rights: all\n" + "- name: a\n  cert: b\n  rights: all\n", "line 5: the name a is there twice, first on line 2"},
		{entry + "  rights: all\n" + "- name: b\n  tokens: " + hashOf("a") + "\n  rights: all\n", "line 6: a has this token"},
		{entry + "  rights: all\n  admin: true\n", `line 5: an entry has no "admin"`},
		{"entries:\n- tokens: " + hashOf("a") + "\n  rights: all", "line 2: an entry has no name"},
		{"entries:\n- name: a\n  rights: all", "line 2: the entry has neither tokens nor cert"},
		{"entries:\n- name: ''\n  cert: a\n  rights: all", "line 2: name: it is empty"},
		{"entries:\n- name: a b\n  cert: a\n  rights: all", "line 2: name: it is made of"},
		{"entries:\n- name: ä\n  cert: a\n  rights: all", "line 2: name: it is made of"},
		{"entries:\n- name: anonymous\n  cert: a\n  rights: all", "line 2: name: anonymous"},
		{"entries:\n- name: " + strings.Repeat("a", 129) + "\n  cert: a\n  rights: all", "line 2: name: it has 129 bytes"},
		{"entries:\n- name: a\n  tokens: secret\n  rights: all", "line 3: a token is sha256:"},
		{"entries:\n- name: a\n  tokens: [sha256:00]\n  rights: all", "line 3: a token is sha256:"},
		{"entries:\n- name: a\n  tokens: " + hashOf("a")[7:] + "\n  rights: all", "line 3: a token is"},
		{"entries:\n- name: a\n  tokens: " + hashOf("") + "\n  rights: all", "line 3: this is the SHA-256 of nothing"},
		{"entries:\n- name: a\n  cert: '*.example'\n  rights: all", "line 3: cert is a name as it stands"},
		{"entries:\n- name: a\n  cert: ''\n  rights: all", "line 3: cert is empty"},
		{"entries:\n- name: a\n  cert: [x, X]\n  rights: all", "line 3: a has this cert"},
		{"entries:\n- name: a\n  cert: x\n  rights: all\n- name: b\n  cert: X\n  rights: all", "line 6: a has this cert"},
		{"entries:\n- name: a\n  cert: x\n  rights: []", "line 4: rights, if they are not all, is empty"},
		{"entries:\n\t- name: a", "L2.C1"},
		{"anonymous: all\n" + strings.Repeat("#", MaxBytes), "it has 4194319 bytes"},
	} {
		_, _, err := Parse([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200q: %v, want %q", tt.text, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error has what may be a token: %v", err)
		}
	}
	// At the bounds.
	parse(t, "entries:\n- name: "+strings.Repeat("a", 128)+"\n  cert: a\n  rights: all")
	head := "anonymous: all\n"
	parse(t, head+strings.Repeat("#", MaxBytes-len(head)))
}

// Guarantee: a token that was pasted into the wrong place is not in the log.
func TestParseTellsNoToken(t *testing.T) {
	const token = "raftkv_us_P9jttUuuKMGXMb8ItnmDg8X-P_G6MGYVdG2gpmyo"
	for _, text := range []string{
		token + ": x\n", "entries:\n- {name: a, " + token + ": x}\n", "entries:\n- {name: a, tokens: " + token + ", rights: all}\n",
		"entries: *" + token + "\n", "anonymous: " + token + "\n", "entries:\n- {name: " + token + ", rights: all}\n- {name: " + token + ", rights: all}\n",
	} {
		_, _, err := Parse([]byte(text))
		if err == nil || strings.Contains(err.Error(), token[:20]) {
			t.Errorf("%s: %v", text, err)
		}
	}
	_, warnings, err := Parse([]byte("anonymous:\n- {right: read, prefixes: [" + token + "]}\n"))
	if err != nil || len(warnings) != 1 || strings.Contains(warnings[0].Text, token[:20]) {
		t.Errorf("%v, %v", warnings, err)
	}
}

// Guarantee: a prefix that takes in more than it seems, and a key that begins with a slash, are
// warned of, with their line.
func TestParseWarns(t *testing.T) {
	_, warnings, err := Parse([]byte("anonymous:\n- right: read\n  prefixes:\n  - ok/\n  - ''\n  - app\n  - /etc/\n  keys: [/a, b]\n"))
	want := []string{"line 8: keys: \"/a\" begins", "line 6: prefixes: \"app\" does not end", "line 7: prefixes: \"/etc/\" begins"}
	if err != nil || len(warnings) != len(want) {
		t.Fatalf("%v, %v", warnings, err)
	}
	for i, w := range warnings {
		if !strings.HasPrefix(w.String(), want[i]) {
			t.Errorf("%s, want %s", w, want[i])
		}
	}
}

// Guarantee: no file makes the parser fail otherwise than by an error, and a file that is taken
// gives each token and certificate to one entry.
func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("anonymous: all"))
	f.Add([]byte("a: &a [*a, *a]"))
	f.Add([]byte("entries:\n- {name: a, cert: b, rights: [{right: [read, write], prefixes: ['', 'a/'], keys: [b]}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, warnings, err := Parse(text)
		if err != nil {
			if table != nil || warnings != nil {
				t.Error("an error comes with a table")
			}
			return
		}
		if table.Hash() != sha256.Sum256(text) || table.Anonymous() == nil || table.Anonymous().Name() != "" {
			t.Error("hash or anonymous is not as it should be")
		}
		byName := map[string]*Caller{}
		for _, all := range []any{table.tokens, table.certs} {
			switch all := all.(type) {
			case map[[sha256.Size]byte]*Caller:
				for _, c := range all {
					note(t, byName, c)
				}
			case map[string]*Caller:
				for _, c := range all {
					note(t, byName, c)
				}
			}
		}
		if len(byName) != table.names {
			t.Errorf("%d entries can be recognized, of %d", len(byName), table.names)
		}
	})
}

func note(t *testing.T, byName map[string]*Caller, c *Caller) {
	t.Helper()
	if checkName(c.Name()) != nil {
		t.Errorf("the name is %q", c.Name())
	}
	if other := byName[c.Name()]; other != nil && other != c {
		t.Errorf("two entries are %q", c.Name())
	}
	byName[c.Name()] = c
	for r, s := range c.scopes {
		for _, p := range s.prefixes {
			if c.May(OnPrefix(Right(r), p), OnKey(Right(r), p+"a")) != nil {
				t.Errorf("%s may not what its prefix %q says", c.Name(), p)
			}
		}
		for k := range s.keys {
			if c.May(OnKey(Right(r), k)) != nil {
				t.Errorf("%s may not what its key %q says", c.Name(), k)
			}
		}
	}
}

func BenchmarkIdentifyAndMay(b *testing.B) {
	var text strings.Builder
	text.WriteString("entries:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "- {name: n%d, tokens: %s, rights: [{right: [read, write], prefixes: [a%d/, b%d/, c/]}]}\n", i, hashOf(fmt.Sprint("token ", i)), i, i)
	}
	table := parse(b, text.String())
	authorization := "Bearer token 500"
	b.ReportAllocs()
	for b.Loop() {
		c, err := table.Identify(nil, authorization)
		if err == nil {
			err = c.May(OnKey(Write, "b500/k"))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// Guarantee: the example in docs/security.md is a file that is taken, without a warning, and its
// tokens are nobody's guess; and the table there has every right.
func TestDocumentedFile(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	table, warnings, err := Parse([]byte(example))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, %v", err, warnings)
	}
	for _, tt := range []struct {
		name string
		n    Need
		may  bool
	}{
		{"", OnKey(Read, "motd"), true}, {"", OnKey(Read, "public/a"), false},
		{"web.example", OnPrefix(Read, "public/"), true}, {"web.example", OnKey(Read, "motd"), false},
		{"operator.example", OfNode(Admin), true},
	} {
		c, err := table.Identify([]string{tt.name}, "")
		if err != nil || (c.May(tt.n) == nil) != tt.may {
			t.Errorf("%q: %s: %v, %v", tt.name, tt.n, err, c.May(tt.n))
		}
	}
	for _, guess := range []string{"", "test", "token", "TOKEN", "secret", "deployer", "saver", "password"} {
		if _, err := table.Identify(nil, "Bearer "+guess); err == nil {
			t.Errorf("%q is a token of the example, which somebody will use as it is", guess)
		}
	}
	for _, name := range rightNames {
		if !strings.Contains(string(text), "| `"+name+"`") {
			t.Errorf("no row says what %s is for", name)
		}
	}
	for _, name := range []string{"entries", "name", "tokens", "cert", "rights", "right", "keys", "prefixes", "anonymous"} {
		if !strings.Contains(string(text), "\n| `"+name+"` |") {
			t.Errorf("no row has %s", name)
		}
	}
}
