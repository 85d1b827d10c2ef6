// Package history has the model against which histories of clients are judged: groups of
// keys, on which reads, writes, additions, appends, transactions over two keys, deletions
// by prefix and times to live must be linearizable. Package sim and the tests of the
// program share it.
package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what a client asks for, and under which condition.
type Kind int

// The kinds. Those from Append on are about all keys of which Key is a prefix.
const (
	Get       Kind = iota
	Put            // always
	Create         // If-None-Match: *
	Swap           // If-Match: the ETag under which the client saw the value expect
	Delete         // always; 404 says that there was nothing
	DeleteOld      // If-Match
	Add            // adds Delta to the number that Key holds; a missing one counts as 0
	Exchange       // writes Key and Key2 if they hold Expect and Expect2; else it tells what they hold
	Look           // tells what Key and Key2 hold at one moment
	Append         // writes the next key under the prefix
	Clear          // deletes the keys with the prefix
	List           // tells the keys with the prefix, and what they hold
)

// String returns the name of the kind.
func (k Kind) String() string {
	return [...]string{"get", "put", "create", "swap", "delete", "deleteOld", "add", "exchange", "look", "append", "clear", "list"}[k]
}

// Input is what a client asks for. Each value is written at most once in a run, so a
// condition on a revision is one on the value that was seen with it. "" is no value: a
// condition asks with it for a missing key.
type Input struct {
	Kind   Kind
	Key    string // or the prefix
	Value  string // what it writes
	Expect string // what the condition asks for
	Delta  int64  // of Add

	Key2, Value2, Expect2 string // of Exchange and Look

	// Once is the name under which the request happens once, of Add and Exchange; "": it
	// has none.
	Once string

	// TTL is how long Key lives from Sent on, of Put and Append, and of Add if that makes
	// the key. 0: for ever.
	TTL time.Duration
	// Grace is how much longer than TTL the key lives at most. 0: without a bound, as
	// where the cluster may be unable to commit.
	Grace time.Duration
	Sent  time.Time // when the request was sent; counts where there are times to live
}

// Group names the keys among which the operation is: up to the first slash of its key,
// inclusive, or the key itself if it has none. No operation is about two groups.
func (in Input) Group() string {
	if head, _, ok := strings.Cut(in.Key, "/"); ok {
		return head + "/"
	}
	return in.Key
}

// Output is what a client was told.
type Output struct {
	Unknown bool   // it may have happened, at any time after the call, or never
	OK      bool   // 2xx, and of Exchange that its conditions held; else 404 or 412, which are observations too
	Value   string // what a read saw, "" for 404
	Number  int64  // of Add: the sum
	Deleted int    // of Clear: how many keys
	Key     string // of Append: the key that it was given
	// Items are what List saw, in the order of their keys, and what Look and a refused
	// Exchange saw of those keys that were there.
	Items []Item
	Told  time.Time // when the answer came. The zero time: never
}

// Item is a key with what it holds.
type Item struct{ Key, Value string }

// Model is a map for each group of keys. A key whose time has passed may be there or gone,
// so one history of a group has several states that are possible.
var Model = func() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			groups := map[string][]porcupine.Operation{}
			for _, op := range history {
				name := op.Input.(Input).Group()
				groups[name] = append(groups[name], op)
			}
			return slices.Collect(maps.Values(groups))
		},
		Init:  func() []any { return []any{&group{}} },
		Step:  func(state, in, out any) []any { return state.(*group).step(in.(Input), out.(Output)) },
		Equal: func(a, b any) bool { return a.(*group).equal(b.(*group)) },

		DescribeOperation: func(in, out any) string { return describe(in.(Input), out.(Output)) },
		DescribeState:     func(state any) string { return fmt.Sprint(state.(*group).items) },
	}
	return m.ToModel()
}()

func describe(in Input, out Output) string {
	asked := fmt.Sprintf("%v %s", in.Kind, in.Key)
	switch in.Kind {
	case Put, Create, Swap, DeleteOld:
		asked += fmt.Sprintf(" (%s→%s)", in.Expect, in.Value)
	case Append:
		asked += " " + in.Value
	case Add:
		asked += fmt.Sprintf(" %+d", in.Delta)
	case Exchange:
		asked += fmt.Sprintf(" (%s→%s) %s (%s→%s)", in.Expect, in.Value, in.Key2, in.Expect2, in.Value2)
	case Look:
		asked += " " + in.Key2
	}
	if in.Once != "" {
		asked += " once as " + in.Once
	}
	if in.TTL > 0 {
		asked += fmt.Sprintf(" for %v from %v on", in.TTL, in.Sent.Format("04:05.000"))
	}
	result := map[bool]string{true: "ok", false: "no"}[out.OK]
	switch {
	case out.Unknown:
		return asked + " → ?"
	case in.Kind == Get:
		result = fmt.Sprintf("%q", out.Value)
	case in.Kind == Add:
		result += fmt.Sprint(" ", out.Number)
	case in.Kind == Append:
		result += " " + out.Key
	case in.Kind == Clear:
		result += fmt.Sprint(" ", out.Deleted)
	case in.Kind == List, in.Kind == Look, in.Kind == Exchange:
		result += fmt.Sprint(" ", out.Items)
	}
	return asked + " → " + result
}
