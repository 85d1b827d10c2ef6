package observe

import (
	"context"
	"raftkv/internal/membership"
	"raftkv/internal/version"
	"sync"
	"time"
)

// Which version each member runs. It is no part of the replicated state; the
// leader asks every member that is up, over the route that tells of the cluster,
// and the others ask the leader together with what else only that knows.

const (
	// versionAge is how old an answer may become: a member may have been
	// restarted with another program meanwhile.
	versionAge = 15 * time.Second
	// maxVersionBytes bounds what is believed of such an answer.
	maxVersionBytes = 128
)

// versions is what the leader knows of the members' versions.
type versions struct {
	mu    sync.Mutex
	known map[uint64]memberVersion
}

type memberVersion struct {
	text  string
	asked time.Time
}

// of returns a member's version, "" if it is not known.
func (v *versions) of(id uint64) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known[id].text
}

// due reports whether a member is to be asked.
func (v *versions) due(id uint64, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return now.Sub(v.known[id].asked) >= versionAge
}

// note keeps a member's answer; "" when there was none.
func (v *versions) note(id uint64, text string, now time.Time) {
	if len(text) > maxVersionBytes {
		text = text[:maxVersionBytes]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = make(map[uint64]memberVersion)
	}
	v.known[id] = memberVersion{text, now}
}

func (v *versions) forget(id uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.known, id)
}

func (v *versions) forgetAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.known)
}

// AskVersions asks the members that are up, while this node leads.
func (w *Watcher) AskVersions(ctx context.Context) error {
	tick := time.NewTicker(w.ElectionTimeout)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		v := w.view.Load()
		if v == nil {
			continue
		}
		m := w.Members()
		for _, id := range membership.SortedKeys(v.members) {
			if id == w.ID || !v.members[id].near || !w.versions.due(id, time.Now()) || m.Members[id].PeerURL == "" {
				continue
			}
			ask, cancel := context.WithTimeout(ctx, w.ElectionTimeout)
			text, err := w.AskVersion(ask, m.Members[id].PeerURL)
			cancel()
			if err != nil {
				text = "" // a busy member says it the next time
			}
			w.versions.note(id, text, time.Now())
		}
	}
}

// Version returns that of a member's program, "" if it is not known.
func (w *Watcher) Version(id uint64) string {
	if id == w.ID {
		return version.This().Version
	}
	return w.versions.of(id)
}
