package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"raftkv/client"
)

// scratch is a directory of this run of the tests, and what is in it goes with them.
var scratch string

// atEnd is what is to be done when all tests are over.
var atEnd []func()

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "raftkv-client-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	scratch = dir
	defer os.RemoveAll(dir)
	defer func() {
		for _, f := range slices.Backward(atEnd) {
			f()
		}
	}()
	return m.Run()
}

// realNode starts one node of the server, for all tests and examples that need one, and
// returns its endpoint.
var realNode = sync.OnceValues(func() (string, error) {
	bin := os.Getenv("RAFTKV_TEST_BINARY")
	if bin == "" {
		bin = filepath.Join(scratch, "raftkv")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "..")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	var last error
	for try := range 5 { // another process may take the ports meanwhile
		url, err := startNode(bin, filepath.Join(scratch, "node"+strconv.Itoa(try)))
		if err == nil {
			return url, nil
		}
		last = err
	}
	return "", last
})

// startNode starts a node and waits until it is ready.
func startNode(bin, dir string) (string, error) {
	// Outgoing connections have other ports, so that none takes these.
	port := 23000 + 2*rand.IntN(4000)
	for _, p := range []int{port, port + 1} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return "", err
		}
		l.Close()
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return "", err
	}
	defer log.Close()
	cmd := exec.Command(bin, "--cluster", fmt.Sprintf("http://127.0.0.1:%d", port+1), "--port", strconv.Itoa(port), "--data-dir", dir)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "RAFTKV_") })
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, endsWithUs()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the child ends with this thread
		started <- cmd.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return "", err
	}
	atEnd = append(atEnd, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	c, err := client.New(client.Config{Endpoints: []string{url}})
	if err != nil {
		return "", err
	}
	defer c.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = c.Ready(context.Background(), url); err == nil {
			return url, nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(dir + ".log")
			return "", fmt.Errorf("%w\n%s", err, text)
		}
	}
}

