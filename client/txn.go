package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
)

// maxOps is how many conditions, and operations in each list, a transaction may have.
const maxOps = 128

// Cond is a condition of a transaction on one key. Its methods compare; all that are called
// must hold. One that compares nothing is refused.
type Cond struct{ w wireCond }

// wireCond is a condition as it travels.
type wireCond struct {
	Key            string  `json:"key,omitempty"`
	Prefix         *string `json:"prefix,omitempty"`
	Exists         *bool   `json:"exists,omitempty"`
	ModRevision    *uint64 `json:"mod_revision,omitempty"`
	CreateRevision *uint64 `json:"create_revision,omitempty"`
	Version        *uint64 `json:"version,omitempty"`
	Lease          *uint64 `json:"lease,omitempty"`
	Base64         *[]byte `json:"value_base64,omitempty"`
}

// Key begins a condition on a key, as in Key("a").ModRevision(7).
func Key(key string) Cond { return Cond{wireCond{Key: key}} }

// Exists holds if the key is there.
func (c Cond) Exists() Cond { c.w.Exists = new(bool); *c.w.Exists = true; return c }

// Missing holds if there is no such key.
func (c Cond) Missing() Cond { c.w.Exists = new(bool); return c }

// ModRevision holds if the key was last written at the revision r; 0 is a missing key's.
func (c Cond) ModRevision(r uint64) Cond { c.w.ModRevision = &r; return c }

// CreateRevision holds if the key was first written at the revision r; 0 is a missing key's.
func (c Cond) CreateRevision(r uint64) Cond { c.w.CreateRevision = &r; return c }

// Version holds if the key was written n times since it was last missing.
func (c Cond) Version(n uint64) Cond { c.w.Version = &n; return c }

// Lease holds if the key is bound to the lease; 0 is none.
func (c Cond) Lease(id uint64) Cond { c.w.Lease = &id; return c }

// Value holds if the key is there and has this value.
func (c Cond) Value(v []byte) Cond { c.w.Base64 = bytesOf(v); return c }

// PrefixCond is a condition of a transaction on all keys under a prefix, before one of its
// methods says which.
type PrefixCond struct{ prefix string }

// Prefix begins a condition on all keys that begin with prefix.
func Prefix(prefix string) PrefixCond { return PrefixCond{prefix} }

// Exists holds if there is any such key.
func (p PrefixCond) Exists() Cond { return Cond{wireCond{Prefix: &p.prefix}}.Exists() }

// Missing holds if there is no such key.
func (p PrefixCond) Missing() Cond { return Cond{wireCond{Prefix: &p.prefix}}.Missing() }

// bytesOf returns bytes that are told even if there are none.
func bytesOf(v []byte) *[]byte {
	if v == nil {
		v = []byte{}
	}
	return &v
}

// Op is an operation of a transaction.
type Op struct {
	w     wireOp
	wrong string
	write bool
}

// wireOp is an operation as it travels.
type wireOp struct {
	Put    *wireWrite `json:"put,omitempty"`
	Delete *wireWrite `json:"delete,omitempty"`
	Add    *wireWrite `json:"add,omitempty"`
	Append *wireWrite `json:"append,omitempty"`
	Get    *wireWrite `json:"get,omitempty"`
	List   *wireList  `json:"list,omitempty"`
}

type wireWrite struct {
	Key    string  `json:"key,omitempty"`
	Prefix *string `json:"prefix,omitempty"`
	Base64 *[]byte `json:"value_base64,omitempty"`
	Delta  string  `json:"delta,omitempty"`
	TTL    string  `json:"ttl,omitempty"`
	Lease  uint64  `json:"lease,omitempty"`
}

type wireList struct {
	Prefix     string `json:"prefix"`
	Limit      int    `json:"limit,omitempty"`
	StartAfter string `json:"start_after,omitempty"`
}

