package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"strings"
	"time"

	"raftkv/client"
)

// cluster returns a client for an example. It deletes what an example before it left.
func cluster(keys ...string) *client.Client {
	url, err := realNode()
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.New(client.Config{Endpoints: []string{url}})
	if err != nil {
		log.Fatal(err)
	}
	for _, prefix := range keys {
		if _, err := c.DeletePrefix(context.Background(), prefix); err != nil {
			log.Fatal(err)
		}
	}
	return c
}

func Example() {
	ctx := context.Background()
	c := cluster("example/greeting") // client.New(client.Config{Endpoints: …})
	defer c.Close()

	if _, err := c.Put(ctx, "example/greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	item, err := c.Get(ctx, "example/greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, version %d\n", item.Value, item.Version)
	// Output: hello, version 1
}

// A missing key and a failed call are told apart by errors.Is, and so is what became of a
// write.
func ExampleError() {
	ctx := context.Background()
	c := cluster("example/none")
	defer c.Close()

	_, err := c.Get(ctx, "example/none")
	fmt.Println(errors.Is(err, client.NotFound))

	_, err = c.Put(ctx, "example/none", nil, client.IfRevision(7))
	if e := (*client.Error)(nil); errors.As(err, &e) && e.Code == client.PreconditionFailed {
		fmt.Println("the revision is", e.Revision)
	}
	switch {
	case errors.Is(err, client.ErrNotApplied):
		fmt.Println("it did not happen")
	case errors.Is(err, client.ErrOutcomeUnknown):
		fmt.Println("it may have happened")
	}
	// Output:
	// true
	// the revision is 0
	// it did not happen
}

func ExampleNew() {
	c, err := client.New(client.Config{
		Endpoints:   []string{"https://kv1.example:12380", "https://kv2.example:12380", "https://kv3.example:12380"},
		TLS:         client.TLSFiles("/etc/billing/ca.pem", "", ""),
		TokenSource: client.TokenFile("/etc/billing/token"),
		Timeout:     5 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Println(len(c.Endpoints()), "endpoints")
	// Output: 3 endpoints
}

// Of many who create a key at the same time one succeeds.
func ExampleIfAbsent() {
	ctx := context.Background()
	c := cluster("example/owner")
	defer c.Close()

	for _, who := range []string{"alice", "bob"} {
		_, err := c.Put(ctx, "example/owner", []byte(who), client.IfAbsent())
		switch {
		case err == nil:
			fmt.Println(who, "owns it")
		case errors.Is(err, client.PreconditionFailed):
			fmt.Println(who, "came too late")
		default:
			log.Fatal(err)
		}
	}
	// Output:
	// alice owns it
	// bob came too late
}

func ExampleClient_Delete() {
	ctx := context.Background()
	c := cluster("example/short")
	defer c.Close()

	if _, err := c.Put(ctx, "example/short", nil, client.TTL(time.Hour)); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		deleted, err := c.Delete(ctx, "example/short")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(deleted)
	}
	// Output:
	// true
	// false
}

// A rate limiter: the first request of a minute makes the counter, the others keep its time.
func ExampleClient_Add() {
	ctx := context.Background()
	c := cluster("example/rate/")
	defer c.Close()

	for range 3 {
		n, err := c.Add(ctx, "example/rate/alice", 1, client.TTL(time.Minute))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(n, n <= 2)
	}
	// Output:
	// 1 true
	// 2 true
	// 3 false
}

// A queue: who appends need not agree on names, and who takes deletes what it has read.
func ExampleClient_Append() {
	ctx := context.Background()
	c := cluster("example/jobs/")
	defer c.Close()

	for _, job := range []string{"wash", "dry"} {
		if _, _, err := c.Append(ctx, "example/jobs/", []byte(job)); err != nil {
			log.Fatal(err)
		}
	}
	for job, err := range c.List(ctx, "example/jobs/") {
		if err != nil {
			log.Fatal(err)
		}
		_, err := c.Delete(ctx, job.Key, client.IfRevision(job.ModRevision))
		if errors.Is(err, client.PreconditionFailed) {
			continue // somebody else took it
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", job.Value)
	}
	// Output:
	// wash
	// dry
}

func ExampleClient_List() {
	ctx := context.Background()
	c := cluster("example/config/")
	defer c.Close()

	for _, key := range []string{"eu/a", "eu/b", "us/c"} {
		if _, err := c.Put(ctx, "example/config/"+key, []byte("in "+key)); err != nil {
			log.Fatal(err)
		}
	}
	for item, err := range c.List(ctx, "example/config/", client.Reverse(), client.Limit(2)) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", item.Key, item.Value)
	}
	// Output:
	// example/config/us/c: in us/c
	// example/config/eu/b: in eu/b
}

func ExampleClient_Groups() {
	ctx := context.Background()
	c := cluster("example/tree/")
	defer c.Close()

	for _, key := range []string{"readme", "eu/a", "eu/b", "us/c"} {
		if _, err := c.Put(ctx, "example/tree/"+key, nil); err != nil {
			log.Fatal(err)
		}
	}
	for entry, err := range c.Groups(ctx, "example/tree/", "/") {
		if err != nil {
			log.Fatal(err)
		}
		if entry.Item != nil {
			fmt.Println("key  ", entry.Item.Key)
		} else {
			fmt.Println("group", entry.Group)
		}
	}
	// Output:
	// group example/tree/eu/
	// key   example/tree/readme
	// group example/tree/us/
}

// A job and its claim go together, if the claim still stands.
func ExampleClient_Txn() {
	ctx := context.Background()
	c := cluster("example/txn/")
	defer c.Close()

	claim, err := c.Put(ctx, "example/txn/claim", []byte("worker 1"))
	if err != nil {
		log.Fatal(err)
	}
	res, err := c.Txn().
		If(client.Key("example/txn/claim").ModRevision(claim)).
		Then(client.DeleteOp("example/txn/claim"), client.AddOp("example/txn/done", 1)).
		Else(client.GetOp("example/txn/claim")).
		Commit(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.Succeeded, res.Results[1].Number)
	// Output: true 1
}

// Update reads, changes and writes, and begins again if somebody else was faster.
func ExampleClient_Update() {
	ctx := context.Background()
	c := cluster("example/replicas")
	defer c.Close()

	for range 3 {
		_, err := c.Update(ctx, "example/replicas", func(old []byte, exists bool) ([]byte, error) {
			if !exists {
				return []byte("1"), nil
			}
			n, err := strconv.Atoi(string(old))
			if err != nil {
				return nil, err
			}
			if n == 2 {
				return nil, client.ErrKeep
			}
			return strconv.AppendInt(nil, int64(n+1), 10), nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	item, err := c.Get(ctx, "example/replicas")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", item.Value)
	// Output: 2
}

// A client reads what it has written from any node, and the leader has nothing to do with it.
func ExampleReadYourWrites() {
	ctx := context.Background()
	c := cluster("example/mine")
	defer c.Close()

	if _, err := c.Put(ctx, "example/mine", []byte("new")); err != nil {
		log.Fatal(err)
	}
	item, err := c.Get(ctx, "example/mine", client.ReadYourWrites(), client.MaxAge(10*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", item.Value)
	// Output: new
}

// Keys under a lease go away with it.
func ExampleClient_GrantLease() {
	ctx := context.Background()
	c := cluster("example/hosts/")
	defer c.Close()

	lease, err := c.GrantLease(ctx, 30*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Put(ctx, "example/hosts/web1", []byte("10.0.0.1"), client.WithLease(lease)); err != nil {
		log.Fatal(err)
	}
	if err := c.RevokeLease(ctx, lease); err != nil {
		log.Fatal(err)
	}
	n, err := c.Count(ctx, "example/hosts/")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n)
	// Output: 0
}

func ExampleClient_Members() {
	ctx := context.Background()
	c := cluster()
	defer c.Close()

	members, err := c.Members(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range members.Members {
		fmt.Println(m.ID, m.Role, m.Leader)
	}
	// Output: 1 voter true
}

// A program that backs up writes into a new file, and renames it once there was no error.
func ExampleClient_Backup() {
	ctx := context.Background()
	c := cluster()
	defer c.Close()

	var file strings.Builder
	info, err := c.Backup(ctx, &file)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Bytes == int64(file.Len()))
	// Output: true
}
