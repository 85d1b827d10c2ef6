package sim

import (
	"fmt"
	"math/rand/v2"
	"raftkv/internal/history"
	"slices"
	"sync"
	"time"
)

// clientOps are the operations of one random client.
const clientOps = 60

// RandomClient sends requests to random nodes of the first three, one after the
// other.
func (c *Cluster[N]) RandomClient(client int) {
	rng := rand.New(rand.NewPCG(c.Seed, uint64(client)+100))
	for range clientOps {
		time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
		id := rng.Uint64N(3) + 1
		in := history.Input{Key: fmt.Sprintf("k%d", rng.IntN(3)), Value: c.Value()}
		switch n := rng.IntN(10); {
		case n < 4:
			in.Kind = history.Get
		case n < 8:
			in.Kind = history.Put
		case n < 9:
			in.Kind = history.Create
		default:
			in.Kind = history.Delete
		}
		if life, up := c.lifeOf(id); up {
			c.DoOn(client, life, in)
		}
	}
}

// lifeOf returns a node's life, between its changes.
func (c *Cluster[N]) lifeOf(id uint64) (life N, up bool) {
	c.Lives.Lock()
	defer c.Lives.Unlock()
	return c.Nodes[id].Life, c.Nodes[id].Up()
}

// RandomFaults makes trouble for the first three nodes until done is closed.
func (c *Cluster[N]) RandomFaults(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(c.Rng.Int64N(int64(time.Second)))):
		}
		id := c.Rng.Uint64N(3) + 1
		others := slices.DeleteFunc([]uint64{1, 2, 3}, func(o uint64) bool { return o == id })
		switch c.Rng.IntN(8) {
		case 0:
			c.Net.Isolate(id, others...)
		case 1:
			c.Net.Sever(id, others[c.Rng.IntN(2)])
		case 2:
			c.Net.Disturb(0.2*c.Rng.Float64(), 0.3*c.Rng.Float64(), 100*time.Millisecond)
		case 3, 4:
			c.Net.Heal()
		case 5, 6:
			c.Restart(id)
		case 7:
			for _, id := range []uint64{1, 2, 3} {
				c.Restart(id)
			}
		}
	}
}

// Restart crashes a node and starts it again, in a turn of Lives.
func (c *Cluster[N]) Restart(id uint64) {
	c.Lives.Lock()
	defer c.Lives.Unlock()
	c.Crash(id)
	c.Start(id)
}

// Load is clients that write and read on any node, and go to the next when one
// fails them. A request that fails for ten seconds fails the test.
type Load[N Node] struct {
	c    *Cluster[N]
	stop chan struct{}
	wg   sync.WaitGroup
}

// StartLoad starts so many clients.
func (c *Cluster[N]) StartLoad(clients int) *Load[N] {
	l := &Load[N]{c: c, stop: make(chan struct{})}
	for i := range clients {
		l.wg.Go(func() { l.run(i) })
	}
	return l
}

func (l *Load[N]) run(client int) {
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		in := history.Input{Kind: history.Put, Key: fmt.Sprint("k", client%4), Value: l.c.Value()}
		if n%3 == 0 {
			in = history.Input{Kind: history.Get, Key: in.Key}
		}
		if err := l.request(client, n, in); err != nil {
			l.c.T.Errorf("client %d, request %d: %v", client, n, err)
		}
	}
}

func (l *Load[N]) request(client, n int, in history.Input) (err error) {
	deadline := time.Now().Add(10 * time.Second)
	for try := client + n; time.Now().Before(deadline); try++ {
		l.c.Lives.Lock()
		up := l.c.Up()
		life := l.c.Nodes[up[try%len(up)]].Life
		l.c.Lives.Unlock()
		res, _ := l.c.DoOn(client, life, in)
		if err = res.Err; err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// Finish ends the load, when the requests under way have their answers.
func (l *Load[N]) Finish() {
	close(l.stop)
	l.wg.Wait()
}
