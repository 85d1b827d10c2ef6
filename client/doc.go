// Package client answers: how does a Go program use a cluster of raftkv? It stands on the
// standard library alone, and speaks the HTTP API that docs/api.md describes.
//
//	c, err := client.New(client.Config{Endpoints: []string{
//		"http://127.0.0.1:12380", "http://127.0.0.1:22380", "http://127.0.0.1:32380",
//	}})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	if _, err := c.Put(ctx, "greeting", []byte("hello")); err != nil {
//		return err
//	}
//
// One [Client] is enough for a program: it may be used by many goroutines, and keeps its
// connections. It opens as many as there are requests at the same time and keeps them, so
// requests that come one after the other share one.
//
// # How to require it
//
// The module has no public path yet. A program requires it from a checkout:
//
//	go mod edit -require=raftkv@v0.0.0 -replace=raftkv=../raftkv
//
// and imports raftkv/client. Nothing else than the standard library comes with it.
//
// # What a call does
//
// A call asks the endpoint that answered last, at first the first one of the list, so the order
// is a preference: put the nearest first. If that fails, the next one is asked at once, and
// then others, with pauses of 50 ms to a second, drawn at random, and none before the time that it
// has named itself. An endpoint that failed is asked last for a while. So a node that
// stops costs a call a few milliseconds, and one that hangs two seconds. Tried again is what
// another attempt can mend: no connection, no answer, 429, 500, 503, 504, and the errors of
// a proxy; and never what the program asked for wrongly. There is no quota of retries that
// the goroutines of a program could use up for each other.
//
// Each call ends: when its context does, or after Config.Timeout, which is [DefaultTimeout] if
// it is not set. That also holds for a cluster that is not there: an answer "connection
// refused" by all endpoints is not the end, because nodes that are being started say the same. A
// program that wants to know sooner gives a context with a deadline. The error then
// says what each endpoint said last, and not the deadline alone.
//
// Endpoints are those of [Config]. What the cluster tells of its members' addresses is for
// people: the client never asks an address that it was not given, so what reaches it
// depends on nobody's idea of names and networks, and tokens stay where they belong.
//
// # What became of a write
//
// Each write carries an Idempotency-Key, the same in all attempts of the call, so however
// often it is sent it happens once at most. A call that returns no error has happened, and is on
// the disks of a majority. Each error matches exactly one of two, by errors.Is:
//
//   - [ErrNotApplied]: it did not happen, and will not.
//   - [ErrOutcomeUnknown]: it may have happened, or may still, because an attempt got no answer, and
//     no later one could find out. A new call is a new write: it does no harm after Put of the
//     same value, or with IfRevision or IfAbsent; after Add or Append it may be a second time.
//
// A read that fails matches ErrNotApplied. Beside that an error has the stable [Code] of the
// node's answer: errors.Is(err, client.NotFound) is a missing key. [Error] has all the rest.
//
// # Reads
//
// A read reflects every write that was acknowledged anywhere before it began, whichever node
// answers. [Stale], [MinRevision] and [ReadYourWrites] ask for less, and cost the leader nothing.
//
// # Numbers
//
// Times are time.Duration. A revision counts the changes of the store; 0 is none. IDs of
// leases and nodes are never 0.
package client

//go:generate go run gencodes.go
