// Package api answers: what do the HTTP resources that hold data ask and say? They are
// keys and lists of them, one file each. Freshness, which all reads share, says
// how fresh an answer is, Admission what is let into the log. Each resource is told what
// it needs by the node and knows nothing else of it.
package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"raftkv/internal/audit"
	"raftkv/internal/config"
	"raftkv/internal/lease"
	"raftkv/internal/limits"
	"raftkv/internal/list"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Keys serves requests for keys. What such a request means and what its answer is
// stands here alone, however the request came.
type Keys struct {
	Store    keyStore
	Fresh    *Freshness
	Writes   writer
	MaxValue int64      // bytes
	Hub      *watch.Hub // tells reads that wait
	// Look lends the state, likewise.
	Look func(look func(*state.State)) error
	Admission
}

// keyStore is what Keys needs of the state.
type keyStore interface {
	// Read returns a key's item, nil if there is none, and the store's revision; an
	// error where the state is not to be read.
	Read(key string) (it *state.Item, revision uint64, err error)
	// Get is Read of whatever there is.
	Get(key string) (it *state.Item, revision uint64)
	// Left returns what an item has left of its time.
	Left(it *state.Item) state.Left
}

// writer hands commands to the cluster; see rounds.Proposer.
type writer interface {
	Start(cmd []byte, w rounds.Waiter) (giveUp func(), err error)
}

// KeyRequest is a request for a key on its way to its answer. Of its methods, Check
// comes first, then Start and, where that says so, Finish.
type KeyRequest struct {
	Method      string // GET, HEAD, PUT or DELETE
	Key         string
	Long        bool   // it came as /v1/kv/KEY
	Query       string // as it stands in the URL, without its question mark
	IfMatch     []string
	IfNoneMatch []string
	// IdempotencyKey are the lines of that header.
	IdempotencyKey []string
	Partial        bool  // has a Content-Range
	JSON           bool  // a read takes the item in JSON, and nothing else
	Length         int64 // of the body; -1: unknown
	// Caller is who asks: leases and idempotency keys are theirs.
	Caller *rights.Caller

	// Client and Authorization are what Caller is known by, where that is yet to be done.
	Client        *web.Client
	Authorization string // as the field stands in the request; "" is none

	// Still returns nil if the caller may do what is needed by the rights that are in force now.
	// It is asked once a read has waited; nil: what Caller may is not asked again.
	Still func(rights.Need) error

	// Command gets the value of a PUT appended, between Check and Start.
	Command []byte
	// Answer is the request's once Check or Start say so, or Finish was called.
	Answer Answer

	size    int           // of the command without the value
	inner   int           // where the command begins, behind what its Idempotency-Key makes of it
	once    requestKey    // of a write
	want    Wanted        // of a read
	wait    time.Duration // for which an answer may be delayed
	text    bool          // of a read: the value is to be shown
	form    list.Form     // of the item
	pre     preconditions
	cond    state.Condition
	life    state.Lifetime // of the key, once it is written
	refused error          // why no state of the key can fulfil the condition of a write
	giveUp  func()         // ends the wait of a write
	release func()         // gives back what the write holds of the quota, or ends what a read waits for
}

// Answer is what is to be sent for a request.
type Answer struct {
	Status int
	Err    error // if there is one, the answer is a problem, beside the fields
	Close  bool  // with Err: the connection ends behind it
	Body   []byte
	fields [10]web.Field
	n      int
}

// Fields returns the header, without what every answer has, a problem's own and
// Content-Length.
func (a *Answer) Fields() []web.Field { return a.fields[:a.n] }

func (a *Answer) add(name, value string) {
	a.fields[a.n] = web.Field{Name: name, Value: value}
	a.n++
}

// reads reports whether the request changes nothing.
func (q *KeyRequest) reads() bool { return q.Method == http.MethodGet || q.Method == http.MethodHead }

// need is the right that the request takes. What the answer to a write says of the key, its
// revision and whether it is there, comes with the right to write it.
func (q *KeyRequest) need() rights.Need {
	if q.reads() {
		return rights.OnKey(rights.Read, q.Key)
	}
	return rights.OnKey(rights.Write, q.Key)
}

// still returns nil if the caller may do it also now, after the request has waited.
func (q *KeyRequest) still() error {
	if q.Still == nil {
		return nil
	}
	return q.Still(q.need())
}

