package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"raftkv/client"
)

// A watch with State tells what is there first, and then what changes.
func ExampleClient_Watch() {
	c := cluster("example/watch/")
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	put(c, "example/watch/a", "1")

	for change, err := range c.Watch(ctx, client.WatchConfig{
		Prefixes: []string{"example/watch/"},
		State:    true,
		Synced: func(revision uint64) {
			fmt.Println("all was told")
			put(c, "example/watch/b", "2")
		},
	}) {
		if err != nil {
			log.Fatal(err)
		}
		for _, e := range change.Events {
			fmt.Printf("%s %s %s\n", e.Type, e.Key, e.Value)
		}
		if change.Revision > 0 {
			break // it could go on behind change.Revision
		}
	}
	// Output:
	// put example/watch/a 1
	// all was told
	// put example/watch/b 2
}

// put writes a key, and returns the revision.
func put(c *client.Client, key, value string) uint64 {
	revision, err := c.Put(context.Background(), key, []byte(value))
	if err != nil {
		log.Fatal(err)
	}
	return revision
}

// A mirror is read without asking anybody, and waits for what was written on request.
func ExampleClient_Mirror() {
	c := cluster("example/mirror/")
	defer c.Close()
	ctx := context.Background()
	put(c, "example/mirror/colour", "red")

	m, err := c.Mirror(ctx, "example/mirror/")
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	revision := put(c, "example/mirror/size", "9")
	if err := m.Wait(ctx, revision); err != nil {
		log.Fatal(err)
	}
	for key, item := range m.All() {
		fmt.Printf("%s=%s\n", key, item.Value)
	}
	// Output:
	// example/mirror/colour=red
	// example/mirror/size=9
}

// A key that is bound to a lease is there for as long as the program is.
func ExampleClient_Lease() {
	c := cluster("example/hosts/")
	defer c.Close()
	ctx := context.Background()

	lease, err := c.Lease(ctx, 10*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Put(ctx, "example/hosts/a", []byte("10.0.0.1"), client.WithLease(lease.ID())); err != nil {
		log.Fatal(err)
	}
	fmt.Println(lease.Context().Err()) // <-lease.Context().Done() would tell that it is lost
	if err := lease.Close(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = c.Get(ctx, "example/hosts/a")
	fmt.Println(errors.Is(err, client.NotFound))
	// Output:
	// <nil>
	// true
}

// The work is done under held, and what it writes on condition of the fencing token, so that
// nothing is written any more once the lock is lost.
func ExampleMutex() {
	c := cluster("example/page")
	defer c.Close()
	ctx := context.Background()

	m := c.Mutex("printer")
	fence, held, err := m.Lock(ctx)
	if err != nil {
		log.Fatal(err)
	}
	res, err := c.Txn().If(m.Guard(fence)).Then(client.PutOp("example/page", []byte("1"))).Commit(held)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("written under the lock:", res.Succeeded)

	_, _, err = c.Mutex("printer").TryLock(ctx)
	fmt.Println("somebody else gets it:", !errors.Is(err, client.ErrHeld))
	if err := m.Unlock(ctx); err != nil {
		log.Fatal(err) // errors.Is(err, client.ErrLeaseLost) if it was lost before
	}
	fmt.Println("held:", held.Err() == nil)
	// Output:
	// written under the lock: true
	// somebody else gets it: false
	// held: false
}

// A candidate says who it is; others read it.
func ExampleElection() {
	c := cluster()
	defer c.Close()
	ctx := context.Background()

	e := c.Election("billing")
	_, leading, err := e.Campaign(ctx, []byte("10.0.0.7:8080"))
	if err != nil {
		log.Fatal(err)
	}
	leader, err := e.Leader(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s leads, as %s says\n", leader.Value, leader.Key)
	if err := e.Proclaim(ctx, []byte("10.0.0.7:9090")); err != nil {
		log.Fatal(err)
	}
	for item, err := range e.Observe(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("now at %s\n", item.Value)
		break
	}
	if err := e.Resign(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("leads:", leading.Err() == nil)
	// Output:
	// 10.0.0.7:8080 leads, as leader/billing says
	// now at 10.0.0.7:9090
	// leads: false
}
