package sim

import (
	"fmt"
	"math/rand/v2"
	"raftkv/internal/history"
	"time"
)

// Bounds of a random client of all commands. Histories that are much longer take long to
// judge where many outcomes are unknown.
const (
	commandOps    = 45 // of one client
	commandGroups = 3  // of keys
)

// CommandClient sends all kinds of commands to random nodes of the first three, one after
// the other. grace is how much longer than their time keys may live, as history.Input has
// it.
func (c *Cluster[N]) CommandClient(client int, grace time.Duration) {
	d := commandDraw{rand.New(rand.NewPCG(c.Seed, uint64(client)+100)), c.Value, grace}
	seen := make(map[string]map[string]string) // by group: what the two registers held last
	for range commandOps {
		time.Sleep(d.upTo(100 * time.Millisecond))
		id := d.Uint64N(3) + 1
		group := fmt.Sprintf("g%d/", d.IntN(commandGroups))
		in := d.command(group, seen[group])
		life, up := c.lifeOf(id)
		if !up {
			continue
		}
		res, _ := c.DoOn(client, life, in)
		for in.Once != "" && d.IntN(2) == 0 { // on any node
			if life, up = c.lifeOf(d.Uint64N(3) + 1); up {
				res, _ = c.DoOn(client, life, in)
			}
		}
		out := told(in, res, nil)
		switch {
		case in.Kind == history.Exchange && out.OK:
			seen[group] = map[string]string{in.Key: in.Value, in.Key2: in.Value2}
		case res.Err == nil && (in.Kind == history.Look || in.Kind == history.Exchange):
			seen[group] = make(map[string]string)
			for _, it := range out.Items {
				seen[group][it.Key] = it.Value
			}
		}
	}
}

// commandDraw draws commands.
type commandDraw struct {
	*rand.Rand
	value func() string
	grace time.Duration
}

func (d commandDraw) upTo(t time.Duration) time.Duration { return time.Duration(d.Int64N(int64(t))) }

// command draws a command about keys of a group: the registers a and b, the number n, the
// key t, which goes away by itself, and those below log/, which appends write. seen is what
// the client takes a and b to hold.
func (d commandDraw) command(group string, seen map[string]string) history.Input {
	a, b := group+"a", group+"b"
	in := history.Input{Key: a, Key2: b}
	switch n := d.IntN(20); {
	case n < 5:
		in.Kind, in.Value, in.Expect, in.Value2, in.Expect2 = history.Exchange, d.value(), seen[a], d.value(), seen[b]
		d.named(&in)
		return in
	case n < 7:
		in.Kind = history.Look
		return in
	case n < 8:
		return history.Input{Kind: history.Put, Key: b, Value: d.value()}
	case n < 9:
		return history.Input{Kind: history.Delete, Key: a}
	case n < 12:
		in = history.Input{Kind: history.Add, Key: group + "n", Delta: 1 + d.Int64N(99)}
		if d.IntN(2) == 0 {
			d.timed(&in)
		} else {
			d.named(&in)
		}
		return in
	case n < 14:
		in = history.Input{Kind: history.Put, Key: group + "t", Value: d.value()}
		if d.IntN(4) > 0 { // else it stays, whatever it was to do before
			d.timed(&in)
		}
		return in
	case n < 16:
		return history.Input{Kind: history.Get, Key: group + "t"}
	case n < 18:
		return history.Input{Kind: history.Append, Key: group + "log/", Value: d.value()}
	case n < 19:
		return history.Input{Kind: history.List, Key: group}
	case d.IntN(2) == 0:
		return history.Input{Kind: history.Clear, Key: group}
	}
	return history.Input{Kind: history.Clear, Key: group + "log/"}
}

// named gives a command a name, of three in four.
func (d commandDraw) named(in *history.Input) {
	if d.IntN(4) > 0 {
		in.Once = d.value()
	}
}

// timed gives what a command writes a time to live.
func (d commandDraw) timed(in *history.Input) {
	in.TTL = 200*time.Millisecond + d.upTo(1500*time.Millisecond).Truncate(time.Millisecond)
	in.Grace = d.grace
}
