package peerclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/web"
	"strconv"
	"sync"
)

// Two names can lead to one node: localhost and 127.0.0.1, or two names of a
// machine. To the membership they are two members, of which one does not exist.
// So each process answers on the peer listener, from the moment that it listens,
// with a number of its own, and two URLs with one number are one node.

// WhoPath is the route on the peer listener. A program that does not know it
// answers otherwise, and then nothing is known.
const WhoPath = "/raftkv/who"

// Process tells this process from any other that serves peers. It is drawn at
// each start, and never 0.
type Process uint64

func newProcess() Process { return Process(max(rand.Uint64(), 1)) }

// whoAnswer is what WhoPath answers. The number is text, since JSON readers may
// take large ones for approximate.
type whoAnswer struct {
	Process  string `json:"process"`
	Founders string `json:"founders,omitempty"` // see SayFounders
}

// ServeHTTP answers WhoPath with the number of this process, in hexadecimal.
func (c *Client) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	answer := whoAnswer{Process: strconv.FormatUint(uint64(c.Process), 16)}
	if said := c.founders.Load(); said != nil {
		answer.Founders = *said
	}
	web.WriteJSON(w, http.StatusOK, answer)
}

// SayFounders has this process answer, as long as it lives, that it founds a cluster with these
// members and no others, in the form of address.FormatPeers.
func (c *Client) SayFounders(list string) { c.founders.Store(&list) }

// Who asks which process a peer URL leads to.
func (c *Client) Who(ctx context.Context, peerURL string) (Process, error) {
	p, _, err := c.WhoFounds(ctx, peerURL)
	return p, err
}

// WhoFounds asks which process a peer URL leads to, and with whom it founds a cluster; empty
// if it does not, or not yet.
func (c *Client) WhoFounds(ctx context.Context, peerURL string) (p Process, founders string, err error) {
	var answer whoAnswer
	if err := c.Get(ctx, peerURL+WhoPath, 0, &answer); err != nil {
		return 0, "", err
	}
	number, err := strconv.ParseUint(answer.Process, 16, 64)
	if err == nil && number == 0 {
		err = errors.New("no process has the number 0")
	}
	return Process(number), answer.Founders, err
}

// Processes asks several URLs at once which processes they lead to, and returns
// those that answer in time.
func Processes(ctx context.Context, urls []string, who func(context.Context, string) (Process, error)) map[string]Process {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		got = make(map[string]Process)
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
