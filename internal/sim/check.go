package sim

import (
	"errors"
	"fmt"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"strconv"
	"strings"

	"github.com/anishathalye/porcupine"
)

// checker is the client that reads in the global check.
const checker = 1000

// hostileKinds returns the refusals that no cluster without a stranger at its peer
// ports has, however bad its network is.
func hostileKinds() []refusal.Kind {
	return []refusal.Kind{refusal.RefusedAddress, refusal.RefusedTerm, refusal.RefusedMalformed, refusal.RefusedSize, refusal.RefusedBusy, refusal.RefusedRoom}
}

// Check is the end of every test: the network is healed and every node that
// belongs to the cluster is started. Then all converge to the same state at the
// same index, and the history must be linearizable, which includes that every
// acknowledged write is there.
func (c *Cluster[N]) Check() {
	c.T.Helper()
	c.Net.Heal()
	c.assemble()
	if len(c.Up()) == 0 {
		return
	}
	leader := c.Leader()
	c.Put(leader, "check", c.Value())
	c.readAll()
	c.Await("convergence", func() bool {
		hashes := make(map[string]bool)
		for _, id := range c.Up() {
			h, index := c.Nodes[id].Life.Hash()
			hashes[h+strconv.FormatUint(index, 10)] = true
		}
		return len(hashes) == 1
	})
	c.Net.checkLeaders()
	c.checkRefusals()
	for _, id := range c.Up() {
		if err := c.Nodes[id].Life.Fault(); err != nil {
			c.T.Errorf("node %d: %v", id, err)
		}
		c.undoubted(c.Nodes[id])
	}
	c.judge()
	for _, id := range c.Up() {
		if p := c.Nodes[id]; p.err != nil {
			c.T.Errorf("node %d: %v", id, p.err)
		}
	}
}

// judge checks that the history is linearizable, and shows the part that is not.
func (c *Cluster[N]) judge() {
	c.T.Helper()
	for _, part := range history.Model.Partition(c.History) {
		if porcupine.CheckOperations(history.Model, part) {
			continue
		}
		var b strings.Builder
		for _, op := range part {
			fmt.Fprintf(&b, "\n%d to %d client %d: %s", op.Call, op.Return, op.ClientId, history.Model.DescribeOperation(op.Input, op.Output))
		}
		c.T.Errorf("the history of %d operations is not linearizable in these %d:%s", len(c.History), len(part), b.String())
	}
}

// assemble starts who belongs to the cluster, and sees those end who do not.
func (c *Cluster[N]) assemble() {
	c.T.Helper()
	for id, p := range c.Nodes {
		switch {
		case !p.Up() && !c.gone(id):
			c.Start(id)
		case p.Up() && c.gone(id):
			if err := c.Ended(id); !errors.Is(err, problem.ErrRemoved) {
				c.T.Errorf("removed node %d ended with: %v", id, err)
			}
		}
	}
}

// readAll reads every key of the history on every node, and those of a group together.
func (c *Cluster[N]) readAll() {
	reads := make(map[string]history.Input)
	for _, op := range c.History {
		group := op.Input.(history.Input).Group()
		reads[group] = history.Input{Kind: history.Get, Key: group}
		if strings.HasSuffix(group, "/") {
			reads[group] = history.Input{Kind: history.List, Key: group}
		}
	}
	for group, read := range reads {
		for _, id := range c.Up() {
			c.Await("a read of "+group, func() bool {
				res, _ := c.Do(checker, id, read)
				return res.Err == nil
			})
		}
	}
}

// gone reports whether a node was removed, as any running node knows.
func (c *Cluster[N]) gone(id uint64) bool {
	for _, up := range c.Up() {
		if c.Nodes[up].Life.IsRemoved(id) {
			return true
		}
	}
	return false
}

// undoubted checks that a life saw no message that contradicts its log, unless
// the test makes such messages.
func (c *Cluster[N]) undoubted(p *Place[N]) {
	if doubts := p.Life.Refused(refusal.RefusedContradiction); doubts > 0 && !c.Doubts && !c.Attacked {
		c.T.Errorf("node %d doubted %d messages of a healthy cluster", p.ID, doubts)
	}
}

// noteRefusals adds up what a node refused in the life that has ended.
func (c *Cluster[N]) noteRefusals(life N) {
	for _, kind := range append(hostileKinds(), refusal.RefusedSender) {
		c.refused[kind] += life.Refused(kind)
	}
}

// Refusals returns how much all nodes have refused for one reason. Of lives that have
// ended it knows what is hostile, and unknown senders.
func (c *Cluster[N]) Refusals(kind refusal.Kind) uint64 {
	sum := c.refused[kind]
	for _, id := range c.Up() {
		sum += c.Nodes[id].Life.Refused(kind)
	}
	return sum
}

// checkRefusals reports refusals of what nodes themselves have sent.
func (c *Cluster[N]) checkRefusals() {
	c.T.Helper()
	for _, kind := range hostileKinds() {
		if n := c.Refusals(kind); n > 0 && !c.Attacked {
			c.T.Errorf("%d messages between nodes were refused: %s", n, kind)
		}
	}
}
