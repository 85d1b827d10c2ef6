package rights

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"raftkv/internal/lease"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// The file, which people write:
//
//	entries:
//	  - name: deployer
//	    tokens: ["sha256:..."]
//	    rights:
//	      - {right: [read, write], prefixes: ["app/"], keys: ["motd"]}
//	      - {right: status}
//	  - name: web
//	    cert: web.example
//	    rights: all
//	anonymous:
//	  - {right: read, prefixes: ["public/"]}
//
// It is read as the tree that it is, and not into Go types: so that all of it must be known,
// nothing can mean two things, and each fault has its line.

// MaxBytes bounds the file.
const MaxBytes = 4 << 20

// Warning is something that is allowed, and probably not meant.
type Warning struct {
	Line int
	Text string
}

// String returns a warning with its line.
func (w Warning) String() string { return fmt.Sprintf("line %d: %s", w.Line, w.Text) }

// parser reads one file.
type parser struct {
	table    *Table
	warnings []Warning
	names    map[string]int // their lines
}

// Parse reads the text of a file. An error says on which line something is wrong. Neither
// that nor a warning repeats what has the form of a token, which may stand in a wrong place.
func Parse(text []byte) (*Table, []Warning, error) {
	table, warnings, err := tableOf(text)
	if err != nil {
		return nil, nil, errors.New(withoutTokens(err.Error()))
	}
	for i := range warnings {
		warnings[i].Text = withoutTokens(warnings[i].Text)
	}
	return table, warnings, nil
}

// tokenShaped matches tokens as raftkv token makes them, and beginnings of them.
var tokenShaped = regexp.MustCompile(`raftkv_[A-Za-z0-9_-]{6,}`)

func withoutTokens(text string) string { return tokenShaped.ReplaceAllString(text, "(a token)") }

func tableOf(text []byte) (*Table, []Warning, error) {
	if len(text) > MaxBytes {
		return nil, nil, fmt.Errorf("it has %d bytes, and may have %d", len(text), MaxBytes)
	}
	if err := checkLines(text); err != nil {
		return nil, nil, err
	}
	var document yaml.Node
	if err := yaml.Load(text, &document); err != nil {
		return nil, nil, err // with its line, if it is on one
	}
	p := &parser{names: map[string]int{}, table: &Table{
		hash: sha256.Sum256(text), tokens: map[[sha256.Size]byte]*Caller{}, certs: map[string]*Caller{},
		anonymous: &Caller{}, over: make(chan struct{}),
	}}
	root := &document
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	if err := p.file(root); err != nil {
		return nil, nil, err
	}
	return p.table, p.warnings, nil
}

// checkLines refuses what ends a line for YAML and not for who reads the file in an editor or a
// diff: what stands behind it would look like a part of a comment.
func checkLines(text []byte) error {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if at := bytes.IndexAny(bytes.TrimSuffix(line, []byte("\r")), "\r\u0085\u2028\u2029"); at >= 0 {
			return fmt.Errorf("line %d: it has a line break within, at byte %d: expected none but line feeds, with a carriage return before them or not", i+1, at+1)
		}
	}
	return nil
}

func wrong(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", max(n.Line, 1), fmt.Errorf(format, args...))
}

func (p *parser) warn(n *yaml.Node, format string, args ...any) {
	p.warnings = append(p.warnings, Warning{n.Line, fmt.Sprintf(format, args...)})
}

// plain refuses what lets a part of a file stand for something else.
func plain(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return wrong(n, "anchors and aliases are not taken here: write it out")
	case n.Style&yaml.TaggedStyle != 0:
		return wrong(n, "tags are not taken here")
	}
	return nil
}

