package list

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/state"
	"reflect"
	"strings"
	"testing"
)

// item is an item as a client reads it.
type item struct {
	Key            string  `json:"key"`
	Value          *string `json:"value"`
	ValueBase64    *string `json:"value_base64"`
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
}

// page is a page as a client reads it.
type page struct {
	Revision uint64   `json:"revision"`
	Items    []item   `json:"items"`
	Prefixes []string `json:"prefixes"`
	Next     string   `json:"next"`
}

func strictly(t *testing.T, b []byte, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%.200q: %v", b, err)
	}
}

// Guarantee: text is a JSON string that reads as the same text, whatever is in it.
func TestAppendText(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	texts := []string{"", "a", `"`, `\`, "\x00\x01\x1f\x7f", "\n\r\t\b\f", "é€\U0010ffff", "\u2028\u2029", "a\u0085b\u2028c\u2027\u202a\u0084\u0086", "<&>", strings.Repeat(`"`, 100)}
	for range 200 {
		var s []rune
		for range r.IntN(20) {
			s = append(s, rune(r.IntN(0x300)))
		}
		texts = append(texts, string(s))
	}
	for _, text := range texts {
		var got string
		b := AppendText([]byte("x"), text)
		if err := json.Unmarshal(b[1:], &got); err != nil || got != text || b[0] != 'x' || bytes.ContainsAny(b, "\u0085\u2028\u2029\n\r") {
			t.Errorf("%q is %s, which is %q, %v", text, b, got, err)
		}
		if of := AppendText([]byte("x"), []byte(text)); !bytes.Equal(of, b) {
			t.Errorf("%q is %s as bytes", text, of)
		}
	}
}

// Guarantee: a value is text in JSON if it is UTF-8, else base64, and always base64 for
// who asks for that.
func TestAppendItem(t *testing.T) {
	const rest = `,"create_revision":1,"mod_revision":18446744073709551615,"version":3}`
	for _, tt := range []struct {
		value string
		form  Form
		want  string
	}{
		{"v", Form{}, `{"key":"k","value":"v"` + rest},
		{"", Form{}, `{"key":"k","value":""` + rest},
		{"\x00\"é", Form{}, `{"key":"k","value":"\u0000\"é"` + rest},
		{"\xff", Form{}, `{"key":"k","value_base64":"/w=="` + rest},
		{"\xed\xa0\x80", Form{}, `{"key":"k","value_base64":"7aCA"` + rest}, // half of a surrogate pair
		{"v", Form{Base64: true}, `{"key":"k","value_base64":"dg=="` + rest},
		{"", Form{Base64: true}, `{"key":"k","value_base64":""` + rest},
		{"v", Form{KeysOnly: true}, `{"key":"k"` + rest},
		{"v", Form{KeysOnly: true, Base64: true}, `{"key":"k"` + rest},
	} {
		it := &state.Item{Value: tt.value, CreateRevision: 1, ModRevision: 1<<64 - 1, Version: 3}
		if got := string(tt.form.Append(nil, "k", it, state.Left{})); got != tt.want {
			t.Errorf("%q as %+v is %s, want %s", tt.value, tt.form, got, tt.want)
		}
	}
	it := &state.Item{Value: "v", CreateRevision: 1, ModRevision: 1<<64 - 1, Version: 3}
	for want, left := range map[string]state.Left{
		`,"expires_in_seconds":0`:                  {Goes: true},
		`,"expires_in_seconds":1.5`:                {Goes: true, Millis: 1500},
		`,"expires_in_seconds":31536000,"lease":7`: {Goes: true, Millis: 31_536_000_000, Lease: 7},
	} {
		want = `{"key":"k","value":"v"` + strings.TrimSuffix(rest, "}") + want + "}"
		if got := string(Form{}.Append(nil, "k", it, left)); got != want {
			t.Errorf("%+v is %s, want %s", left, got, want)
		}
	}
}

// written writes a page of a tree and reads it.
func (q Query) written(t *testing.T, tree *Tree) (p page, size int) {
	t.Helper()
	entries, more := q.Page(of(7, tree))
	var b bytes.Buffer
	if err := q.WritePage(&b, 9, entries, more); err != nil {
		t.Fatal(err)
	}
	strictly(t, b.Bytes(), &p)
	return p, b.Len()
}

// Guarantee: a page has its parts, the groups where they are asked for, and what is next
// only where there is more.
func TestWritePage(t *testing.T) {
	tree := treeOf([]string{"a", "b/1", "b/2", "c", "d/1"})
	for _, tt := range []struct {
		q    Query
		want string
	}{
		{Query{Limit: 9, Prefix: "x"}, `{"revision":9,"items":[]}`},
		{Query{Limit: 9, Prefix: "x", Groups: true}, `{"revision":9,"items":[],"prefixes":[]}`},
		{Query{Limit: 2, Form: Form{KeysOnly: true}}, `{"revision":9,"items":[{"key":"a","create_revision":1,"mod_revision":1,"version":1},` +
			`{"key":"b/1","create_revision":1,"mod_revision":2,"version":1}],"next":"b/1"}`},
		{Query{Limit: 9, Groups: true, After: "a", End: "c"}, `{"revision":9,"items":[],"prefixes":["b/"]}`},
		{Query{Limit: 2, Groups: true, Reverse: true}, `{"revision":9,"items":[{"key":"c","value":"c","create_revision":1,"mod_revision":4,"version":1}],"prefixes":["d/"],"next":"c"}`},
		{Query{Limit: 3, Groups: true, Reverse: true, Form: Form{KeysOnly: true}},
			`{"revision":9,"items":[{"key":"c","create_revision":1,"mod_revision":4,"version":1}],"prefixes":["d/","b/"],"next":"b/"}`},
	} {
		entries, more := tt.q.Page(of(7, tree))
		var b bytes.Buffer
		if err := tt.q.WritePage(&b, 9, entries, more); err != nil || b.String() != tt.want+"\n" {
			t.Errorf("%+v: %v %s, want %s", tt.q, err, b.String(), tt.want)
		}
	}
}

// Guarantee: a page ends at MaxPageBytes, exactly, and goes on behind that; a single item
// may be larger. The pages have all of the keys.
func TestPageBytes(t *testing.T) {
	overhead := len(Form{}.Append(nil, "k0", &state.Item{CreateRevision: 1, ModRevision: 1, Version: 1}, state.Left{})) + 1
	for _, tt := range []struct {
		sizes []int // of values
		want  []int // items on each page
	}{
		{[]int{MaxPageBytes/2 - overhead, MaxPageBytes/2 - overhead}, []int{2}},
		{[]int{MaxPageBytes/2 - overhead, MaxPageBytes/2 - overhead + 1}, []int{1, 1}},
		{[]int{MaxPageBytes + 1, 1, 1}, []int{1, 2}},
		{[]int{1, MaxPageBytes + 1, 1}, []int{1, 1, 1}},
	} {
		tree := new(Tree)
		for i, n := range tt.sizes {
			tree.Set(fmt.Sprint("k", i), &state.Item{Value: strings.Repeat("v", n), CreateRevision: 1, ModRevision: 1, Version: 1})
		}
		var got []int
		for q := (Query{Limit: 9}); ; {
			p, size := q.written(t, tree)
			got = append(got, len(p.Items))
			if size > MaxPageBytes+100 && len(p.Items) > 1 {
				t.Errorf("a page of %d bytes", size)
			}
			if q.After = p.Next; q.After == "" {
				break
			}
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("values of %v bytes are on pages of %v, want %v", tt.sizes, got, tt.want)
		}
	}
}

// Guarantee: groups count toward the bytes of a page, too.
func TestPageBytesOfGroups(t *testing.T) {
	tree, long := new(Tree), strings.Repeat("k", 4000)
	for i := range 4000 {
		tree.Set(fmt.Sprintf("%s%04d/x", long, i), &state.Item{})
	}
	all := 0
	for q := (Query{Limit: MaxItems, Groups: true}); ; {
		p, size := q.written(t, tree)
		if all += len(p.Prefixes); size > MaxPageBytes+5000 || len(p.Items) > 0 {
			t.Fatalf("a page of %d bytes, %d items", size, len(p.Items))
		}
		if q.After = p.Next; q.After == "" {
			break
		}
	}
	if all != 4000 {
		t.Errorf("the pages have %d groups", all)
	}
}

// fails writes n pieces, then fails.
type fails struct {
	n   int
	err error
}

func (f *fails) Write(b []byte) (int, error) {
	if len(b) > 3*PieceBytes {
		return 0, fmt.Errorf("a piece of %d bytes", len(b))
	}
	if f.n--; f.n < 0 {
		return 0, f.err
	}
	return len(b), nil
}

// Guarantee: a list of everything has a first line, all items, and a last line; a writer
// that fails ends it, and what is held at once is a piece.
func TestWriteAll(t *testing.T) {
	tree := new(Tree)
	const n = 1000
	for i := range n {
		tree.Set(fmt.Sprintf("k/%04d", i), &state.Item{Value: strings.Repeat(string([]byte{byte(i)}), 1000), ModRevision: uint64(i)})
	}
	q := Query{Prefix: "k/", Groups: true, Limit: 1, Form: Form{Base64: true}}
	var b bytes.Buffer
	if err := q.WriteAll(&b, of(7, tree)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != n+2 || lines[0] != `{"revision":7}` || lines[n+1] != fmt.Sprintf(`{"end":true,"count":%d}`, n) {
		t.Fatalf("%d lines, %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	for i, line := range lines[1 : n+1] {
		var it item
		strictly(t, []byte(line), &it)
		value, err := base64.StdEncoding.DecodeString(*it.ValueBase64)
		if err != nil || it.Key != fmt.Sprintf("k/%04d", i) || !bytes.Equal(value, bytes.Repeat([]byte{byte(i)}, 1000)) {
			t.Fatalf("line %d: %+v %v", i, it, err)
		}
	}
	broken := errors.New("broken")
	pieces := b.Len() / PieceBytes
	for k := range pieces {
		if err := q.WriteAll(&fails{k, broken}, of(7, tree)); !errors.Is(err, broken) {
			t.Errorf("after %d pieces: %v", k, err)
		}
		entries, more := (&Query{Limit: MaxItems}).Page(of(7, tree))
		if err := q.WritePage(&fails{k, broken}, 7, entries, more); !errors.Is(err, broken) {
			t.Errorf("a page after %d pieces: %v", k, err)
		}
	}
}
