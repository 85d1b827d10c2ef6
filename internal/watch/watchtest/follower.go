package watchtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Follower is a client that keeps a copy of what is under its filters, by the few rules
// that the protocol of the watch has for clients. It compares all that it is told with what
// the cluster has changed, and an error of it is a broken promise.
type Follower struct {
	Watch
	// Browser: it sends the last id that it was told, as EventSource does, also that of one who
	// is nowhere. Others send none then.
	Browser bool
	// Foreign: its position may be another history's, so "unknown_revision" is right.
	Foreign bool
	Truth   *Changes

	Last    uint64 // the position from which it resumes
	HasLast bool
	Copy    map[string]Item
	Whole   bool // Copy is what there was at Last

	nowhere bool // it was told to forget its position

	Counts map[string]int // how often it was told what; "reset/CODE" for resets

	// Of the connection.
	floor    uint64 // the revision that there was before it began
	sent     bool   // it has sent a position
	from     uint64 // this one
	settled  bool   // there was an id, or a synced
	begun    bool   // there was a reset that a state follows
	parts    []Change
	revision uint64 // of the parts
	state    uint64 // the revision of the state that comes; 0: nothing of it yet
	Ended    string // the code of "unavailable"
}

// Begin begins a connection, and returns the position to send. False: there is none.
func (f *Follower) Begin() (last uint64, ok bool) {
	if f.Counts == nil {
		f.Counts = make(map[string]int)
	}
	if !f.HasLast {
		f.Last = 0
	}
	f.sent, f.settled, f.begun, f.parts, f.state, f.revision, f.Ended = f.HasLast && !(f.State && f.Last == 0), false, false, nil, 0, 0, ""
	f.floor, f.from = f.Truth.Revision(), f.Last
	return f.Last, f.HasLast || f.Browser && f.nowhere
}

// Take takes in a message.
func (f *Follower) Take(m Message) error {
	if f.Ended != "" {
		return fmt.Errorf("behind the end: %v", m)
	}
	f.Counts[m.Event]++
	if f.parts != nil && m.Event != "change" && m.Event != "unavailable" && m.Event != "comment" {
		return fmt.Errorf("between the parts of revision %d: %v", f.revision, m)
	}
	var err error
	switch m.Event {
	case "comment":
		if m.Retry != 0 && (m.Retry < 1000 || m.Retry > 3000) {
			err = fmt.Errorf("retry: %d", m.Retry)
		}
	case "position":
		err = f.position(m)
	case "change":
		err = f.change(m)
	case "reset":
		err = f.reset(m)
	case "state":
		err = f.items(m)
	case "synced":
		err = f.synced(m)
	case "unavailable":
		err = f.end(m)
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return fmt.Errorf("%v, at position %d (%t): %w", m, f.Last, f.HasLast, err)
	}
	return nil
}

// position takes in an id alone: nothing was to be told until there.
func (f *Follower) position(m Message) error {
	if !m.HasID || m.Data != nil {
		return errors.New("a position without id, or with data")
	}
	if f.State && !f.sent && !f.settled {
		return errors.New("a position before the state")
	}
	if f.begun {
		return errors.New("a position before synced")
	}
	if f.State && !f.Whole {
		return errNoState
	}
	return f.moveTo(m.ID)
}

// errNoState: it goes on for a client that has no state, or has been told to forget it.
var errNoState = errors.New("it has no state with which to go on")

// moveTo moves the position to a revision that says nothing itself.
func (f *Follower) moveTo(id uint64) error {
	if newest := f.Truth.Revision(); id > newest && !f.Foreign {
		return fmt.Errorf("the newest revision is %d", newest)
	}
	if f.HasLast && id < f.Last {
		return errors.New("history goes back")
	}
	if !f.settled && !f.sent && id < f.floor {
		return fmt.Errorf("it was to start at revision %d or later", f.floor)
	}
	if f.HasLast && !f.Foreign {
		if lost := f.Truth.Next(f.Last, id+1, f.Watch); lost > 0 {
			return fmt.Errorf("revision %d is missing", lost)
		}
	}
	f.Last, f.HasLast, f.settled = id, true, true
	return f.compare()
}

// compare compares the copy with what there was at the position.
func (f *Follower) compare() error {
	if !f.Whole || len(f.Types) > 0 {
		return nil
	}
	want, ok := f.Truth.At(f.Last, f.Watch)
	if !ok {
		return fmt.Errorf("revision %d is none of this history", f.Last)
	}
	if !maps.Equal(f.Copy, want) {
		return fmt.Errorf("the copy at revision %d is not the store: %s", f.Last, difference(f.Copy, want))
	}
	return nil
}

// Compare compares the copy with what there was at its position, and says whether there is
// a copy.
func (f *Follower) Compare() (bool, error) { return f.Whole, f.compare() }

func difference(got, want map[string]Item) string {
	for key, it := range want {
		if g, ok := got[key]; !ok || g != it {
			return fmt.Sprintf("%q is %t %.200q, want %.200q", key, ok, fmt.Sprint(g), fmt.Sprint(it))
		}
	}
	for key, it := range got {
		if _, ok := want[key]; !ok {
			return fmt.Sprintf("%q should be gone, and is %.200q", key, fmt.Sprint(it))
		}
	}
	return "it is the same"
}

