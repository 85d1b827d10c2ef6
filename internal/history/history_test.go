package history

import (
	"math"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The judge has to notice what it is there for.
func TestChaosModel(t *testing.T) {
	op := func(in Input, out Output, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	put := func(v string, call, end int64) porcupine.Operation {
		return op(Input{Kind: Put, Value: v}, Output{OK: true}, call, end)
	}
	get := func(v string, call, end int64) porcupine.Operation {
		return op(Input{Kind: Get}, Output{OK: v != "", Value: v}, call, end)
	}
	unknown := op(Input{Kind: Put, Value: "u"}, Output{Unknown: true}, 3, math.MaxInt64)
	swap := func(from, to string, ok bool, call, end int64) porcupine.Operation {
		return op(Input{Kind: Swap, Value: to, Expect: from}, Output{OK: ok}, call, end)
	}
	del := op(Input{Kind: Delete}, Output{OK: true}, 3, 4)
	for name, test := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"read what was written":       {[]porcupine.Operation{put("a", 1, 2), get("a", 3, 4)}, true},
		"stale read":                  {[]porcupine.Operation{put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)}, false},
		"lost write":                  {[]porcupine.Operation{put("a", 1, 2), get("", 3, 4)}, false},
		"unknown write happened":      {[]porcupine.Operation{put("a", 1, 2), unknown, get("u", 5, 6)}, true},
		"unknown write never":         {[]porcupine.Operation{put("a", 1, 2), unknown, get("a", 5, 6)}, true},
		"unknown write came and went": {[]porcupine.Operation{put("a", 1, 2), unknown, get("u", 5, 6), get("a", 7, 8)}, false},
		"refused write seen":          {[]porcupine.Operation{put("a", 1, 2), get("refused", 3, 4)}, false},
		"two swaps won":               {[]porcupine.Operation{put("a", 1, 2), swap("a", "b", true, 3, 5), swap("a", "c", true, 4, 6)}, false},
		"one swap won":                {[]porcupine.Operation{put("a", 1, 2), swap("a", "b", true, 3, 5), swap("a", "c", false, 4, 6)}, true},
		"deleted":                     {[]porcupine.Operation{put("a", 1, 2), del, get("", 5, 6)}, true},
		"deleted and back":            {[]porcupine.Operation{put("a", 1, 2), del, get("a", 5, 6)}, false},
	} {
		if got := porcupine.CheckOperations(Model, test.history); got != test.want {
			t.Errorf("%s: linearizable %v, want %v", name, got, test.want)
		}
	}
}

