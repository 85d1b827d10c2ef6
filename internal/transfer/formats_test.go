package transfer

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/config"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// readAll reads a text as a format.
func readAll(format, text string) (entries []entry, found string, err error) {
	r := newReader(strings.NewReader(text), format)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, r.format, nil
		}
		if err != nil {
			return entries, r.format, err
		}
		entries = append(entries, e)
	}
}

const (
	exportText = `{"revision":16}
{"key":"a","value":"one","create_revision":14,"mod_revision":14,"version":1}
{"key":"raw","value_base64":"Af8=","create_revision":15,"mod_revision":15,"version":1,"lease":7,"expires_in_seconds":4}
{"key":"session","value":"","create_revision":16,"mod_revision":16,"version":1,"expires_in_seconds":9}
{"end":true,"count":3}
`
	// Two keys, one of them a folder, as consul kv export prints them.
	consulText = `[
	{
		"key": "config/",
		"flags": 0,
		"value": ""
	},
	{
		"key": "config/max",
		"flags": 42,
		"value": "MTA="
	}
]
`
	// As etcdctl get --prefix "" -w json prints it: on one line; an empty value and a lease of none are left out.
	etcdText = `{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":9,"raft_term":2},"kvs":[{"key":"Zm9v","create_revision":2,"mod_revision":6,"version":5,"value":"YmFy"},{"key":"bG9jaw==","create_revision":7,"mod_revision":7,"version":1,"value":"bWU=","lease":7587870094823812358},{"key":"ZW1wdHk=","create_revision":8,"mod_revision":8,"version":1}],"count":3}
`
)

// Guarantee: the files of all three formats are read as what they hold.
func TestFormats(t *testing.T) {
	for _, tt := range []struct {
		name, format, text string
		want               []entry
	}{
		{"export", formatRaftkv, exportText, []entry{{key: "a", value: []byte("one")}, {key: "raw", value: []byte{1, 255}, ends: true}, {key: "session", value: []byte{}, ends: true}}},
		{"items alone", formatRaftkv, `{"key":"a","value":"1"}` + "\n\n" + `{"key":"b","value":""}`, []entry{{key: "a", value: []byte("1")}, {key: "b", value: []byte{}}}},
		{"an empty export", formatRaftkv, `{"revision":3}` + "\n" + `{"end":true,"count":0}`, nil},
		{"consul kv export", formatConsul, consulText, []entry{{key: "config/", value: []byte{}}, {key: "config/max", value: []byte("10"), flags: 42}}},
		{"Consul over HTTP", formatConsul, `[{"LockIndex":0,"Key":"a","Flags":0,"Value":null,"CreateIndex":1,"ModifyIndex":1},{"Key":"b","Flags":1,"Value":"Yg==","Session":"adf4238a"}]`,
			[]entry{{key: "a"}, {key: "b", value: []byte("b"), flags: 1, ends: true}}},
		{"an empty Consul", formatConsul, "[]\n", nil},
		{"etcdctl", formatEtcd, etcdText, []entry{{key: "foo", value: []byte("bar")}, {key: "lock", value: []byte("me"), ends: true}, {key: "empty"}}},
		{"etcd over HTTP", formatEtcd, `{"header":{"revision":"9"},"kvs":[{"key":"Zm9v","create_revision":"2","value":"YmFy","lease":"0"}],"count":"1"}`, []entry{{key: "foo", value: []byte("bar")}}},
		{"pretty", formatEtcd, "{\n  \"kvs\": [\n    {\"key\": \"Zm9v\", \"value\": \"YmFy\"}\n  ]\n}\n", []entry{{key: "foo", value: []byte("bar")}}},
		{"an empty etcd", formatEtcd, `{"header":{"revision":1}}`, nil},
		{"count before kvs", formatEtcd, `{"count":1,"kvs":[{"key":"Zm9v","value":"YmFy"}],"more":false}`, []entry{{key: "foo", value: []byte("bar")}}},
	} {
		for _, format := range []string{tt.format, formatAuto} {
			got, found, err := readAll(format, tt.text)
			if err != nil || found != tt.format || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%s as %s: %+v, %s, %v, want %+v, %s", tt.name, format, got, found, err, tt.want, tt.format)
			}
		}
	}
}

