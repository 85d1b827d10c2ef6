package transfer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

// fakeStore is a store that refuses as a server does.
type fakeStore struct {
	t       *testing.T
	keys    map[string]string
	most    int // bytes of values in a transaction; 0 for any
	writes  int
	failing error
}

func (s *fakeStore) write(_ context.Context, entries []entry, ifAbsent bool) (bool, error) {
	s.writes++
	if s.failing != nil {
		return false, s.failing
	}
	size := 0
	for _, e := range entries {
		size += len(e.value)
	}
	if len(entries) == 0 || len(entries) > 128 {
		s.t.Errorf("a transaction of %d operations", len(entries))
	}
	if len(entries) > 1 && size > batchBytes {
		s.t.Errorf("a transaction of %d bytes", size)
	}
	if s.most > 0 && size > s.most {
		return false, fmt.Errorf("413: %w", errTooLarge)
	}
	for _, e := range entries {
		if _, there := s.keys[e.key]; there && ifAbsent {
			return false, nil
		}
	}
	for _, e := range entries {
		s.keys[e.key] = string(e.value)
	}
	return true, nil
}

// export makes an export of keys and values.
func export(keys map[string]string) string {
	var b strings.Builder
	b.WriteString(`{"revision":1}` + "\n")
	for key, value := range keys {
		fmt.Fprintf(&b, `{"key":%q,"value":%q}`+"\n", key, value)
	}
	fmt.Fprintf(&b, `{"end":true,"count":%d}`+"\n", len(keys))
	return b.String()
}

// Guarantee: an import writes each key of the file once, in transactions that a server
// takes, and with --if-absent none that is there.
func TestImport(t *testing.T) {
	for _, n := range []int{0, 1, 128, 129, 300} {
		file, there := map[string]string{}, map[string]string{}
		for i := range n {
			key := fmt.Sprint("k", i)
			file[key] = strings.Repeat("v", rand.IntN(500))
			if n == 300 && i%16 == 0 { // so that bytes bound a transaction
				file[key] = strings.Repeat("v", 100_000)
			}
			if rand.IntN(10) == 0 {
				there[key] = "old"
			}
		}
		there["other"] = "stays"
		for _, ifAbsent := range []bool{false, true} {
			for _, most := range []int{0, 110_000} {
				store := &fakeStore{t: t, keys: maps.Clone(there), most: most}
				im := &importer{plan: &plan{format: formatAuto, ifAbsent: ifAbsent}, store: store}
				got, err := im.run(t.Context(), strings.NewReader(export(file)))
				want, present := maps.Clone(file), uint64(0)
				want["other"] = "stays"
				if ifAbsent {
					maps.Copy(want, there)
					present = uint64(len(there) - 1)
				}
				if err != nil || !maps.Equal(store.keys, want) || got.Present != present || got.Keys != uint64(n)-present {
					t.Errorf("%d keys, if absent %v, at most %d: %+v, %v", n, ifAbsent, most, got, err)
				}
			}
		}
	}
}

// Guarantee: what cannot be written is said with the key from which on nothing was.
func TestImportFails(t *testing.T) {
	broken := errors.New("no leader")
	store := &fakeStore{t: t, keys: map[string]string{}, failing: broken}
	im := &importer{plan: &plan{format: formatAuto}, store: store}
	if got, err := im.run(t.Context(), strings.NewReader(export(map[string]string{"a": "1"}))); !errors.Is(err, broken) || got.Keys != 0 || !strings.Contains(err.Error(), `from key "a" on`) {
		t.Errorf("%+v, %v", got, err)
	}
	store = &fakeStore{t: t, keys: map[string]string{}, most: 10}
	im = &importer{plan: &plan{format: formatAuto}, store: store}
	if _, err := im.run(t.Context(), strings.NewReader(export(map[string]string{"a": "12345678901"}))); !errors.Is(err, errTooLarge) || !strings.Contains(err.Error(), "11 bytes") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	im = &importer{plan: &plan{format: formatAuto}, store: store}
	if _, err := im.run(ctx, strings.NewReader(exportText)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Guarantee: all that cannot be a key here is told before anything is written, and so is
// what would get lost.
func TestSurvey(t *testing.T) {
	long := strings.Repeat("k", 4097)
	text := fmt.Sprintf(`[{"key":"","value":null},{"key":%q},{"key":%q},{"key":"a\u0000"},{"key":"ok","value":"YWJj","flags":3},{"key":"lock","Session":"x"}]`, long, long[1:])
	p := &plan{format: formatAuto}
	s, err := p.survey(t.Context(), strings.NewReader(text))
	if err != nil || s.Keys != 2 || s.Bad != 3 || len(s.problems) != 3 || s.Flags != 1 || s.Expiring != 1 || s.Bytes != 3 || s.Largest != 3 || s.Format != formatConsul {
		t.Errorf("%+v, %v", s, err)
	}
	for i, want := range []string{"not empty", "4097 bytes", "NUL"} {
		if !strings.Contains(s.problems[i], want) || len(s.problems[i]) > 300 {
			t.Errorf("%q, want %q", s.problems[i], want)
		}
	}
	p.keepExpiring = true
	if s, err := p.survey(t.Context(), strings.NewReader(text)); err != nil || s.Keys != 3 || s.Expiring != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = p.survey(t.Context(), strings.NewReader(`{"kvs":[{"key":"/w==","value":"YQ=="}],"count":1}`))
	if err != nil || s.Bad != 1 || !strings.Contains(s.problems[0], "UTF-8") {
		t.Errorf("%+v, %v", s, err)
	}
	p = &plan{format: formatAuto, strip: "app/", add: "old/"}
	s, err = p.survey(t.Context(), strings.NewReader(`{"key":"app/a","value":""}{"key":"app/","value":""}{"key":"b","value":""}`))
	if err != nil || s.Keys != 2 || s.Bad != 1 || !strings.Contains(s.problems[0], `begin with "app/"`) {
		t.Errorf("%+v, %v", s, err)
	}
	store := &fakeStore{t: t, keys: map[string]string{}}
	if _, err := (&importer{plan: p, store: store}).run(t.Context(), strings.NewReader(`{"key":"app/a","value":"1"}`)); err != nil || store.keys["old/a"] != "1" {
		t.Errorf("%v, %v", store.keys, err)
	}
	if _, err := p.survey(t.Context(), strings.NewReader(`{"key":"app/a","value":""}{"key":"app/a","value":""}`)); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	var many strings.Builder
	for range maxProblems + 1 {
		many.WriteString(`{"key":"","value":""}`)
	}
	if s, err := (&plan{format: formatAuto}).survey(t.Context(), strings.NewReader(many.String())); err != nil || s.Bad != maxProblems+1 || len(s.problems) != maxProblems {
		t.Errorf("%d problems, %d of them told, %v", s.Bad, len(s.problems), err)
	}
}
