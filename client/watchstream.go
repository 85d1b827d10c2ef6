package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// watchSilence is after how long without a word a connection counts as dead. A node says
	// something every 15 s.
	watchSilence = 40 * time.Second
	// maxLineBytes bounds a message. An item is never divided: its value has 64 MiB at most, and
	// a third more in base64.
	maxLineBytes = 96 << 20
	lineBuffer   = 16 << 10
)

// watchMessage is a line of a watch.
type watchMessage struct {
	Event string  `json:"event"`
	ID    *uint64 `json:"id"`
	Retry int64   `json:"retry"` // ms
	Data  struct {
		Revision uint64      `json:"revision"`
		More     bool        `json:"more"`
		Events   []wireEvent `json:"events"`
		Items    []wireItem  `json:"items"`
		Code     Code        `json:"code"`
		Detail   string      `json:"detail"`
	} `json:"data"`
}

type wireEvent struct {
	Type EventType `json:"type"`
	wireItem
}

// events are those of a change. An event of a type that is not known is one of a later
// version, and left out.
func (m *watchMessage) events() []Event {
	events := make([]Event, 0, len(m.Data.Events))
	for i := range m.Data.Events {
		switch e := &m.Data.Events[i]; e.Type {
		case Put:
			events = append(events, Event{Type: Put, Item: e.item()})
		case Delete, Expire:
			events = append(events, Event{Type: e.Type, Item: Item{Key: e.Key}})
		}
	}
	return events
}

// unavailableError is what a node says that cannot go on with a watch.
type unavailableError struct {
	from   string
	code   Code
	detail string
	retry  time.Duration
}

func (e *unavailableError) Error() string {
	return fmt.Sprintf("watch: %s: %s (%s)", string(e.code), e.detail, e.from)
}

// Unwrap returns the code.
func (e *unavailableError) Unwrap() error { return e.code }

// strange returns the error of a stream that is not as docs/watch.md says.
func strange(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrStranger, fmt.Sprintf(format, args...))
}

// final reports whether an error of a call means that no later attempt can succeed.
func final(err error) bool {
	if h := new(HistoryError); errors.As(err, &h) {
		return true
	}
	e := new(Error)
	return errors.As(err, &e) && e.ended == nil && !errors.Is(err, ErrStranger) && !errors.Is(err, ErrOtherCluster)
}

// jitter returns a random time between two.
func jitter(least, most time.Duration) time.Duration {
	if most <= least {
		return max(0, least)
	}
	return least + rand.N(most-least)
}

// sleep waits, and returns why ctx has ended if it does before that.
func sleep(ctx context.Context, long time.Duration) error {
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// request is what is asked of the next endpoint.
func (w *watching) request() *request {
	q := url.Values{"values": {"base64"}} // one shape, whatever the values are
	if len(w.cfg.Prefixes) > 0 {
		q["prefix"] = w.cfg.Prefixes
	}
	if len(w.cfg.Keys) > 0 {
		q["key"] = w.cfg.Keys
	}
	if w.cfg.State {
		q.Set("state", "true")
	}
	if w.cfg.KeysOnly {
		q.Set("keys_only", "true")
		q.Del("values")
	}
	if types := w.types(); types != "" {
		q.Set("types", types)
	}
	if w.placed {
		q.Set("after_revision", strconv.FormatUint(w.position, 10))
	}
	return &request{
		op: "watch", key: w.name(), method: http.MethodGet, path: "/v1/watch", query: q,
		header: http.Header{"Accept": {"application/x-ndjson"}}, silence: watchSilence,
	}
}

// name is what errors say of what is watched.
func (w *watching) name() string {
	if len(w.cfg.Keys)+len(w.cfg.Prefixes) == 1 {
		return strings.Join(w.cfg.Keys, "") + strings.Join(w.cfg.Prefixes, "")
	}
	return ""
}

// types is what is asked of the nodes. With State they leave out nothing: the names that are
// known have to be right.
func (w *watching) types() string {
	if w.cfg.State {
		return ""
	}
	var names []string
	for _, t := range w.cfg.Types {
		names = append(names, string(t))
	}
	return strings.Join(names, ",")
}

// connect watches at one endpoint, until that cannot go on or the reader has enough.
func (w *watching) connect(ctx context.Context) error {
	a, err := w.client.open(ctx, w.request())
	if err != nil {
		if e := new(Error); errors.As(err, &e) && errors.Is(err, ErrStranger) {
			// A node that is being started says so without the name of its cluster.
			if o := w.client.endpoints.named(e.Endpoint); o != nil {
				w.client.lost(o)
			}
		}
		return err
	}
	began := time.Now()
	err = w.read(a)
	_ = a.stream.Close()
	if time.Since(began) >= watchSettled {
		w.fails = 0
	}
	if u := new(unavailableError); errors.As(err, &u) {
		u.from = a.from.base
	}
	var ended *HistoryError
	if !errors.Is(err, errEnough) && !errors.As(err, &ended) && ctx.Err() == nil {
		w.client.lost(a.from)
		err = fmt.Errorf("watch: %s: %w", a.from.base, err)
	}
	return err
}

// read takes in messages until the stream ends.
func (w *watching) read(a *answer) error {
	if kind := a.header.Get("Content-Type"); kind != "application/x-ndjson" {
		return strange("it is of type %q, not application/x-ndjson", clip(kind, maxShown))
	}
	lines := bufio.NewReaderSize(a.stream, lineBuffer)
	for {
		line, err := readLine(lines, maxLineBytes)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF // a node says why it ends a watch
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		m := new(watchMessage)
		if err := json.Unmarshal(line, m); err != nil {
			return strange("%v in %q", err, strings.ToValidUTF8(clip(string(line), maxShown), "?"))
		}
		if err := w.take(m, len(line)); err != nil {
			return err
		}
		w.begun = true
		if w.heard != nil {
			w.heard()
		}
	}
}