// live gives a write its lifetime, and says what is wrong with the key or the options.
func (w *wireWrite) live(wrong string, opts []WriteOption) (*wireWrite, string) {
	o, bad := writes(opts)
	switch {
	case wrong != "":
	case bad != "":
		wrong = bad
	case o.conditional():
		wrong = "a condition of a transaction goes into If"
	}
	if o.ttl > 0 {
		w.TTL = o.ttl.String()
	}
	w.Lease = o.lease
	return w, wrong
}

// PutOp writes a key. It takes TTL and WithLease.
func PutOp(key string, value []byte, opts ...WriteOption) Op {
	w, wrong := (&wireWrite{Key: key, Base64: bytesOf(value)}).live(badKey(key), opts)
	return Op{w: wireOp{Put: w}, wrong: wrong, write: true}
}

// DeleteOp deletes a key, if it is there.
func DeleteOp(key string) Op {
	return Op{w: wireOp{Delete: &wireWrite{Key: key}}, wrong: badKey(key), write: true}
}

// AddOp adds to the number at a key, as Client.Add does. It takes TTL and WithLease, which
// count if this creates the key.
func AddOp(key string, delta int64, opts ...WriteOption) Op {
	w, wrong := (&wireWrite{Key: key, Delta: strconv.FormatInt(delta, 10)}).live(badKey(key), opts)
	return Op{w: wireOp{Add: w}, wrong: wrong, write: true}
}

// AppendOp writes a value under a new key, as Client.Append does. It takes TTL and WithLease.
func AppendOp(prefix string, value []byte, opts ...WriteOption) Op {
	w, wrong := (&wireWrite{Prefix: &prefix, Base64: bytesOf(value)}).live(badPrefix(prefix), opts)
	return Op{w: wireOp{Append: w}, wrong: wrong, write: true}
}

// GetOp reads a key, as the operations before it have left it.
func GetOp(key string) Op { return Op{w: wireOp{Get: &wireWrite{Key: key}}, wrong: badKey(key)} }

// ListOp reads the first items under a prefix. It takes Limit and StartAfter; Result.Next says
// whether there are more.
func ListOp(prefix string, opts ...ListOption) Op {
	var o listOptions
	for _, opt := range opts {
		opt.applyList(&o)
	}
	op := Op{w: wireOp{List: &wireList{Prefix: prefix, Limit: o.limit, StartAfter: o.after}}, wrong: badPrefix(prefix)}
	wrong := o.wrong
	o.limit, o.after, o.wrong = 0, "", ""
	switch {
	case op.wrong != "":
	case wrong != "":
		op.wrong = wrong
	case o != (listOptions{}):
		op.wrong = "a list in a transaction takes Limit and StartAfter alone"
	}
	return op
}

// Txn is a transaction that is being put together: conditions, what happens if all of them
// hold, and what happens else. It is for one goroutine.
type Txn struct {
	c *Client
	w struct {
		If   []wireCond `json:"if,omitempty"`
		Then []wireOp   `json:"then,omitempty"`
		Else []wireOp   `json:"else,omitempty"`
	}
	wrong string
	write bool
}

// Txn begins a transaction. Nothing is sent before Commit.
func (c *Client) Txn() *Txn { return &Txn{c: c} }

// If adds conditions. They look at what was there before the transaction.
func (t *Txn) If(conds ...Cond) *Txn {
	for _, c := range conds {
		if wrong := badPrefix(c.w.Key); wrong != "" {
			t.wrong = wrong
		}
		t.w.If = append(t.w.If, c.w)
	}
	return t
}

// Then adds operations for the case that all conditions hold. They are carried out in order,
// and see what those before them wrote.
func (t *Txn) Then(ops ...Op) *Txn {
	t.w.Then = t.add(t.w.Then, ops)
	return t
}

// Else adds operations for the case that a condition does not hold.
func (t *Txn) Else(ops ...Op) *Txn {
	t.w.Else = t.add(t.w.Else, ops)
	return t
}

func (t *Txn) add(to []wireOp, ops []Op) []wireOp {
	for _, op := range ops {
		if op.wrong != "" {
			t.wrong = op.wrong
		}
		t.write = t.write || op.write
		to = append(to, op.w)
	}
	return to
}

