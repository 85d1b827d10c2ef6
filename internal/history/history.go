// Package history has the model against which histories of clients are judged: a
// register for each key, whose reads and conditional writes must be linearizable.
// Package sim and the tests of the program share it.
package history

import (
	"fmt"
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"
)

// Kind is what a client asks for, and under which condition.
type Kind int

const (
	Get       Kind = iota
	Put            // always
	Create         // If-None-Match: *
	Swap           // If-Match: the ETag under which the client saw the value expect
	Delete         // always; 404 says that there was nothing
	DeleteOld      // If-Match
)

// Input is what a client asks for. Each value is written at most once in a run, so a
// condition on a revision is one on the value that was seen with it.
type Input struct {
	Kind   Kind
	Key    string
	Value  string // what it writes
	Expect string // what the condition asks for
}

// Output is what a client was told.
type Output struct {
	Unknown bool   // it may have happened, at any time after the call, or never
	OK      bool   // 2xx; else 404 or 412, which are observations too
	Value   string // what a read saw, "" for 404
}

// Model is a register for each key; the state is its value, "" when it is missing.
var Model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(Input).Key
			byKey[key] = append(byKey[key], op)
		}
		return slices.Collect(maps.Values(byKey))
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out, now := input.(Input), output.(Output), state.(string)
		var met bool // is its condition met
		next := now  // the state if so
		switch in.Kind {
		case Get:
			return out.Value == now, now
		case Put:
			met, next = true, in.Value
		case Create:
			met, next = now == "", in.Value
		case Swap:
			met, next = now == in.Expect, in.Value
		case Delete:
			met, next = now != "", ""
		case DeleteOld:
			met, next = now == in.Expect, ""
		}
		if !met {
			next = now
		}
		return out.Unknown || out.OK == met, next
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(Input), output.(Output)
		what := [...]string{"get", "put", "create", "swap", "delete", "deleteOld"}[in.Kind]
		if in.Kind == Get {
			return fmt.Sprintf("get → %q", out.Value)
		}
		result := map[bool]string{true: "ok", false: "no"}[out.OK]
		if out.Unknown {
			result = "?"
		}
		return fmt.Sprintf("%s(%s→%s) %s", what, in.Expect, in.Value, result)
	},
}