// Guarantee: the judge knows all commands, and that a key whose time has passed may be there
// or gone.
func TestCommandsModel(t *testing.T) {
	clock := int64(0)
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	// did is an operation that was sent and answered at these milliseconds, behind the one before.
	did := func(sent, told int, in Input, out Output) porcupine.Operation {
		in.Sent, out.Told = at(sent), at(told)
		clock += 2
		return porcupine.Operation{Input: in, Output: out, Call: clock, Return: clock + 1}
	}
	lost := func(in Input) porcupine.Operation {
		op := did(0, 0, in, Output{Unknown: true})
		op.Output, op.Return = Output{Unknown: true}, math.MaxInt64
		return op
	}
	put := func(key, value string) porcupine.Operation {
		return did(0, 0, Input{Kind: Put, Key: key, Value: value}, Output{OK: true})
	}
	timed := func(key, value string, grace time.Duration) porcupine.Operation {
		return did(0, 10, Input{Kind: Put, Key: key, Value: value, TTL: 100 * time.Millisecond, Grace: grace}, Output{OK: true})
	}
	get := func(sent, told int, key, value string) porcupine.Operation {
		return did(sent, told, Input{Kind: Get, Key: key}, Output{OK: true, Value: value})
	}
	add := func(delta, sum int64) porcupine.Operation {
		return did(0, 0, Input{Kind: Add, Key: "g/n", Delta: delta}, Output{OK: true, Number: sum})
	}
	exchange := func(a, b string, out Output) porcupine.Operation {
		return did(0, 0, Input{Kind: Exchange, Key: "g/a", Key2: "g/b", Expect: a, Expect2: b, Value: a + "1", Value2: b + "1"}, out)
	}
	appended := func(key, value string) porcupine.Operation {
		return did(0, 0, Input{Kind: Append, Key: "g/", Value: value}, Output{OK: true, Key: key})
	}
	list := func(items ...Item) porcupine.Operation {
		return did(0, 0, Input{Kind: List, Key: "g/"}, Output{OK: true, Items: items})
	}
	emptied := func(n int) porcupine.Operation {
		return did(0, 0, Input{Kind: Clear, Key: "g/"}, Output{OK: true, Deleted: n})
	}
	// named is an addition or, with a sum of 0, one without an answer.
	named := func(name string, delta, sum int64) porcupine.Operation {
		in := Input{Kind: Add, Key: "g/n", Delta: delta, Once: name}
		if sum == 0 {
			return lost(in)
		}
		return did(0, 0, in, Output{OK: true, Number: sum})
	}
	yes := Output{OK: true}
	lostAdd := Input{Kind: Add, Key: "g/n", Delta: 10}
	lostAppend := Input{Kind: Append, Key: "g/", Value: "u"}
	for name, test := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"added":                    {[]porcupine.Operation{add(1, 1), add(-3, -2)}, true},
		"an addition lost":         {[]porcupine.Operation{add(1, 1), add(2, 2)}, false},
		"an unknown addition":      {[]porcupine.Operation{add(1, 1), lost(lostAdd), add(2, 13)}, true},
		"it came later":            {[]porcupine.Operation{add(1, 1), lost(lostAdd), add(2, 3), add(1, 14)}, true},
		"it never came":            {[]porcupine.Operation{add(1, 1), lost(lostAdd), add(2, 3)}, true},
		"it came twice":            {[]porcupine.Operation{add(1, 1), lost(lostAdd), add(2, 13), add(1, 24)}, false},
		"a repeat":                 {[]porcupine.Operation{named("r", 1, 1), add(2, 3), named("r", 1, 1), add(1, 4)}, true},
		"a repeat that happened":   {[]porcupine.Operation{named("r", 1, 1), named("r", 1, 1), add(1, 3)}, false},
		"a repeat told otherwise":  {[]porcupine.Operation{named("r", 1, 1), named("r", 1, 2)}, false},
		"a repeat of a lost one":   {[]porcupine.Operation{named("r", 5, 0), add(1, 1), named("r", 5, 6), add(1, 7)}, true},
		"both happened":            {[]porcupine.Operation{named("r", 5, 0), add(1, 6), named("r", 5, 11)}, false},
		"two names":                {[]porcupine.Operation{named("r", 1, 1), named("q", 1, 2), named("r", 1, 1)}, true},
		"exchanged":                {[]porcupine.Operation{put("g/a", "x"), exchange("x", "", yes), get(0, 0, "g/b", "1")}, true},
		"exchanged by halves":      {[]porcupine.Operation{put("g/a", "x"), exchange("x", "", yes), get(0, 0, "g/b", "")}, false},
		"exchanged, stale":         {[]porcupine.Operation{put("g/a", "x"), put("g/a", "y"), exchange("x", "", yes)}, false},
		"refused":                  {[]porcupine.Operation{put("g/a", "x"), exchange("", "", Output{Items: []Item{{"g/a", "x"}}})}, true},
		"refused without a reason": {[]porcupine.Operation{put("g/a", "x"), exchange("x", "", Output{Items: []Item{{"g/a", "x"}}})}, false},
		"refused, saw a stale one": {[]porcupine.Operation{put("g/a", "x"), put("g/a", "y"), exchange("z", "", Output{Items: []Item{{"g/a", "x"}}})}, false},
		"appended":                 {[]porcupine.Operation{appended("g/1", "x"), appended("g/2", "y"), list(Item{"g/1", "x"}, Item{"g/2", "y"})}, true},
		"appended under one key":   {[]porcupine.Operation{appended("g/1", "x"), appended("g/1", "y")}, false},
		"under one that was freed": {[]porcupine.Operation{appended("g/1", "x"), emptied(1), appended("g/1", "y")}, false},
		"an append lost":           {[]porcupine.Operation{appended("g/1", "x"), appended("g/2", "y"), list(Item{"g/2", "y"})}, false},
		"an unknown append":        {[]porcupine.Operation{lost(lostAppend), list(Item{"g/7", "u"}), list(Item{"g/7", "u"})}, true},
		"it moved":                 {[]porcupine.Operation{lost(lostAppend), list(Item{"g/7", "u"}), list(Item{"g/8", "u"})}, false},
		"it took another's place":  {[]porcupine.Operation{appended("g/7", "x"), lost(lostAppend), list(Item{"g/7", "u"})}, false},
		"emptied":                  {[]porcupine.Operation{put("g/a", "x"), put("g/b", "y"), emptied(2), list()}, true},
		"emptied in part":          {[]porcupine.Operation{put("g/a", "x"), put("g/b", "y"), emptied(2), list(Item{"g/b", "y"})}, false},
		"emptied of less":          {[]porcupine.Operation{put("g/a", "x"), put("g/b", "y"), emptied(1)}, false},
		"there until its end":      {[]porcupine.Operation{timed("k", "x", 0), get(50, 99, "k", "x"), get(100, 101, "k", "")}, true},
		"gone at its end":          {[]porcupine.Operation{timed("k", "x", 0), get(50, 100, "k", "")}, true},
		"gone early":               {[]porcupine.Operation{timed("k", "x", 0), get(50, 99, "k", "")}, false},
		"there for long":           {[]porcupine.Operation{timed("k", "x", 0), get(60_000, 60_001, "k", "x")}, true},
		"gone in time":             {[]porcupine.Operation{timed("k", "x", time.Second), get(1100, 1101, "k", "x"), get(1101, 1102, "k", "")}, true},
		"there too long":           {[]porcupine.Operation{timed("k", "x", time.Second), get(1101, 1102, "k", "x")}, false},
		"gone and back":            {[]porcupine.Operation{timed("k", "x", 0), get(100, 101, "k", ""), get(102, 103, "k", "x")}, false},
		"written again":            {[]porcupine.Operation{timed("k", "x", time.Second), put("k", "y"), get(5000, 5001, "k", "y")}, true},
		"written again, gone":      {[]porcupine.Operation{timed("k", "x", 0), put("k", "y"), get(5000, 5001, "k", "")}, false},
		// The first of two reads that overlap shows that the time has come; the second was answered before it.
		"gone before its time for another": {[]porcupine.Operation{
			timed("k", "x", 0), get(20, 200, "k", ""), get(30, 60, "k", ""),
		}, false},
	} {
		if got := porcupine.CheckOperations(Model, test.history); got != test.want {
			t.Errorf("%s: linearizable %v, want %v", name, got, test.want)
		}
	}
}