// TxnResult is what became of a transaction.
type TxnResult struct {
	Succeeded bool     // all conditions held: Then was carried out, not Else
	Revision  uint64   // of the store; a new one if something changed
	Results   []Result // of the operations that were carried out, in their order
}

// Result is what became of one operation.
type Result struct {
	Key      string // that PutOp or AppendOp wrote
	Revision uint64 // of what PutOp, AddOp or AppendOp wrote
	Deleted  bool   // DeleteOp found the key
	Number   int64  // of AddOp: the new one
	Item     *Item  // of GetOp; nil if there is no such key
	Items    []Item // of ListOp
	Next     string // of ListOp: what StartAfter takes to go on; "" if there is no more
}

// Commit sends the transaction. Conditions that do not hold are no error: Succeeded is then
// false. What an operation cannot do, such as to add to something that is no number, is an error, and
// then nothing has happened. However many attempts it takes, it happens once at most; what it
// reads may be newer than its Revision if it took several. ReadOptions are for a transaction
// that can only read.
func (t *Txn) Commit(ctx context.Context, opts ...ReadOption) (TxnResult, error) {
	q := make(url.Values)
	wrong := t.wrong
	switch {
	case wrong != "":
	case len(t.w.If) > maxOps || len(t.w.Then) > maxOps || len(t.w.Else) > maxOps:
		wrong = "there are more than " + strconv.Itoa(maxOps) + " conditions or operations in a list"
	case t.write && len(opts) > 0:
		wrong = "a transaction that can write is as fresh as can be: it takes no ReadOption"
	default:
		wrong = t.c.reads(opts, q)
	}
	if wrong != "" {
		return TxnResult{}, invalid("txn", "", "%s", wrong)
	}
	body, err := json.Marshal(&t.w)
	if err != nil {
		return TxnResult{}, invalid("txn", "", "%v", err)
	}
	r := &request{op: "txn", method: http.MethodPost, path: "/v1/txn", query: q, header: sendsJSON, body: body, bound: maxAnswer}
	if t.write {
		r.effect = keyed
	}
	var got wireTxn
	if err := t.c.ask(ctx, r, &got); err != nil {
		return TxnResult{}, err
	}
	res := TxnResult{Succeeded: got.Succeeded, Revision: got.Revision, Results: make([]Result, len(got.Results))}
	for i := range got.Results {
		res.Results[i] = got.Results[i].result()
	}
	return res, nil
}

// wireTxn is the answer to a transaction.
type wireTxn struct {
	Succeeded bool         `json:"succeeded"`
	Revision  uint64       `json:"revision"`
	Results   []wireResult `json:"results"`
}

type wireResult struct {
	Put    *wireWritten `json:"put"`
	Append *wireWritten `json:"append"`
	Add    *struct {
		Value       int64  `json:"value,string"`
		ModRevision uint64 `json:"mod_revision"`
	} `json:"add"`
	Delete *struct {
		Deleted int `json:"deleted"`
	} `json:"delete"`
	Get  *wireItem `json:"get"`
	List *page     `json:"list"`
}

type wireWritten struct {
	Key         string `json:"key"`
	ModRevision uint64 `json:"mod_revision"`
}

func (w *wireResult) result() (r Result) {
	written := w.Put
	if written == nil {
		written = w.Append
	}
	switch {
	case written != nil:
		r.Key, r.Revision = written.Key, written.ModRevision
	case w.Add != nil:
		r.Number, r.Revision = w.Add.Value, w.Add.ModRevision
	case w.Delete != nil:
		r.Deleted = w.Delete.Deleted > 0
	case w.Get != nil:
		i := w.Get.item()
		r.Item = &i
	case w.List != nil:
		r.Next = w.List.Next
		for i := range w.List.Items {
			r.Items = append(r.Items, w.List.Items[i].item())
		}
	}
	return r
}