// change takes in a revision, or a part of one.
func (f *Follower) change(m Message) error {
	var told struct {
		Revision uint64     `json:"revision"`
		Events   []toldItem `json:"events"`
		More     bool       `json:"more"`
	}
	if err := strictly(m.Data, &told); err != nil {
		return err
	}
	switch {
	case f.begun:
		return errors.New("a change before synced")
	case f.State && !f.Whole:
		return errNoState
	case told.More == m.HasID:
		return errors.New("the last part alone has an id")
	case m.HasID && m.ID != told.Revision:
		return fmt.Errorf("it is revision %d", told.Revision)
	case len(told.Events) == 0:
		return errors.New("there are no events")
	case f.parts != nil && told.Revision != f.revision:
		return fmt.Errorf("revision %d is not complete", f.revision)
	case f.HasLast && told.Revision <= f.Last:
		return errors.New("history goes back")
	case told.Revision > f.Truth.Revision():
		return errors.New("nothing has this revision")
	}
	for _, e := range told.Events {
		it, err := e.item(f.Watch, e.Type == "put")
		if err != nil {
			return err
		}
		if e.Type != "put" && it != (Item{Key: it.Key}) {
			return fmt.Errorf("%s of %s says more: %+v", e.Type, e.Key, it)
		}
		f.parts = append(f.parts, Change{e.Type, it})
	}
	f.revision = told.Revision
	if told.More {
		return nil
	}
	return f.complete()
}

// complete takes in a revision of which all parts are there.
func (f *Follower) complete() error {
	got := f.parts
	f.parts = nil
	slices.SortFunc(got, byKey)
	if want := f.Truth.Of(f.revision, f.Watch); !slices.Equal(got, want) {
		return fmt.Errorf("its changes are %.300q, want %.300q", fmt.Sprint(got), fmt.Sprint(want))
	}
	if f.HasLast {
		if lost := f.Truth.Next(f.Last, f.revision, f.Watch); lost > 0 {
			return fmt.Errorf("revision %d is missing", lost)
		}
	}
	for _, c := range got {
		if c.Type == "put" && f.Whole {
			f.Copy[c.Item.Key] = c.Item
		} else {
			delete(f.Copy, c.Item.Key)
		}
	}
	f.Last, f.HasLast, f.settled = f.revision, true, true
	return f.compare()
}

// reset forgets all.
func (f *Follower) reset(m Message) error {
	var told struct {
		Code   string `json:"code"`
		Oldest uint64 `json:"oldest"`
	}
	if err := strictly(m.Data, &told); err != nil {
		return err
	}
	f.Counts["reset/"+told.Code]++
	switch {
	case told.Code == "start" && (!f.State || f.settled || f.sent):
		return errors.New("that is no start")
	case told.Code == "unknown_revision" && !f.Foreign:
		return errors.New("it is of this history")
	case told.Code == "history_gone" && !f.HasLast:
		return errors.New("it had no position")
	case told.Code == "history_gone" && told.Oldest <= f.Last && !f.Foreign:
		return fmt.Errorf("history goes back to revision %d", told.Oldest)
	case told.Code != "start" && told.Code != "history_gone" && told.Code != "unknown_revision":
		return errors.New("unknown code")
	case !m.HasID || (m.ID == 0) != f.State:
		return errors.New("its id is 0 where a state follows, and nowhere else")
	}
	foreign := f.Foreign
	f.Copy, f.Whole, f.Foreign = make(map[string]Item), false, f.Foreign && f.State
	if f.State {
		f.begun, f.state = true, 0
		f.HasLast, f.nowhere = false, true
		return nil
	}
	if m.ID < f.Last && !foreign {
		return errors.New("history goes back")
	}
	if newest := f.Truth.Revision(); m.ID > newest {
		return fmt.Errorf("the newest revision is %d", newest)
	}
	f.Last, f.HasLast, f.settled = m.ID, true, true
	return nil
}

// items takes in a part of the state.
func (f *Follower) items(m Message) error {
	var told struct {
		Revision uint64     `json:"revision"`
		Items    []toldItem `json:"items"`
	}
	if err := strictly(m.Data, &told); err != nil {
		return err
	}
	switch {
	case !f.begun || m.HasID:
		return errors.New("a state without a reset before it, or with an id")
	case f.state != 0 && told.Revision != f.state:
		return fmt.Errorf("the part before was of revision %d", f.state)
	}
	f.state = told.Revision
	for _, i := range told.Items {
		it, err := i.item(f.Watch, true)
		if err != nil {
			return err
		}
		if _, twice := f.Copy[it.Key]; twice {
			return fmt.Errorf("%s is there twice", it.Key)
		}
		f.Copy[it.Key] = it
	}
	return nil
}

// synced ends the state.
func (f *Follower) synced(m Message) error {
	var told struct {
		Revision uint64 `json:"revision"`
	}
	if err := strictly(m.Data, &told); err != nil {
		return err
	}
	switch {
	case !f.begun || !m.HasID || m.ID != told.Revision:
		return errors.New("synced without a reset before it, or of another revision")
	case f.state != 0 && f.state != m.ID:
		return fmt.Errorf("the state was of revision %d", f.state)
	case !f.sent && m.ID < f.floor:
		return fmt.Errorf("it was to start at revision %d or later", f.floor)
	case f.sent && m.ID < f.from && !f.Foreign:
		return errors.New("history goes back")
	}
	f.Last, f.HasLast, f.settled, f.begun, f.Whole, f.Foreign = m.ID, true, true, false, true, false
	return f.compare()
}

// end takes in the last that a stream says.
func (f *Follower) end(m Message) error {
	var told struct {
		Code string `json:"code"`
	}
	if m.HasID || m.Retry < 1000 || m.Retry > 3000 {
		return errors.New("an end without retry, or with an id")
	}
	if err := looselyNamed(m.Data, &told); err != nil {
		return err
	}
	f.Ended = told.Code
	f.Counts["unavailable/"+told.Code]++
	return nil
}
