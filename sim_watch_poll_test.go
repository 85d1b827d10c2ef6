//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/watch/watchtest"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// pollAnswer is what came of a read that waits.
type pollAnswer struct {
	status   int
	etag     string
	body     string
	revision uint64
	took     time.Duration
}

// poll sends a read to a handler of a node.
func poll(h func(http.ResponseWriter, *http.Request), path string, header ...string) <-chan pollAnswer {
	done := make(chan pollAnswer, 1)
	r := httptest.NewRequest(http.MethodGet, "http://localhost/v1/"+path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	go func() {
		began, rec := time.Now(), httptest.NewRecorder()
		h(rec, r)
		revision, _ := strconv.ParseUint(rec.Header().Get("Raftkv-Revision"), 10, 64)
		done <- pollAnswer{rec.Code, rec.Header().Get("Etag"), rec.Body.String(), revision, time.Since(began)}
	}()
	return done
}

// pollOn is poll on a node's API.
func (w *simWatches) pollOn(id uint64, path string, header ...string) <-chan pollAnswer {
	return poll(w.Nodes[id].Life.api.ServeHTTP, path, header...)
}

// must has a node carry out a command.
func (w *simWatches) must(id uint64, cmd []byte) {
	w.T.Helper()
	if err := w.propose(w.Nodes[id].Life, cmd); err != nil {
		w.T.Fatal(err)
	}
}

func putOf(key, value string) []byte {
	return state.EncodeWrite(state.KindPut, state.Condition{}, key, []byte(value))
}

func deleteOf(key string) []byte {
	return state.EncodeWrite(state.KindDelete, state.Condition{}, key, nil)
}

// etagOf is the ETag of a key.
func (w *simWatches) etagOf(key string) string {
	it, _ := w.Nodes[w.Leader()].Life.kv.Get(key)
	return api.Etag(it.ModRevision)
}

// Guarantee: a read with wait is answered when its key has changed so that the answer is
// another, or when its time is up, and by nothing else.
func TestSimLongPoll(t *testing.T) {
	const soon = 200 * time.Millisecond
	timed := func(key string, ttl uint64) []byte {
		return state.AppendLeasedPutHead(nil, state.Condition{}, state.Lifetime{Kind: state.ForTTL, Value: ttl}, key)
	}
	simulateWatch(t, 3, nil, func(w *simWatches) {
		w.awaitCommands()
		for n, tt := range []struct {
			name   string
			there  bool   // the key is there before
			header string // of the condition, with the ETag that it has
			path   string // with %s for the key
			after  []byte // happens 5 s later
			status int
			took   time.Duration
		}{
			{"comes to be", false, "", "kv/%s?wait=30s", putOf("", "x"), 200, 5 * time.Second},
			{"never comes", false, "", "kv/%s?wait=30s", nil, 404, 30 * time.Second},
			{"is there", true, "", "kv/%s?wait=30s", nil, 200, 0},
			{"changes", true, "If-None-Match", "kv/%s?wait=30s", putOf("", "y"), 200, 5 * time.Second},
			{"does not change", true, "If-None-Match", "kv/%s?wait=30s", nil, 304, 30 * time.Second},
			{"goes", true, "If-None-Match", "kv/%s?wait=30s", deleteOf(""), 404, 30 * time.Second},
			{"is not that any more", true, "If-Match", "kv/%s?wait=30s", nil, 200, 0},
			{"any", false, "If-Match", "kv/%s?wait=30s", putOf("", "x"), 200, 5 * time.Second},
			{"the shortest", true, "If-None-Match", "kv/%s?wait=1ms", nil, 304, time.Millisecond},
			{"stale", true, "If-None-Match", "kv/%s?wait=30s&consistency=stale", putOf("", "y"), 200, 5 * time.Second},
			{"list: a put", true, "", "kv?prefix=%s&after_revision=NOW&wait=30s", putOf("", "y"), 200, 5 * time.Second},
			{"list: a delete", true, "", "kv?prefix=%s&after_revision=NOW&wait=30s", deleteOf(""), 200, 5 * time.Second},
			{"list: an expiry", false, "", "kv?prefix=%s&after_revision=NOW&wait=30s", timed("", 1000), 200, 5 * time.Second},
			{"list: nothing", true, "", "kv?prefix=%s&after_revision=NOW&wait=30s", nil, 304, 30 * time.Second},
			{"list: no wait", true, "", "kv?prefix=%s&after_revision=NOW", nil, 304, 0},
			{"list: before", true, "", "kv?prefix=%s&after_revision=0&wait=30s", nil, 200, 0},
			{"list: of another history", true, "", "kv?prefix=%s&after_revision=99999&wait=30s", nil, 200, 0},
		} {
			for _, id := range w.Up() {
				key := fmt.Sprintf("poll/%d/%d", n, id)
				var header []string
				if tt.there {
					w.must(id, putOf(key, "x"))
				}
				switch {
				case tt.header != "" && tt.there:
					header = []string{tt.header, w.etagOf(key)}
				case tt.header != "":
					header = []string{tt.header, "*"}
				}
				w.must(w.Leader(), putOf("other", "x"))
				w.awaitApplied(id)
				path := strings.ReplaceAll(fmt.Sprintf(tt.path, url.QueryEscape(key)), "NOW", fmt.Sprint(w.changes.Revision()))
				began := time.Now()
				answer := w.pollOn(id, path, header...)
				time.Sleep(2 * time.Second)
				for _, other := range []string{"other", key[:len(key)-1], "poll/", "k" + key} {
					w.must(w.Leader(), putOf(other, "x"))
				}
				time.Sleep(time.Until(began.Add(5 * time.Second)))
				if tt.after != nil {
					w.must(w.Leader(), keyed(tt.after, key))
				}
				a := <-answer
				if a.status != tt.status || a.took < tt.took || a.took > tt.took+soon {
					t.Errorf("%s, on node %d: %d after %v, want %d after %v; %s", tt.name, id, a.status, a.took, tt.status, tt.took, a.body)
				}
			}
		}
	})
}

// keyed is a command for another key than "".
func keyed(cmd []byte, key string) []byte {
	c, err := state.DecodeCommand(cmd)
	switch {
	case err != nil:
		panic(err)
	case c.Kind == state.KindPut:
		return putOf(key, string(c.Value))
	case c.Kind == state.KindDelete:
		return deleteOf(key)
	}
	return state.AppendLeasedPutHead(nil, state.Condition{}, state.Lifetime{Kind: state.ForTTL, Value: 1000}, key)
}

// Guarantee: a list that waits is answered at once where history does not reach back to what
// its client has seen.
func TestSimLongPollOfACompactedRevision(t *testing.T) {
	small := func(cfg *config.Config) { cfg.WatchHistory = 4096 }
	simulateWatch(t, 3, small, func(w *simWatches) {
		id := w.Followers()[0]
		w.put(id, 100)
		for _, prefix := range []string{"k", "never/"} {
			if a := <-w.pollOn(id, "kv?prefix="+prefix+"&after_revision=3&wait=30s"); a.status != http.StatusOK || a.took > time.Second {
				t.Errorf("%d after %v", a.status, a.took)
			}
		}
	})
}

// Guarantee: a list that has waited in vain says up to which revision nothing has changed when
// its time is up, so that whoever goes on there finds that in the history.
func TestSimLongPollOfAQuietPrefixMovesOn(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		id := w.Followers()[0]
		before := w.put(id, 3)
		answer := w.pollOn(id, fmt.Sprintf("kv?prefix=never/&after_revision=%d&wait=30s", before))
		time.Sleep(10 * time.Second)
		after := w.put(id, 3)
		if a := <-answer; a.status != http.StatusNotModified || a.revision != after || a.took < 30*time.Second {
			t.Errorf("%d up to %d of %d after %v", a.status, a.revision, after, a.took)
		}
	})
}

