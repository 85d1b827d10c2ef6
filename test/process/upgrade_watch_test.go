//go:build unix

package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// watchFollower keeps a copy of what is under a prefix by watching some nodes in turn. A node whose program knows no
// watches is passed over.
type watchFollower struct {
	end  context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex
	copy    map[string]watchItem
	synced  bool
	broken  error // a node has said what no node may say
	starts  int   // watches that were answered
	changes int
}

// followFrom starts to watch.
func (c *procCluster) followFrom(prefix string, nodes ...int) *watchFollower {
	c.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	f := &watchFollower{end: end}
	var urls []string
	for _, i := range nodes {
		urls = append(urls, c.url(i))
	}
	f.done.Go(func() {
		client := procClient(0)
		defer client.CloseIdleConnections()
		position := ""
		for n := 0; ctx.Err() == nil; n++ {
			target := fmt.Sprintf("%s/v1/watch?state=true&prefix=%s", urls[n%len(urls)], url.QueryEscape(prefix))
			f.follow(ctx, client, target, &position) // until it breaks off
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	c.t.Cleanup(f.stop)
	return f
}

func (f *watchFollower) stop() {
	f.end()
	f.done.Wait()
}

// follow watches one node.
func (f *watchFollower) follow(ctx context.Context, client *http.Client, target string, position *string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		f.breaks(err)
		return
	}
	r.Header.Set("Accept", "application/x-ndjson")
	if *position != "" {
		r.Header.Set("Last-Event-ID", *position)
	}
	resp, err := client.Do(r)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return
	}
	f.mu.Lock()
	f.starts++
	f.mu.Unlock()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		if err := f.take(line, position); err != nil {
			f.breaks(fmt.Errorf("%w: %.200s", err, line))
			return
		}
	}
}

func (f *watchFollower) breaks(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = errors.Join(f.broken, err)
}

// take takes in a line.
func (f *watchFollower) take(line []byte, position *string) error {
	var m struct {
		Event string
		ID    *uint64
		Data  struct {
			Revision uint64
			Items    []watchItem
			Events   []struct {
				Type string
				watchItem
			}
		}
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m.Event {
	case "reset":
		f.copy, f.synced = make(map[string]watchItem), false
	case "synced":
		f.synced = true
	case "change":
		f.changes++
	}
	maps.Copy(f.copy, watchCopy(m.Data.Items))
	for _, e := range m.Data.Events {
		if e.Type == "put" {
			maps.Copy(f.copy, watchCopy([]watchItem{e.watchItem}))
		} else {
			delete(f.copy, e.Key)
		}
	}
	if m.ID != nil {
		*position = fmt.Sprint(*m.ID)
	}
	return nil
}

// wantCopy checks that the copy becomes what a node holds under the prefix.
func (f *watchFollower) wantCopy(c *procCluster, i int, prefix string) {
	c.t.Helper()
	want := c.held(i, prefix)
	procEventually(c.t, watchWithin, "the watcher has what the store holds", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.broken != nil || !f.synced || f.changes == 0 {
			return fmt.Errorf("%w; synced: %t, %d changes", f.broken, f.synced, f.changes)
		}
		return watchDiffers(f.copy, want)
	})
	c.t.Logf("%d keys by %d changes from %d watches", len(want), f.changes, f.starts)
}