// Guarantee: a file that is not whole, or not what it says, is not taken for a shorter one.
func TestFormatsRefuse(t *testing.T) {
	for _, tt := range []struct{ name, format, text, want string }{
		{"nothing", formatAuto, "", "nothing in it"},
		{"spaces", formatAuto, " \n ", "nothing in it"},
		{"no JSON", formatAuto, "key=value", "none of the formats"},
		{"another JSON", formatAuto, `{"kv":1}`, "none of the formats"},
		{"nothing", formatRaftkv, "", "nothing in it"},
		{"nothing", formatConsul, "\n", "nothing in it"},
		{"nothing", formatEtcd, "", "nothing in it"},

		{"no end", formatAuto, strings.Join(strings.SplitAfter(exportText, "\n")[:3], ""), "the last line, with the number of keys, is missing"},
		{"no beginning", formatAuto, strings.Join(strings.SplitAfter(exportText, "\n")[2:], ""), "should be 3"},
		{"a line is missing", formatAuto, strings.Join(append(strings.SplitAfter(exportText, "\n")[:2], strings.SplitAfter(exportText, "\n")[3:]...), ""), "should be 3"},
		{"cut in a line", formatAuto, exportText[:60], "not whole"},
		{"an error", formatAuto, `{"revision":1}` + "\n" + `{"error":{"code":"stopping"}}`, "broke off"},
		{"two exports", formatAuto, exportText + exportText, "behind the last line"},
		{"two headers", formatAuto, `{"revision":1}{"revision":1}`, "no line of an export"},
		{"keys alone", formatAuto, `{"key":"a","version":1}`, "has no value, or two"},
		{"two values", formatAuto, `{"key":"a","value":"","value_base64":""}`, "has no value, or two"},
		{"base64", formatAuto, `{"key":"a","value_base64":"A"}`, "value of key"},
		{"base64 of another", formatAuto, `{"key":"a","value_base64":"QUJ="}`, "value of key"},
		{"twice a name", formatAuto, `{"key":"a","key":"b","value":""}`, "duplicate"},
		{"bad UTF-8", formatAuto, "{\"key\":\"a\xff\",\"value\":\"\"}", "UTF-8"},
		{"half a pair", formatAuto, `{"key":"a\ud800","value":""}`, "surrogate"},
		{"half a pair in a value", formatAuto, `{"key":"a","value":"\udc00"}`, "surrogate"},
		{"no line", formatRaftkv, `{}`, "no line of an export"},
		{"end without count", formatRaftkv, `{"end":true}`, "no line of an export"},
		{"a number", formatRaftkv, `7`, "behind 0 items"},

		{"cut", formatAuto, consulText[:80], "not whole"},
		{"cut between", formatAuto, strings.Split(consulText, ",\n\t{")[0], "not whole"},
		{"behind it", formatAuto, consulText + consulText, "behind the end"},
		{"no key", formatAuto, `[{"flags":1}]`, "has no key"},
		{"a number", formatAuto, `[1]`, "behind 0 items"},
		{"no base64", formatAuto, `[{"key":"a","value":"?"}]`, "behind 0 items"},
		{"no array", formatConsul, `{"key":"a"}`, "JSON array"},
		{"twice a name", formatConsul, `[{"key":"a","Key":"b"}]`, "duplicate"},
		{"bad UTF-8", formatConsul, "[{\"key\":\"\xfe\"}]", "UTF-8"},

		{"cut", formatAuto, etcdText[:300], "not whole"},
		{"cut behind kvs", formatAuto, etcdText[:len(etcdText)-12], "not whole"},
		{"behind it", formatAuto, etcdText + "{}", "behind the end"},
		{"a limit", formatAuto, `{"kvs":[{"key":"Zm9v","value":"YmFy"}],"more":true,"count":9}`, "--limit"},
		{"a wrong count", formatAuto, `{"kvs":[{"key":"Zm9v","value":"YmFy"}],"count":9}`, "should be 9"},
		{"keys only", formatAuto, `{"kvs":[{"key":"Zm9v"}],"count":1}`, "--keys-only"},
		{"no object", formatEtcd, `[]`, "JSON object"},
		{"no base64", formatEtcd, `{"kvs":[{"key":"f","value":"YmFy"}]}`, "behind 0 items"},
	} {
		if got, _, err := readAll(tt.format, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s as %s: %+v, %v, want an error with %q", tt.name, tt.format, got, err, tt.want)
		}
	}
}