// fail makes the answer an error. It returns false: there is nothing to wait for.
func (q *KeyRequest) fail(err error) bool {
	q.Answer.Err = err
	return false
}

// Record returns what is to be written of a request that took so long, but what came of it.
func (q *KeyRequest) Record(took time.Duration) audit.Record {
	r := audit.Record{Name: q.Caller.Name(), Method: q.Method, Route: "kv", Keys: []string{q.Key}, Took: took}
	if q.Client != nil {
		r.From = q.Client.Addr
	}
	for _, f := range q.Answer.Fields() {
		if f.Name == "Raftkv-Revision" {
			r.Revision, _ = strconv.ParseUint(f.Value, 10, 64) // it is one
		}
	}
	return r
}

// KeyOf returns the key that a request is about, if it is about one, and whether it
// comes in the long form. The path is without its escapes and its first slash. In the
// short form POST and DELETE are about nodes.
func KeyOf(method, path string) (key string, long, ok bool) {
	plain := method == http.MethodGet || method == http.MethodHead || method == http.MethodPut
	if key, long := strings.CutPrefix(path, "v1/kv/"); long {
		return key, true, plain || method == http.MethodDelete
	}
	first, _, _ := strings.Cut(path, "/")
	return path, false, plain && path != "" && !web.Reserved(first)
}

// CheckKey returns problem.ErrBadRequest if there can be no such key.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: the key is empty; GET /v1/kv?prefix=PREFIX lists keys", problem.ErrBadRequest)
	case len(key) > config.MaxKeyBytes:
		return fmt.Errorf("%w: the key has %d bytes, %d are allowed", problem.ErrBadRequest, len(key), config.MaxKeyBytes)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: the key is not valid UTF-8", problem.ErrBadRequest)
	case strings.IndexByte(key, 0) >= 0:
		return fmt.Errorf("%w: the key has a NUL byte", problem.ErrBadRequest)
	}
	return nil
}

// Check reads what the head of a request asks for. False: there is an answer already.
func (k *Keys) Check(q *KeyRequest) bool {
	if err := k.check(q); err != nil {
		return q.fail(err)
	}
	return true
}

func (k *Keys) check(q *KeyRequest) (err error) {
	if err := CheckKey(q.Key); err != nil {
		return err
	}
	if err := q.Caller.May(q.need()); err != nil {
		return err
	}
	if q.once, err = parseRequestKey(q.IdempotencyKey); err != nil {
		return err
	}
	q.once.by(q.Caller)
	if q.once.set && q.reads() {
		return fmt.Errorf("%w: Idempotency-Key is for writes", problem.ErrBadRequest)
	}
	if q.Partial && q.Method == http.MethodPut {
		return fmt.Errorf("%w: a part of a value cannot be written", problem.ErrBadRequest) // RFC 9110 §14.5
	}
	if err := q.parseQuery(); err != nil {
		return err
	}
	if q.pre, err = parsePreconditions(q.IfMatch, q.IfNoneMatch); err != nil || q.reads() {
		return err
	}
	if q.cond, err = q.pre.OfWrite(); errors.Is(err, problem.ErrPrecondition) {
		q.refused = err
		return nil
	}
	if err != nil || q.Method != http.MethodPut {
		return err
	}
	if k.growth(q.once, 0) != NoGrowth {
		if err := k.MayWrite(); err != nil {
			return err
		}
	}
	if q.Length > k.MaxValue {
		return fmt.Errorf("%w: %d bytes, %d are allowed", problem.ErrTooLarge, q.Length, k.MaxValue)
	}
	if q.life.Kind == state.WithLease {
		q.life.Owner, _ = (&Owners{Look: k.Look}).find(q.Caller, q.life.Value)
	}
	head := make([]byte, 0, q.once.overhead()+state.LeasedPutOverhead+len(q.life.Owner)+len(q.Key)+int(min(max(q.Length, 0), limits.BodyFirst)))
	head = q.once.begin(head)
	q.inner = len(head)
	if q.life == (state.Lifetime{}) {
		q.Command = state.AppendWriteHead(head, state.KindPut, q.cond, q.Key)
	} else {
		q.Command = state.AppendLeasedPutHead(head, q.cond, q.life, q.Key)
	}
	q.size = len(q.Command)
	return nil
}

