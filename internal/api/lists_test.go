package api

import (
	"errors"
	"net/http"
	"net/url"
	"raftkv/internal/list"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"sync"
	"testing"
)

// Guarantee: whatever a query says, it is refused as bad, or within every bound and means
// nothing twice.
func FuzzListParameters(f *testing.F) {
	for _, query := range []string{
		"", "prefix=a/&delimiter=/&limit=10", "start=a&end=b&reverse=true", "count=true", "limit=0", "limit=10001", "key=a&prefix=b", "key&0key", "prefix=a&prefix=b",
		"prefix=%ff", "consistency=stale&values=base64", "a;b", "%", "start_after=%00", "limit=+5", "limit=5_0",
	} {
		f.Add(query, "application/x-ndjson")
		f.Add(query, "*/*")
	}
	f.Fuzz(func(t *testing.T, query, accept string) {
		r := &http.Request{Method: "GET", URL: &url.URL{Path: "/v1/kv", RawQuery: query}, Header: http.Header{"Accept": {accept}}}
		_, rest, _, err := cutKey(query)
		if beside, _ := url.ParseQuery(rest); err != nil && !errors.Is(err, problem.ErrBadRequest) || beside.Has("key") {
			t.Errorf("%q: %q, %v", query, rest, err)
		}
		q, err := parseList(r)
		if err != nil {
			if !errors.Is(err, problem.ErrBadRequest) {
				t.Errorf("%q: %v", query, err)
			}
			return
		}
		params, err := url.ParseQuery(query)
		if err != nil || q.Check() != nil || q.Limit < 1 || q.Limit > list.MaxItems || q.want.Local != WantsLocal(query) {
			t.Errorf("%q is %+v: %v", query, q, err)
		}
		for name, values := range params {
			if len(values) > 1 {
				t.Errorf("%q has %s twice", query, name)
			}
		}
		if (q.stream || q.Count) && (params.Has("limit") || params.Has("delimiter")) || q.stream && q.Count {
			t.Errorf("%q is %+v", query, q)
		}
	})
}

// copied is a store of which copies can be counted.
type copied struct {
	st     state.State
	copies int
	err    error
}

func (c *copied) Look(look func(*state.State)) error {
	if c.err == nil {
		look(&c.st)
	}
	return c.err
}

func (c *copied) CopyWhole() (*state.State, error) {
	c.copies++
	return c.st.Copy(), c.err
}

// Guarantee: those who begin at the same index share a copy of the state, nobody gets one
// of before, and nothing holds on to one that nobody uses.
func TestCopiesAreShared(t *testing.T) {
	store := &copied{st: state.State{Index: 7}}
	c := copies{store: store}
	take := func(index uint64, made int) func() {
		t.Helper()
		st, done, err := c.take()
		if err != nil || st.Index != index || store.copies != made {
			t.Errorf("a copy of index %v, the %dth, %v; want %d, %d", st.Index, store.copies, err, index, made)
		}
		return done
	}
	first, second := take(7, 1), take(7, 1)
	store.st.Index = 8
	third := take(8, 2)
	first()
	second()
	fourth := take(8, 2)
	third()
	fourth()
	if c.last != nil {
		t.Error("a copy that nobody uses is held")
	}
	take(8, 3)()
	store.err = problem.ErrNotReady
	if _, _, err := c.take(); !errors.Is(err, problem.ErrNotReady) || c.last != nil {
		t.Errorf("a store that is loading: %v", err)
	}
	store.err = nil
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 100 {
				_, done, err := c.take()
				if err != nil {
					t.Error(err)
					return
				}
				done()
			}
		})
	}
	wg.Wait()
	if c.last != nil {
		t.Errorf("a copy is held by %d", c.last.users)
	}
}