// fields returns the values of a mapping by their names, in the order given; nil where one is
// missing.
func fields(n *yaml.Node, what string, names ...string) ([]*yaml.Node, error) {
	if err := plain(n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.MappingNode {
		return nil, wrong(n, "%s takes %s", what, strings.Join(names, ", "))
	}
	values := make([]*yaml.Node, len(names))
	for at := 0; at+1 < len(n.Content); at += 2 {
		name, err := word(n.Content[at], "a name")
		if err != nil {
			return nil, err
		}
		i := slices.Index(names, name)
		switch {
		case i < 0:
			return nil, wrong(n.Content[at], "%s has no %q; it takes %s", what, clip(name), strings.Join(names, ", "))
		case values[i] != nil:
			return nil, wrong(n.Content[at], "%q is there twice", name)
		}
		values[i] = n.Content[at+1]
	}
	return values, nil
}

// items returns those of a list.
func items(n *yaml.Node, what string) ([]*yaml.Node, error) {
	if err := plain(n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.SequenceNode {
		return nil, wrong(n, "%s is a list", what)
	}
	if len(n.Content) == 0 {
		return nil, wrong(n, "%s is empty: leave it out", what)
	}
	return n.Content, nil
}

// word returns a text.
func word(n *yaml.Node, what string) (string, error) {
	if err := plain(n); err != nil {
		return "", err
	}
	if n.Kind != yaml.ScalarNode {
		return "", wrong(n, "%s is a text", what)
	}
	if n.ShortTag() != "!!str" {
		return "", wrong(n, "%s is a text: put %s into quotes", what, clip(n.Value))
	}
	return n.Value, nil
}

// words calls each with the texts of a list, or with one that stands alone. None is there twice.
func words(n *yaml.Node, what string, each func(n *yaml.Node, text string) error) error {
	all := []*yaml.Node{n}
	if n.Kind != yaml.ScalarNode {
		var err error
		if all, err = items(n, what); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, one := range all {
		text, err := word(one, what)
		if err != nil {
			return err
		}
		if seen[text] {
			return wrong(one, "%s: %q is there twice", what, clip(text))
		}
		seen[text] = true
		if err := each(one, text); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) file(n *yaml.Node) error {
	f, err := fields(n, "the file", "entries", "anonymous")
	if err != nil {
		return err
	}
	entries, anonymous := f[0], f[1]
	if entries == nil && anonymous == nil {
		return wrong(n, "it has neither entries nor anonymous, so that nobody could do anything")
	}
	if entries != nil {
		all, err := items(entries, "entries")
		if err != nil {
			return err
		}
		for _, e := range all {
			if err := p.entry(e); err != nil {
				return err
			}
		}
	}
	if anonymous != nil {
		return p.rights(p.table.anonymous, anonymous)
	}
	return nil
}

func (p *parser) entry(n *yaml.Node) error {
	f, err := fields(n, "an entry", "name", "tokens", "cert", "rights")
	if err != nil {
		return err
	}
	name, tokens, cert, given := f[0], f[1], f[2], f[3]
	switch {
	case name == nil:
		return wrong(n, "an entry has no name")
	case tokens == nil && cert == nil:
		return wrong(n, "the entry has neither tokens nor cert, by which it could be recognized")
	case given == nil:
		return wrong(n, "the entry has no rights")
	}
	c := &Caller{}
	if c.name, err = word(name, "name"); err != nil {
		return err
	}
	if err := checkName(c.name); err != nil {
		return wrong(name, "name: %w", err)
	}
	if line, ok := p.names[c.name]; ok {
		return wrong(name, "the name %s is there twice, first on line %d", c.name, line)
	}
	p.names[c.name] = name.Line
	p.table.names++
	if tokens != nil {
		if err := words(tokens, "tokens", func(n *yaml.Node, text string) error { return p.token(c, n, text) }); err != nil {
			return err
		}
	}
	if cert != nil {
		if err := words(cert, "cert", func(n *yaml.Node, text string) error { return p.cert(c, n, text) }); err != nil {
			return err
		}
	}
	return p.rights(c, given)
}

// checkName refuses what would not look like a name in a log or an owner's place.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("it is empty")
	case len(name) > lease.MaxOwner:
		return fmt.Errorf("it has %d bytes, and may have %d", len(name), lease.MaxOwner)
	case strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }):
		return errors.New("it is made of visible ASCII characters, without spaces")
	case name == nobody:
		return errors.New("anonymous is who shows nothing: that stands beside entries")
	}
	return nil
}