// connect returns a client of the real node.
func connect(t testing.TB) *client.Client {
	t.Helper()
	url, err := realNode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Guarantee: each call does what it says, on a real node.
func TestRealCalls(t *testing.T) {
	t.Parallel()
	c, ctx := connect(t), t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"real/plain", "real//double", "real/../up", "/real", "real/", ".", "..", "real/ä ?&=+%", "real/" + strings.Repeat("k", 2000), "real/x y"} {
		for _, value := range []string{"", "text", "\x00\xff", strings.Repeat("v", 100_000)} {
			r, err := c.Put(ctx, key, []byte(value))
			must(err)
			item, err := c.Get(ctx, key, client.ReadYourWrites())
			must(err)
			if item.Key != key || string(item.Value) != value || item.Value == nil || item.ModRevision != r || c.Revision() < r {
				t.Fatalf("%q: %.100v, written at %d", key, item, r)
			}
		}
		value, r, err := c.Value(ctx, key)
		must(err)
		if len(value) != 100_000 || r == 0 {
			t.Fatalf("%q: %d bytes at %d", key, len(value), r)
		}
		gone, err := c.Delete(ctx, key)
		must(err)
		if again, err := c.Delete(ctx, key); !gone || again || err != nil {
			t.Fatalf("%q: deleted %v, again %v, %v", key, gone, again, err)
		}
		if _, err := c.Get(ctx, key); !errors.Is(err, client.NotFound) || !errors.Is(err, client.ErrNotApplied) {
			t.Fatalf("%q: %v", key, err)
		}
	}

	r, err := c.Put(ctx, "real/if", []byte("a"), client.IfAbsent())
	must(err)
	_, err = c.Put(ctx, "real/if", []byte("b"), client.IfAbsent())
	if e := (*client.Error)(nil); !errors.As(err, &e) || !errors.Is(err, client.PreconditionFailed) || e.Revision != r {
		t.Fatalf("%v", err)
	}
	_, err = c.Put(ctx, "real/if", []byte("b"), client.IfRevision(r), client.TTL(time.Minute))
	must(err)
	item, err := c.Get(ctx, "real/if")
	must(err)
	if item.Version != 2 || item.CreateRevision != r || item.ExpiresIn <= 50*time.Second || item.ExpiresIn > time.Minute {
		t.Fatalf("%+v", item)
	}
	if _, err = c.Delete(ctx, "real/none", client.IfPresent()); !errors.Is(err, client.PreconditionFailed) {
		t.Fatal(err)
	}

	for want := int64(5); want <= 15; want += 5 {
		if n, err := c.Add(ctx, "real/n", 5); n != want || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err = c.Add(ctx, "real/if", 5); !errors.Is(err, client.NotANumber) {
		t.Fatal(err)
	}
	one, _, err := c.Append(ctx, "real/q ä/", []byte("1"))
	must(err)
	two, _, err := c.Append(ctx, "real/q ä/", []byte("2"), client.TTL(time.Minute))
	must(err)
	if one >= two || !strings.HasPrefix(one, "real/q ä/") {
		t.Fatal(one, two)
	}
	if n, err := c.DeletePrefix(ctx, "real/q ä/"); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if _, err = c.DeletePrefix(ctx, ""); !errors.Is(err, client.BadRequest) {
		t.Fatal(err)
	}

	id, err := c.GrantLease(ctx, time.Minute)
	must(err)
	_, err = c.Put(ctx, "real/leased", nil, client.WithLease(id))
	must(err)
	if d, err := c.KeepLease(ctx, id); d != time.Minute || err != nil {
		t.Fatal(d, err)
	}
	if l, err := c.LeaseInfo(ctx, id); l.ID != id || l.TTL != time.Minute || !slices.Equal(l.Keys, []string{"real/leased"}) || err != nil {
		t.Fatal(l, err)
	}
	found := false
	for l, err := range c.Leases(ctx) {
		must(err)
		found = found || l.ID == id && l.KeyCount == 1
	}
	if !found {
		t.Fatal("the lease is not listed")
	}
	must(c.RevokeLease(ctx, id))
	if err := c.RevokeLease(ctx, id); !errors.Is(err, client.NoSuchLease) {
		t.Fatal(err)
	}

	m, err := c.Members(ctx)
	must(err)
	s, err := c.Status(ctx, c.Endpoints()[0])
	must(err)
	if len(m.Members) != 1 || m.Members[0].ID != s.ID || s.Role != "leader" {
		t.Fatal(m, s)
	}
	if leader, err := c.MoveLeader(ctx, s.ID); leader != s.ID || err != nil {
		t.Fatal(leader, err)
	}
	info, err := c.Backup(ctx, io.Discard)
	must(err)
	if info.Bytes == 0 {
		t.Fatal(info)
	}
}

// Guarantee: lists have each key once and in order, in pages, as a stream, in groups.
func TestRealLists(t *testing.T) {
	t.Parallel()
	c, ctx := connect(t), t.Context()
	const n = 2100
	var want []string
	for i := 0; i < n; i += 100 {
		txn := c.Txn()
		for j := i; j < i+100; j++ {
			key := fmt.Sprintf("lists/%c/%05d", 'a'+rune(j%3), j)
			want = append(want, key)
			txn.Then(client.PutOp(key, []byte{0xff, byte(j)}))
		}
		if _, err := txn.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	collect := func(opts ...client.ListOption) (keys []string) {
		t.Helper()
		for item, err := range c.List(ctx, "lists/", opts...) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, item.Key)
		}
		return keys
	}
	backward := slices.Clone(want)
	slices.Reverse(backward)
	for _, tt := range []struct {
		name string
		opts []client.ListOption
		want []string
	}{
		{"pages", nil, want},
		{"stream", []client.ListOption{client.OneRevision()}, want},
		{"backward", []client.ListOption{client.Reverse(), client.KeysOnly()}, backward},
		{"limit", []client.ListOption{client.Limit(1500), client.Stale()}, want[:1500]},
		{"limit of a stream", []client.ListOption{client.Limit(3), client.OneRevision()}, want[:3]},
		{"range", []client.ListOption{client.Start(want[10]), client.End(want[20]), client.ReadYourWrites()}, want[10:20]},
		{"behind", []client.ListOption{client.StartAfter(want[n-3])}, want[n-2:]},
	} {
		if got := collect(tt.opts...); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %d keys, not %d", tt.name, len(got), len(tt.want))
		}
	}
	if got, err := c.Count(ctx, "lists/"); got != n || err != nil {
		t.Error(got, err)
	}
	var names []string
	for e, err := range c.Groups(ctx, "lists/", "/", client.Reverse()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Group)
	}
	if !slices.Equal(names, []string{"lists/c/", "lists/b/", "lists/a/"}) {
		t.Error(names)
	}
}