// Guarantee: how old a stale list may be counts when it is given, not when the wait began.
func TestSimLongPollThatBecomesStale(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		id := w.Followers()[0]
		before := w.put(id, 3)
		others := []uint64{1, 2, 3}
		w.Net.Isolate(id, append(others[:id-1:id-1], others[id:]...)...)
		waitWith := func(age string) <-chan pollAnswer {
			return w.pollOn(id, fmt.Sprintf("kv?after_revision=%d&consistency=stale&max_age=%s&wait=8s", before, age))
		}
		old, fresh := waitWith("1h"), waitWith("5s")
		if a := <-old; a.status != http.StatusNotModified || a.took < 8*time.Second {
			t.Errorf("of any age: %d after %v", a.status, a.took)
		}
		if a := <-fresh; a.status != http.StatusServiceUnavailable || a.took < 8*time.Second {
			t.Errorf("of 5 s: %d after %v", a.status, a.took)
		}
	})
}

// lateStore lets something happen just behind a look at the state.
type lateStore struct {
	*kvstore
	looks *atomic.Int64
	at    int64 // behind which look
	then  func()
}

func (s lateStore) count() {
	if s.looks.Add(1) == s.at {
		s.then()
	}
}

// Read reads a key as it was before.
func (s lateStore) Read(key string) (*state.Item, uint64, error) {
	defer s.count()
	return s.kvstore.Read(key)
}

// Look looks at the state as it was before.
func (s lateStore) Look(look func(*state.State)) error {
	defer s.count()
	return s.kvstore.Look(look)
}

