//go:build unix

package process

import (
	"fmt"
	"net/http"
	"raftkv/internal/testkit"
	"strconv"
	"sync"
	"testing"
	"time"
)

// repeater is a client that sends each of its requests to two nodes.
type repeater struct {
	c      *procCluster
	id     int
	client *http.Client
}

// maxTries is how often a request is sent at most: the cluster comes back sooner.
const maxTries = 3000

// add asks two nodes for one more on a counter, under one key, until both have answered,
// and returns the number that both say.
func (r *repeater) add(n int) (number int, err error) {
	var both sync.WaitGroup
	var answers [2]string
	for i := range answers {
		both.Go(func() {
			for try := 0; answers[i] == "" && try < maxTries; try++ {
				node := (r.id+n+i+try)%3 + 1
				reply := procDo(r.client, http.MethodPost, r.c.url(node)+"/v1/add?key=counter", []byte("1"),
					"Idempotency-Key", fmt.Sprintf(`"request %d/%d";keep=60`, r.id, n))
				switch {
				case reply.err != nil || reply.status >= 429: // the node is down, has too much to do, or there is no leader
					time.Sleep(20 * time.Millisecond)
				default:
					answers[i] = fmt.Sprint(reply.status, " ", reply.body)
				}
			}
		})
	}
	both.Wait()
	var status int
	if answers[0] != answers[1] {
		return 0, fmt.Errorf("request %d of client %d: %q and %q", n, r.id, answers[0], answers[1])
	}
	if _, err := fmt.Sscanf(answers[0], "%d %d", &status, &number); err != nil || status != http.StatusOK {
		return 0, fmt.Errorf("request %d of client %d: %q", n, r.id, answers[0])
	}
	return number, nil
}

// Guarantee: a request under an Idempotency-Key that is sent to two nodes at once, while
// the leader is killed over and over, happens once, and both say the same.
func TestSoakProcOnce(t *testing.T) {
	const clients, every = 64, 3 * time.Second
	kills := testkit.SoakOr(1, 30)
	c := newProcCluster(t, 3)
	c.start()
	stop := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]bool{}
	for id := range clients {
		r := &repeater{c, id, procClient(30 * time.Second)}
		all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				number, err := r.add(n)
				mu.Lock()
				if err != nil || seen[number] {
					t.Errorf("the number %d, twice: %v; %v", number, seen[number], err)
				}
				seen[number] = true
				mu.Unlock()
			}
		})
	}
	for range kills {
		time.Sleep(every)
		leader := c.leader()
		c.kill(leader)
		c.start(leader)
	}
	close(stop)
	all.Wait()
	if len(seen) < 100 {
		t.Errorf("only %d requests were made", len(seen))
	}
	for i := 1; i <= 3; i++ {
		c.wantGet(i, "counter", strconv.Itoa(len(seen)))
	}
	t.Logf("%d requests, each sent twice and more, %d kills", len(seen), kills)
}
