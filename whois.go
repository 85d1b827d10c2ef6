package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"strconv"
	"sync"
)

// Two names can lead to one node: localhost and 127.0.0.1, or two names of a
// machine. To the membership they are two members, of which one does not exist.
// So each process answers on the peer listener, from the moment that it listens,
// with a number of its own, and two URLs with one number are one node.

// whoPath is the route on the peer listener. A program that does not know it
// answers otherwise, and then nothing is known.
const whoPath = "/raftkv/who"

// processID tells this process from any other that serves peers. It is drawn at
// each start, and never 0.
type processID uint64

func newProcessID() processID { return processID(max(rand.Uint64(), 1)) }

// whoAnswer is what whoPath answers. The number is text, since JSON readers may
// take large ones for approximate.
type whoAnswer struct {
	Process string `json:"process"`
}

func (p processID) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	web.WriteJSON(w, http.StatusOK, whoAnswer{strconv.FormatUint(uint64(p), 16)})
}

// who asks which process a peer URL leads to.
func (c *peerClient) who(ctx context.Context, peerURL string) (processID, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+whoPath, nil)
	if err != nil {
		return 0, err
	}
	var answer whoAnswer
	if err := c.do(req, &answer); err != nil {
		return 0, err
	}
	p, err := strconv.ParseUint(answer.Process, 16, 64)
	if err == nil && p == 0 {
		err = errors.New("no process has the number 0")
	}
	return processID(p), err
}

// processes asks several URLs at once which processes they lead to, and returns
// those that answer in time.
func processes(ctx context.Context, urls []string, who func(context.Context, string) (processID, error)) map[string]processID {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		got = make(map[string]processID)
	)
	for _, u := range urls {
		wg.Go(func() {
			if p, err := who(ctx, u); err == nil {
				mu.Lock()
				got[u] = p
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return got
}

// checkOneNode refuses a URL, for the member id, that leads to another member.
// Nobody has to answer: a member may be added before it runs.
func (ms *members) checkOneNode(ctx context.Context, m membership.Membership, id uint64, peerURL string) error {
	if ms.who == nil {
		return nil
	}
	found := processes(ctx, []string{peerURL}, ms.who)
	process, ok := found[peerURL]
	if !ok {
		return nil
	}
	var urls []string
	for _, mem := range m.Sorted() {
		if mem.ID != id && mem.ID != ms.id {
			urls = append(urls, mem.PeerURL)
		}
	}
	at := processes(ctx, urls, ms.who)
	if me, ok := m.Members[ms.id]; ok && ms.id != id {
		at[me.PeerURL] = ms.process
	}
	for _, mem := range m.Sorted() {
		if mem.ID != id && at[mem.PeerURL] == process {
			return fmt.Errorf("%w: %s leads to member %d, which is at %s", problem.ErrSameNode, peerURL, mem.ID, mem.PeerURL)
		}
	}
	return nil
}

// checkFounders refuses to found a cluster whose list has one node twice, under
// two names. It sees who runs already; the last of them to start sees all.
func checkFounders(ctx context.Context, cfg config.Config, ask *peerClient) error {
	var urls []string
	for _, p := range cfg.Cluster {
		if p.ID != cfg.ID {
			urls = append(urls, p.URL)
		}
	}
	at := processes(ctx, urls, ask.who)
	at[cfg.PeerURL] = ask.process
	seen := make(map[processID]address.Peer)
	for _, p := range cfg.Cluster {
		process, ok := at[p.URL]
		if !ok {
			continue
		}
		if q, twice := seen[process]; twice {
			return fmt.Errorf("--cluster names one node twice: %s and %s lead to the same process; give each member a URL of its own", q.URL, p.URL)
		}
		seen[process] = p
	}
	return nil
}