// Guarantee: a change is never missed, also one that comes between a look at the key and the
// wait for its change: then nothing else would wake who waits.
func TestSimLongPollBetweenLookAndWait(t *testing.T) {
	for at := int64(1); at <= 3; at++ {
		for name, cmd := range map[string][]byte{"put": putOf("k", "new"), "of a missing key": putOf("missing", "new")} {
			simulateWatch(t, 1, nil, func(w *simWatches) {
				w.must(1, putOf("k", "old"))
				srv, looks := w.Nodes[1].Life, new(atomic.Int64)
				srv.api.keys.Store = lateStore{kvstore: srv.kv, looks: looks, at: at, then: func() { w.must(1, cmd) }}
				path, header := "kv/k?wait=30s", []string{"If-None-Match", w.etagOf("k")}
				if name != "put" {
					path, header = "kv/missing?wait=30s", nil
				}
				answer := w.pollOn(1, path, header...)
				time.Sleep(10 * time.Second)
				if looks.Load() < at {
					w.must(1, cmd) // it waits, after fewer looks
				}
				if a := <-answer; a.status != http.StatusOK || a.body != "new" || a.took > 11*time.Second || looks.Load() > at && a.took > time.Second {
					t.Errorf("%s behind look %d of %d: %d %s after %v", name, at, looks.Load(), a.status, a.body, a.took)
				}
			})
		}
	}
}

// Guarantee: nor by a list.
func TestSimLongPollOfAListBetweenLookAndWait(t *testing.T) {
	for at := int64(1); at <= 3; at++ {
		simulateWatch(t, 1, nil, func(w *simWatches) {
			w.must(1, putOf("p/1", "old"))
			srv, looks := w.Nodes[1].Life, new(atomic.Int64)
			lists := api.NewLists(zap.NewNop(), lateStore{kvstore: srv.kv, looks: looks, at: at, then: func() { w.must(1, putOf("p/2", "new")) }}, srv.api.keys.Fresh)
			lists.Hub = srv.hub
			methods := lists.Methods(nil, nil, nil)
			handler := func(rw http.ResponseWriter, r *http.Request) {
				if err := methods.Serve(rw, r); err != nil {
					web.WriteProblem(rw, r, err)
				}
			}
			answer := poll(handler, fmt.Sprintf("kv?prefix=p/&after_revision=%d&wait=30s", w.changes.Revision()))
			time.Sleep(10 * time.Second)
			if looks.Load() < at {
				w.must(1, putOf("p/2", "new"))
			}
			if a := <-answer; a.status != http.StatusOK || !strings.Contains(a.body, "p/2") || a.took > 11*time.Second || looks.Load() > at && a.took > time.Second {
				t.Errorf("behind look %d of %d: %d %s after %v", at, looks.Load(), a.status, a.body, a.took)
			}
		})
	}
}

// Guarantee: of many reads that wait for changes of the same keys on all nodes, each is
// answered within a moment of each change, whenever it comes.
func TestSimLongPollsMissNothing(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		const soon = 100 * time.Millisecond
		w.Leader()
		var mu sync.Mutex
		made := map[uint64]time.Time{} // by revision: when it was acknowledged
		until := time.Now().Add(20 * time.Second)
		var all sync.WaitGroup
		for i := range 3 {
			rng := rand.New(rand.NewPCG(w.Seed, uint64(i)))
			all.Go(func() {
				for time.Now().Before(until) {
					time.Sleep(time.Duration(rng.IntN(40)*rng.IntN(5)) * time.Millisecond)
					res := w.Nodes[uint64(i+1)].Life.proposals.Propose(w.T.Context(), putOf(fmt.Sprint("p/", rng.IntN(4)), w.Value()))
					if res.Err != nil {
						t.Error(res.Err)
					}
					mu.Lock()
					made[res.Revision] = time.Now()
					mu.Unlock()
				}
			})
		}
		for i := range 24 {
			id, key, rng := uint64(i%3+1), fmt.Sprint("p/", i%4), rand.New(rand.NewPCG(w.Seed, uint64(i)+50))
			seen, polls := uint64(0), 0
			all.Go(func() {
				for time.Now().Before(until) {
					began := time.Now()
					path, header, status := fmt.Sprintf("kv/%s?wait=30s", key), []string{"If-None-Match", api.Etag(seen)}, 200
					if i%2 == 0 {
						path, header = fmt.Sprintf("kv?prefix=%s&after_revision=%d&wait=30s", key, seen), nil
					}
					a := <-w.pollOn(id, path, header...)
					now := time.Now()
					if a.status != status {
						if now.Before(until) || a.status != http.StatusNotModified && a.status != http.StatusNotFound {
							t.Errorf("%s: %d %s after %v", path, a.status, a.body, a.took)
						}
						return
					}
					polls++
					next := w.nextOf(key, seen)
					mu.Lock()
					when, known := made[next]
					mu.Unlock()
					if late := now.Sub(when); known && late > soon && now.Sub(began) > soon {
						t.Errorf("%s: revision %d was told %v after it was acknowledged", path, next, late)
					}
					if seen = a.revision; i%2 == 1 {
						seen, _ = strconv.ParseUint(strings.Trim(a.etag, `"`), 10, 64)
					}
					time.Sleep(time.Duration(rng.IntN(3)*rng.IntN(20)) * time.Millisecond)
				}
				if polls < 10 {
					t.Errorf("%d polls were answered: that is no test", polls)
				}
			})
		}
		all.Wait()
	})
}

// nextOf is the first revision behind another at which a key has changed.
func (w *simWatches) nextOf(key string, after uint64) uint64 {
	return w.changes.Next(after, w.changes.Revision()+1, watchtest.Watch{Keys: []string{key}})
}
