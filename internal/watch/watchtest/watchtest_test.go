package watchtest

import (
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// sixChanges makes what a cluster has changed in six revisions:
//
//	1 put a=1 · 2 put a=2, b="\xff" · 3 delete b · 4 put c=1 · 5 expire c · 6 put d/1
func sixChanges(t *testing.T) *Changes {
	t.Helper()
	c := NewChanges(state.New(testkit.Peers()))
	var entries []*raftpb.Entry
	add := func(data []byte) {
		entries = append(entries, &raftpb.Entry{Index: new(uint64(len(entries)) + 1), Term: new(uint64(1)), Data: data})
	}
	seq := uint64(0)
	batch := func(commands ...[]byte) {
		seq++
		add(statetest.Batch(state.BatchID{Node: 1, Boot: 1, Seq: seq}, commands...))
	}
	add(nil)
	both := state.EncodeTxn(twoPuts("a", "2", "b", "\xff"))
	batch(statetest.Put("a", "1"), both)
	batch(state.EncodeWrite(state.KindDelete, state.Condition{}, "b", nil))
	timed := state.Lifetime{Kind: state.ForTTL, Value: 100}
	batch(append(state.AppendLeasedPutHead(nil, state.Condition{}, timed, "c"), '1'))
	add(entry.EncodeTick(1, 1000))
	add(entry.EncodeTick(1, 1200))
	batch(statetest.Put("d/1", "x"))
	// Two nodes, one behind the other, and the first entries come last.
	for _, order := range [][]int{{3, 4, 5, 6}, {0, 1, 2, 3, 4}} {
		for _, i := range order {
			testkit.Must(t, c.Note(entries[i]))
		}
	}
	if got := c.Revision(); got != 6 {
		t.Fatalf("revision %d", got)
	}
	if err := c.Note(&raftpb.Entry{Index: new(uint64(3)), Term: new(uint64(2))}); err == nil {
		t.Error("two different entries were applied")
	}
	return c
}

const (
	change1 = "event: change\nid: 1\ndata: {\"revision\":1,\"events\":[{\"type\":\"put\",\"key\":\"a\",\"value\":\"1\",\"create_revision\":1,\"mod_revision\":1,\"version\":1}]}\n\n"
	put2a   = `{"type":"put","key":"a","value":"2","create_revision":1,"mod_revision":2,"version":2}`
	put2b   = `{"type":"put","key":"b","value_base64":"/w==","create_revision":2,"mod_revision":2,"version":1}`
	change2 = "event: change\nid: 2\ndata: {\"revision\":2,\"events\":[" + put2a + "," + put2b + "]}\n\n"
	part2a  = "event: change\ndata: {\"revision\":2,\"events\":[" + put2a + "],\"more\":true}\n\n"
	part2b  = "event: change\nid: 2\ndata: {\"revision\":2,\"events\":[" + put2b + "]}\n\n"
	change3 = "event: change\nid: 3\ndata: {\"revision\":3,\"events\":[{\"type\":\"delete\",\"key\":\"b\"}]}\n\n"
	change4 = "event: change\nid: 4\ndata: {\"revision\":4,\"events\":[{\"type\":\"put\",\"key\":\"c\",\"value\":\"1\",\"create_revision\":4,\"mod_revision\":4,\"version\":1}]}\n\n"
	change5 = "event: change\nid: 5\ndata: {\"revision\":5,\"events\":[{\"type\":\"expire\",\"key\":\"c\"}]}\n\n"
	change6 = "event: change\nid: 6\ndata: {\"revision\":6,\"events\":[{\"type\":\"put\",\"key\":\"d/1\",\"value\":\"x\",\"create_revision\":6,\"mod_revision\":6,\"version\":1}]}\n\n"
	itemA   = `{"key":"a","value":"2","create_revision":1,"mod_revision":2,"version":2}`
	itemD   = `{"key":"d/1","value":"x","create_revision":6,"mod_revision":6,"version":1}`
	start   = "event: reset\nid: 0\ndata: {\"code\":\"start\"}\n\n"
	synced6 = "event: synced\nid: 6\ndata: {\"revision\":6}\n\n"
	state6  = "event: state\ndata: {\"revision\":6,\"items\":[" + itemA + "," + itemD + "]}\n\n"
	ended   = "event: unavailable\nretry: 1500\ndata: {\"code\":\"no_leader\",\"status\":503}\n\n"
)

func at(id string) string { return "id: " + id + "\n\n" }

// Guarantee: the judge of watches notices what it is there for. "|" is where a connection
// breaks; what did not come whole says nothing.
func TestFollower(t *testing.T) {
	for name, tt := range map[string]struct {
		watch  Watch
		from   uint64 // the position; 0: none
		stream string
		want   string // in the error; "": all is well
	}{
		"all":                       {Watch{}, 1, change2 + change3 + change4 + change5 + change6, ""},
		"from now":                  {Watch{}, 0, "retry: 1500\n\n:\n\n" + at("6"), ""},
		"from the past":             {Watch{}, 0, at("5"), "start at revision 6"},
		"ahead":                     {Watch{}, 0, at("7"), "newest revision is 6"},
		"in parts":                  {Watch{}, 1, part2a + ":\n\n" + part2b + change3, ""},
		"half a revision":           {Watch{}, 1, part2b, "its changes are"},
		"half, then the next":       {Watch{}, 1, part2a + change3, "revision 2 is not complete"},
		"half, then a position":     {Watch{}, 1, part2a + at("6"), "between the parts"},
		"half, cut, and again":      {Watch{}, 1, part2a + "|" + part2a + part2b, ""},
		"cut in the middle":         {Watch{}, 1, change2[:len(change2)-1] + "|" + change2, ""},
		"a change is missing":       {Watch{}, 1, change2 + change4, "revision 3 is missing"},
		"missing before a position": {Watch{}, 4, at("6"), "revision 5 is missing"},
		"missing behind a cut":      {Watch{}, 1, change2 + "|" + change4, "revision 3 is missing"},
		"twice":                     {Watch{}, 1, change2 + change2, "history goes back"},
		"out of order":              {Watch{}, 3, change5, "revision 4 is missing"},
		"a position goes back":      {Watch{}, 6, at("5"), "history goes back"},
		"events of others":          {Watch{Keys: []string{"a"}}, 1, change2, "its changes are"},
		"quiet":                     {Watch{Keys: []string{"a"}}, 2, at("5") + at("5") + at("6"), ""},
		"types":                     {Watch{Types: []string{"expire"}}, 1, change5, ""},
		"another type":              {Watch{Types: []string{"delete"}}, 3, change5, "its changes are"},
		"an expiry as deletion":     {Watch{}, 4, strings.Replace(change5, "expire", "delete", 1), "its changes are"},
		"another value":             {Watch{}, 5, strings.Replace(change6, `"x"`, `"y"`, 1), "its changes are"},
		"another version":           {Watch{}, 5, strings.Replace(change6, `"version":1`, `"version":2`, 1), "its changes are"},
		"a field of another time":   {Watch{}, 5, strings.Replace(change6, `"value"`, `"expires_in_seconds":1,"value"`, 1), "unknown field"},
		"history gone":              {Watch{}, 2, "event: reset\nid: 4\ndata: {\"code\":\"history_gone\",\"oldest\":5}\n\n" + change5, ""},
		"history not gone":          {Watch{}, 2, "event: reset\nid: 4\ndata: {\"code\":\"history_gone\",\"oldest\":2}\n\n", "goes back to revision 2"},
		"reset without a reason":    {Watch{}, 0, "event: reset\nid: 4\ndata: {\"code\":\"history_gone\",\"oldest\":3}\n\n", "had no position"},
		"state, and an id":          {Watch{State: true}, 2, "event: reset\nid: 5\ndata: {\"code\":\"history_gone\",\"oldest\":5}\n\n", "its id is 0"},
		"reset without id":          {Watch{}, 2, "event: reset\ndata: {\"code\":\"history_gone\",\"oldest\":5}\n\n", "its id is 0"},
		"of this history":           {Watch{}, 2, "event: reset\nid: 4\ndata: {\"code\":\"unknown_revision\"}\n\n", "of this history"},
		"ended":                     {Watch{}, 5, ended, ""},
		"behind the end":            {Watch{}, 5, ended + change6, "behind the end"},
		"state":                     {Watch{State: true}, 0, start + state6 + synced6, ""},
		"state in parts":            {Watch{State: true}, 0, start + strings.Replace(state6, itemA+",", "", 1) + strings.Replace(state6, ","+itemD, "", 1) + synced6, ""},
		"an item is missing":        {Watch{State: true}, 0, start + strings.Replace(state6, itemA+",", "", 1) + synced6, "is not the store"},
		"an item is twice":          {Watch{State: true}, 0, start + state6 + state6, "there twice"},
		"an item too many":          {Watch{State: true, Keys: []string{"a"}}, 0, start + state6 + synced6, "should be gone"},
		"a position before synced":  {Watch{State: true}, 0, start + state6 + at("6"), "a position before"},
		"before the start":          {Watch{State: true}, 0, at("6"), "a position before"},
		"no synced":                 {Watch{State: true}, 0, start + state6 + change6, "before synced"},
		"state with an id":          {Watch{State: true}, 0, start + strings.Replace(state6, "data", "id: 6\ndata", 1), "with an id"},
		"two revisions":             {Watch{State: true}, 0, start + state6 + strings.Replace(state6, `"revision":6`, `"revision":5`, 1), "part before was of"},
		"state, cut, from anew":     {Watch{State: true}, 0, start + state6 + "|" + start + state6 + synced6, ""},
		"an old state":              {Watch{State: true, Keys: []string{"x"}}, 0, start + strings.ReplaceAll(synced6, "6", "5"), "start at revision 6"},
		"a state of before":         {Watch{State: true, Keys: []string{"x"}}, 6, "event: reset\nid: 0\ndata: {\"code\":\"history_gone\",\"oldest\":7}\n\n" + strings.ReplaceAll(synced6, "6", "5"), "history goes back"},
		"state of nothing":          {Watch{State: true, Keys: []string{"x"}}, 0, start + synced6, ""},
		"resumed":                   {Watch{State: true}, 0, start + state6 + synced6 + "|" + at("6"), ""},
		"forgotten, and goes on":    {Watch{State: true}, 0, start + state6 + "|" + at("6"), "a position before"},
		"lines":                     {Watch{NDJSON: true}, 5, `{"event":"comment"}` + "\n" + `{"event":"change","id":6,"data":{"revision":6,"events":[{"type":"put","key":"d/1","value":"x","create_revision":6,"mod_revision":6,"version":1}]}}` + "\n" + `{"event":"position","id":6}` + "\n", ""},
		"half a line":               {Watch{NDJSON: true}, 6, `{"event":"position","id":` + "|" + `{"event":"position","id":6}` + "\n", ""},
		"base64":                    {Watch{Base64: true}, 5, strings.Replace(change6, `"value":"x"`, `"value_base64":"eA=="`, 1), ""},
		"no base64":                 {Watch{Base64: true}, 5, change6, "is no base64"},
		"keys alone":                {Watch{KeysOnly: true}, 5, strings.Replace(change6, `"value":"x",`, "", 1), ""},
		"keys with values":          {Watch{KeysOnly: true}, 5, change6, "has a value"},
		"unknown":                   {Watch{}, 5, "event: news\ndata: {}\n\n", "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			f := Follower{Watch: tt.watch, Truth: sixChanges(t), Last: tt.from, HasLast: tt.from > 0}
			err := f.feed(tt.stream)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// feed takes in what came over several connections.
func (f *Follower) feed(streams string) error {
	for stream := range strings.SplitSeq(streams, "|") {
		f.Begin()
		p := Parser{NDJSON: f.NDJSON}
		for _, b := range []byte(stream) {
			m, ok, err := p.Feed(b)
			if err == nil && ok {
				err = f.Take(m)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// A browser that is nowhere sends that; others send nothing.
func TestFollowerOfABrowser(t *testing.T) {
	stream := start + state6 + synced6 + "|" + "event: reset\nid: 0\ndata: {\"code\":\"history_gone\",\"oldest\":9}\n\n" + state6
	for _, browser := range []bool{true, false} {
		f := Follower{Watch: Watch{State: true}, Truth: sixChanges(t), Browser: browser}
		testkit.Must(t, f.feed(stream))
		if id, got := f.Begin(); got != browser || id != 0 {
			t.Errorf("browser %t: it sends position %d: %t", browser, id, got)
		}
		if err := f.feed(at("6")); err == nil {
			t.Errorf("browser %t: it has no state, and that was not noticed", browser)
		}
	}
}

func twoPuts(key, value, key2, value2 string) *txn.Txn {
	return &txn.Txn{MaxBytes: 1 << 20, Then: []txn.Op{
		{Kind: txn.Put, Key: key, Value: []byte(value)}, {Kind: txn.Put, Key: key2, Value: []byte(value2)},
	}}
}
