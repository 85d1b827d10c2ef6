package history

import (
	"math"
	"testing"

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