// Guarantee: a transaction does what it says, all of it or nothing.
func TestRealTxn(t *testing.T) {
	t.Parallel()
	c, ctx := connect(t), t.Context()
	r, err := c.Put(ctx, "txn/a", []byte("\xff"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Txn().
		If(client.Key("txn/a").ModRevision(r).Value([]byte("\xff")), client.Key("txn/b").Missing(), client.Prefix("txn/none/").Missing(), client.Prefix("txn/").Exists()).
		Then(client.PutOp("txn/b", nil, client.TTL(time.Minute)), client.DeleteOp("txn/a"), client.AddOp("txn/n", 7), client.AppendOp("txn/q/", []byte("x")),
			client.GetOp("txn/a"), client.GetOp("txn/b"), client.ListOp("txn/q/", client.Limit(1))).
		Else(client.GetOp("txn/a")).
		Commit(ctx)
	if err != nil || !res.Succeeded || len(res.Results) != 7 {
		t.Fatalf("%+v, %v", res, err)
	}
	at := res.Results
	if at[0].Key != "txn/b" || at[0].Revision != res.Revision || !at[1].Deleted || at[2].Number != 7 || at[3].Key == "" || at[4].Item != nil ||
		at[5].Item == nil || at[5].Item.ExpiresIn == 0 || len(at[6].Items) != 1 || string(at[6].Items[0].Value) != "x" {
		t.Fatalf("%+v", res)
	}
	res, err = c.Txn().If(client.Key("txn/b").Value(nil), client.Key("txn/b").Version(9)).Else(client.GetOp("txn/b")).Commit(ctx, client.Stale())
	if err != nil || res.Succeeded || len(res.Results) != 1 || res.Results[0].Item == nil {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, err = c.Txn().Then(client.PutOp("txn/c", nil), client.AddOp("txn/b", 1)).Commit(ctx); !errors.Is(err, client.NotANumber) || !errors.Is(err, client.ErrNotApplied) {
		t.Fatal(err)
	}
	if _, err = c.Get(ctx, "txn/c"); !errors.Is(err, client.NotFound) {
		t.Fatal(err)
	}
}

// Guarantee: of many who update a key at the same time none is lost.
func TestRealUpdate(t *testing.T) {
	t.Parallel()
	c, ctx := connect(t), t.Context()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				_, err := c.Update(ctx, "update/n", func(old []byte, exists bool) ([]byte, error) {
					if exists != (len(old) > 0) {
						t.Errorf("exists is %v, the value %q", exists, old)
					}
					return append(old, '.'), nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if item, err := c.Get(ctx, "update/n"); len(item.Value) != 40 || err != nil {
		t.Error(item, err)
	}
}

// BenchmarkReads compares the two forms of reading a key.
func BenchmarkReads(b *testing.B) {
	c, ctx := connect(b), b.Context()
	for _, size := range []int{100, 10_000, 1_000_000} {
		if _, err := c.Put(ctx, "bench", []byte(strings.Repeat("v", size))); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("Get/%d", size), func(b *testing.B) {
			for b.Loop() {
				if _, err := c.Get(ctx, "bench"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Value/%d", size), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := c.Value(ctx, "bench"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