func (p *parser) token(c *Caller, n *yaml.Node, text string) error {
	digits, ok := strings.CutPrefix(text, hashPrefix)
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size {
		// What stands there may be the token itself, which must not get into a log.
		return wrong(n, "a token is %s and 64 hexadecimal digits: its SHA-256, as raftkv token prints it, never the token itself", hashPrefix)
	}
	key := [sha256.Size]byte(sum)
	if key == sha256.Sum256(nil) {
		return wrong(n, "this is the SHA-256 of nothing")
	}
	if other := p.table.tokens[key]; other != nil {
		return wrong(n, "%s has this token, too: it could not be told who asks", other.name)
	}
	p.table.tokens[key] = c
	return nil
}

func (p *parser) cert(c *Caller, n *yaml.Node, text string) error {
	name := certName(text)
	switch other := p.table.certs[name]; {
	case text == "":
		return wrong(n, "cert is empty")
	case strings.Contains(text, "*"):
		return wrong(n, "cert is a name as it stands in the certificate: * does not stand for others")
	case other != nil:
		return wrong(n, "%s has this cert, too: it could not be told who asks", other.name)
	}
	p.table.certs[name] = c
	return nil
}

// all stands for every right on every key.
const all = "all"

// rights reads what a caller may do.
func (p *parser) rights(c *Caller, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Value == all && plain(n) == nil {
		c.give(Admin, nil, nil)
		return nil
	}
	list, err := items(n, "rights, if they are not "+all+",")
	if err != nil {
		return err
	}
	for _, one := range list {
		if err := p.right(c, one); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) right(c *Caller, n *yaml.Node) error {
	f, err := fields(n, "a right", "right", "keys", "prefixes")
	if err != nil {
		return err
	}
	if f[0] == nil {
		return wrong(n, "right is missing, as in {right: [read, write], prefixes: [\"app/\"]}")
	}
	var given []Right
	ofKeys := false
	err = words(f[0], "right", func(n *yaml.Node, text string) error {
		i := slices.Index(rightNames[:], text)
		if i < 0 {
			return wrong(n, "there is no right %q; there are %s", clip(text), strings.Join(rightNames[:], ", "))
		}
		if len(given) > 0 && ofKeys != Right(i).ofKeys() {
			return wrong(n, "%s and %s stand apart: one is of keys, and one is not", given[0], Right(i))
		}
		ofKeys = Right(i).ofKeys()
		given = append(given, Right(i))
		return nil
	})
	switch {
	case err != nil:
		return err
	case !ofKeys && (f[1] != nil || f[2] != nil):
		return wrong(n, "%s takes no keys and no prefixes", given[0])
	case ofKeys && f[1] == nil && f[2] == nil:
		return wrong(n, `%s takes keys or prefixes; prefixes: [""] is for all keys`, given[0])
	}
	keys, err := p.keys(f[1], "keys", checkKey)
	if err != nil {
		return err
	}
	prefixes, err := p.keys(f[2], "prefixes", p.checkPrefix)
	if err != nil {
		return err
	}
	for _, r := range given {
		c.give(r, keys, prefixes)
	}
	return nil
}

// keys returns the keys or prefixes of a list; none where there is no list.
func (p *parser) keys(n *yaml.Node, what string, check func(n *yaml.Node, text string) error) (all []string, err error) {
	if n == nil {
		return nil, nil
	}
	err = words(n, what, func(n *yaml.Node, text string) error {
		if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return wrong(n, "%s: no key is not UTF-8 or has a NUL", what)
		}
		if strings.HasPrefix(text, "/") {
			p.warn(n, "%s: %q begins with a slash; the key in the path /app/a is app/a, without it", what, clip(text))
		}
		all = append(all, text)
		return check(n, text)
	})
	return all, err
}

func checkKey(n *yaml.Node, text string) error {
	if text == "" {
		return wrong(n, "keys: no key is empty")
	}
	return nil
}

// checkPrefix warns of prefixes that take in more than it seems.
func (p *parser) checkPrefix(n *yaml.Node, text string) error {
	if text != "" && !strings.HasSuffix(text, "/") {
		p.warn(n, "prefixes: %q does not end in a slash, and is also the beginning of %q", clip(text), clip(text)+"2")
	}
	return nil
}