// Guarantee: an answer of etcd whose kvs is null has no keys.
func TestFormatsNull(t *testing.T) {
	for _, text := range []string{`{"kvs":null}`, `{"header":{},"kvs":null,"count":0}`} {
		if entries, _, err := readAll(formatAuto, text); err != nil || len(entries) != 0 {
			t.Errorf("%s: %v, %v", text, entries, err)
		}
	}
}

// Guarantee: one item does not fill the memory.
func TestFormatsBounded(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(`[{"key":"`), endlessText{})
	r := newReader(endless, formatAuto)
	if r.in.most != maxItemBytes {
		t.Errorf("%d bytes", r.in.most)
	}
	r.in.most = 256 << 10
	if _, err := r.Next(); err == nil || !strings.Contains(err.Error(), "larger than 262144 bytes") {
		t.Errorf("%v", err)
	}
}

// Guarantee: what a node of the largest --max-value-size holds can be imported from an export,
// also where a value is all escapes.
func TestFormatsLargestValue(t *testing.T) {
	const size = 1 << 20 // in place of the largest, for the time that takes
	items := func(yield func(client.Item, error) bool) {
		yield(client.Item{Key: strings.Repeat("\x02", config.MaxKeyBytes), Value: []byte(strings.Repeat("\x01", size))}, nil)
	}
	var out strings.Builder
	if err := writeExport(&out, items, func() uint64 { return 7 }); err != nil {
		t.Fatal(err)
	}
	const most = maxItemBytes - escapeBytes*(config.MaxValueLimit-size)
	if line := strings.Split(out.String(), "\n")[1]; int64(len(line)) > most {
		t.Errorf("%d bytes, with a bound of %d", len(line), most)
	}
}

// Guarantee: the bound is for an item, and not for a file.
func TestFormatsLargeFile(t *testing.T) {
	const item = `{"key":"k","value":"` + "0123456789" + `"}` + "\n"
	r := newReader(strings.NewReader(strings.Repeat(item, 3000)), formatAuto)
	r.in.most, r.in.left = 16<<10, 16<<10
	for range 3000 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

type endlessText struct{}

func (endlessText) Read(b []byte) (int, error) { return copy(b, manyX), nil }

var manyX = strings.Repeat("x", 64<<10)

// Guarantee: what exports write is what import reads, whatever the keys and values are, and
// no input makes it panic or give out a key that is no text.
func FuzzFormats(f *testing.F) {
	for _, text := range []string{exportText, consulText, etcdText, `{"key":"a","value":"1"}`, `[{"Key":"a"}]`} {
		f.Add(text, "k", []byte("v"))
	}
	f.Fuzz(func(t *testing.T, text, key string, value []byte) {
		for _, format := range []string{formatAuto, formatRaftkv, formatConsul, formatEtcd} {
			entries, _, err := readAll(format, text)
			if format == formatRaftkv || format == formatConsul {
				for _, e := range entries {
					if !utf8.ValidString(e.key) {
						t.Errorf("key %q of %q as %s", e.key, text, format)
					}
				}
			}
			if err != nil && err.Error() == "" {
				t.Error("an error that says nothing")
			}
		}
		b64 := base64.StdEncoding.EncodeToString(value)
		etcd := fmt.Sprintf(`{"kvs":[{"key":%q,"value":%q}],"count":1}`, base64.StdEncoding.EncodeToString([]byte(key)), b64)
		texts := map[string]string{formatEtcd: etcd}
		if utf8.ValidString(key) {
			name, err := json.Marshal(key)
			if err != nil {
				t.Fatal(err)
			}
			texts[formatConsul] = fmt.Sprintf(`[{"key":%s,"flags":0,"value":%q}]`, name, b64)
			texts[formatRaftkv] = fmt.Sprintf(`{"key":%s,"value_base64":%q}`, name, b64)
		}
		for format, text := range texts {
			if format == formatEtcd && len(value) == 0 {
				continue // as with --keys-only
			}
			got, _, err := readAll(format, text)
			if err != nil || len(got) != 1 || got[0].key != key || string(got[0].value) != string(value) {
				t.Errorf("%s as %s: %+v, %v", text, format, got, err)
			}
		}
	})
}