// The parameters of a read of a key, and of one that wants an item in JSON.
var (
	keyParams  = append([]string{"as", "wait"}, FreshnessParams...)
	itemParams = append([]string{"values", "wait"}, FreshnessParams...)
)

// parseQuery reads the parameters.
func (q *KeyRequest) parseQuery() (err error) {
	switch {
	case q.Method == http.MethodPut:
		q.life, err = lifetimeOf(q.Query)
		return err
	case !q.reads():
		_, err = web.Query(q.Query)
		return err
	case q.Query == "" || q.Query == staleAlone:
		q.want, err = ParseQuery(q.Query)
		return err
	}
	names := keyParams
	if q.JSON {
		names = itemParams
	}
	params, err := web.Query(q.Query, names...)
	if err != nil {
		return err
	}
	if as, ok := params["as"]; ok && as[0] != "text" {
		return fmt.Errorf("%w: as is %q, not text", problem.ErrBadRequest, web.Clip(as[0]))
	}
	q.text = params.Has("as")
	if q.form.Base64, err = InBase64(params); err != nil {
		return err
	}
	if q.wait, err = waitOf(params); err != nil {
		return err
	}
	q.want, err = ParseFreshness(params)
	return err
}

// TakesValue reports whether the body of a request that was checked is a value that
// Start needs.
func (q *KeyRequest) TakesValue() bool { return q.Method == http.MethodPut && q.refused == nil }

// Start asks the cluster for what the request needs of it. True: w will be told what
// came of that, which is for Finish. False: the answer is there.
func (k *Keys) Start(q *KeyRequest, w rounds.Waiter) (waits bool) {
	switch {
	case q.reads() && q.want.Local:
		if q.want.ByRevision && k.Fresh.Revision.Get() < q.want.Revision {
			q.release = k.Fresh.await(q.want.Revision, w)
			return true
		}
		k.found(q)
		return false
	case q.reads():
		q.again()
	}
	start := k.write
	if q.reads() || q.refused != nil {
		start = k.confirm
	}
	if err := start(q, w); err != nil {
		return q.fail(err)
	}
	return true
}

// confirm has w told when this node is fresh enough for the request.
func (k *Keys) confirm(_ *KeyRequest, w rounds.Waiter) error {
	return k.Fresh.Start(w)
}

// write proposes a write that may be.
func (k *Keys) write(q *KeyRequest, w rounds.Waiter) (err error) {
	growth, level := NoGrowth, uint64(0)
	if q.Method == http.MethodPut {
		growth = k.growth(q.once, len(q.Command)-q.size)
	} else {
		head := q.once.begin(nil)
		q.Command, q.inner = append(head, state.EncodeWrite(state.KindDelete, q.cond, q.Key, nil)...), len(head)
	}
	if q.life.Kind != 0 {
		level = state.LeaseLevel
	}
	if q.life.Kind == state.ForTTL && growth != NoGrowth {
		growth += lease.Cost
	}
	if q.release, err = k.admitOnce(q.once, q.Key, growth, level, 0); err != nil {
		return err
	}
	if q.once.set {
		state.SealOnce(q.Command, q.inner, q.like())
	}
	if q.giveUp, err = k.Writes.Start(q.Command, w); err != nil {
		q.done()
	}
	return err
}

// like is what a repeat of a write has to have in common with it: the command of nobody.
func (q *KeyRequest) like() []byte {
	if q.life.Owner == "" {
		return q.Command[q.inner:]
	}
	life := q.life
	life.Owner = ""
	return append(state.AppendLeasedPutHead(nil, q.cond, life, q.Key), q.Command[q.size:]...)
}

// done gives back what a request held.
func (q *KeyRequest) done() {
	if q.release != nil {
		q.release()
	}
	q.Command, q.release, q.giveUp = nil, nil, nil
}

// Finish makes the answer of a request that has waited for res.
func (k *Keys) Finish(q *KeyRequest, res state.Result) {
	defer q.done()
	if res.Replayed {
		q.Answer.add(replayed.Name, replayed.Value)
	}
	fault := k.Fresh.Fault() // what is wrong with this node says more than res
	switch {
	case q.reads() || q.refused != nil:
		if err := cmp.Or(fault, res.Err); err != nil {
			q.fail(err)
			return
		}
		if err := q.still(); err != nil {
			q.Answer = Answer{}
			q.fail(err)
			return
		}
		k.found(q)
	case fault != nil:
		q.fail(problem.PerhapsDone(fault)) // the write may have happened, but what this node says of it is not to be trusted
	case res.Err != nil:
		if res.Revision != 0 {
			q.Answer.add("Etag", Etag(res.Revision))
		}
		q.fail(res.Err)
	default:
		q.Answer.Status = http.StatusNoContent
		if q.Long && res.Created {
			q.Answer.Status = http.StatusCreated
		}
		if res.Revision == 0 {
			q.Answer.add("Raftkv-Revision", strconv.FormatUint(res.Deletion, 10))
			return
		}
		tag := Etag(res.Revision) // the key's revision is the store's: one text
		q.Answer.add("Etag", tag)
		q.Answer.add("Raftkv-Revision", tag[1:len(tag)-1])
	}
}

// Tell writes the answer, or returns the error that it is, whose fields it has set.
func (q *KeyRequest) Tell(w http.ResponseWriter) error {
	h := w.Header()
	for _, f := range q.Answer.Fields() {
		f.Set(h)
	}
	if q.Answer.Err != nil {
		return q.Answer.Err
	}
	if q.Answer.Status == http.StatusOK {
		h["Content-Length"] = []string{strconv.Itoa(len(q.Answer.Body))}
	}
	w.WriteHeader(q.Answer.Status)
	if q.Method == http.MethodHead || len(q.Answer.Body) == 0 {
		return nil
	}
	_, err := w.Write(q.Answer.Body)
	return web.IgnoreWriteError(err)
}

// GiveUp makes the answer of a request whose client has hung up while it waited, for
// what is counted. Who waited for it may or may not be told yet.
func (k *Keys) GiveUp(q *KeyRequest) {
	err := problem.ErrUnavailable
	if q.giveUp != nil {
		q.giveUp()
		err = problem.ErrOutcomeUnknown
	}
	k.Finish(q, state.Result{Err: err})
}

// found answers with what the state has now: a read, or a write whose condition
// cannot hold, and which costs no log entry therefore.
func (k *Keys) found(q *KeyRequest) {
	a := &q.Answer
	if q.refused != nil {
		if it, _ := k.Store.Get(q.Key); it != nil {
			a.add("Etag", Etag(it.ModRevision))
		}
		q.fail(q.refused)
		return
	}
	if q.want.Local {
		if err := k.Fresh.asOf(a.add, q.want); err != nil {
			q.fail(err)
			return
		}
	}
	it, revision, err := k.Store.Read(q.Key)
	if err != nil {
		q.fail(err)
		return
	}
	if it != nil && it.ModRevision == revision {
		tag := Etag(revision)
		a.add("Etag", tag)
		a.add("Raftkv-Revision", tag[1:len(tag)-1])
	} else {
		a.add("Raftkv-Revision", strconv.FormatUint(revision, 10))
		if it != nil {
			a.add("Etag", Etag(it.ModRevision))
		}
	}
	unchanged, err := q.pre.OfRead(it)
	if err != nil {
		q.fail(err)
		return
	}
	a.add("Cache-Control", web.CacheAsk)
	if it == nil {
		q.fail(problem.ErrNotFound)
		return
	}
	// The bytes and the JSON have the same ETag, because it stands for the key's state,
	// which is what a write under it depends on. Vary is what keeps a cache between from
	// giving out one for the other (RFC 9110 §12.5.5).
	a.add("Vary", "Accept")
	if unchanged {
		a.Status = http.StatusNotModified
		return
	}
	a.Status, a.Body = http.StatusOK, it.Bytes()
	mediaType := "application/octet-stream"
	switch {
	case q.JSON:
		mediaType, a.Body = jsonType, append(q.form.Append(nil, q.Key, it, k.Store.Left(it)), '\n')
	case q.text:
		mediaType = "text/plain; charset=utf-8"
		a.add("Content-Security-Policy", "sandbox") // whatever a browser makes of it, it may do nothing
	}
	a.add("Content-Type", mediaType)
	a.add("X-Content-Type-Options", "nosniff")
}
