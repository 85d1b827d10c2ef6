package txnapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/lease"
	"raftkv/internal/list"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"raftkv/internal/web"
	"slices"
	"strconv"
	"strings"
)

// A transaction as JSON.

type txnJSON struct {
	If   []conditionJSON `json:"if"`
	Then []opJSON        `json:"then"`
	Else []opJSON        `json:"else"`
}

type conditionJSON struct {
	Key         *string `json:"key"`
	Prefix      *string `json:"prefix"`
	Mod         *uint64 `json:"mod_revision"`
	Create      *uint64 `json:"create_revision"`
	Version     *uint64 `json:"version"`
	Lease       *uint64 `json:"lease"`
	Exists      *bool   `json:"exists"`
	Value       *string `json:"value"`
	ValueBase64 *string `json:"value_base64"`
}

// opJSON has one of its fields.
type opJSON struct {
	Put    *putJSON  `json:"put"`
	Delete *keyJSON  `json:"delete"`
	Add    *addJSON  `json:"add"`
	Append *putJSON  `json:"append"`
	Get    *keyJSON  `json:"get"`
	List   *listJSON `json:"list"`
}

type keyJSON struct {
	Key string `json:"key"`
}

// putJSON has a key or, of an append, a prefix.
type putJSON struct {
	Key         *string `json:"key"`
	Prefix      *string `json:"prefix"`
	Value       *string `json:"value"`
	ValueBase64 *string `json:"value_base64"`
	TTL         *string `json:"ttl"`
	Lease       *uint64 `json:"lease"`
}

type addJSON struct {
	Key   string  `json:"key"`
	Delta *string `json:"delta"`
	TTL   *string `json:"ttl"`
	Lease *uint64 `json:"lease"`
}

type listJSON struct {
	Prefix *string `json:"prefix"`
	Limit  *uint64 `json:"limit"`
	After  string  `json:"start_after"`
}

// transaction makes a transaction of what a client has sent.
func (a *Txns) transaction(in *txnJSON) (*txn.Txn, error) {
	t := &txn.Txn{MaxBytes: 2 * uint64(a.MaxValue)}
	for i := range in.If {
		comparisons, err := a.condition(&in.If[i])
		if err != nil {
			return nil, fmt.Errorf("if, condition %d: %w", i, err)
		}
		t.If = append(t.If, comparisons...)
	}
	var err error
	if t.Then, err = a.ops(in.Then); err != nil {
		return nil, fmt.Errorf("then, %w", err)
	}
	if t.Else, err = a.ops(in.Else); err != nil {
		return nil, fmt.Errorf("else, %w", err)
	}
	return t, t.Check()
}

func (a *Txns) ops(in []opJSON) (ops []txn.Op, err error) {
	for i := range in {
		op, err := a.op(&in[i])
		if err != nil {
			return nil, fmt.Errorf("operation %d: %w", i, err)
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func bad(text string) error { return fmt.Errorf("%w: %s", problem.ErrBadRequest, text) }

// condition makes the comparisons of a condition, all of which must hold.
func (a *Txns) condition(c *conditionJSON) (all []txn.Comparison, err error) {
	numbers := []struct {
		field  txn.Field
		number *uint64
	}{{txn.Mod, c.Mod}, {txn.Create, c.Create}, {txn.Version, c.Version}, {txn.Lease, c.Lease}}
	exists := txn.Exists
	var key string
	switch {
	case (c.Key == nil) == (c.Prefix == nil):
		return nil, bad("it takes a key or a prefix, and not both")
	case c.Key != nil:
		key, err = *c.Key, api.CheckKey(*c.Key)
	default:
		key, err, exists = *c.Prefix, checkPrefix(*c.Prefix, 0), txn.AnyBelow
	}
	if err != nil {
		return nil, err
	}
	if c.Exists != nil {
		number := uint64(0)
		if *c.Exists {
			number = 1
		}
		all = append(all, txn.Comparison{Field: exists, Key: key, Number: number})
	}
	for _, n := range numbers {
		if n.number != nil {
			all = append(all, txn.Comparison{Field: n.field, Key: key, Number: *n.number})
		}
	}
	if c.Value != nil || c.ValueBase64 != nil {
		value, err := a.value(c.Value, c.ValueBase64)
		if err != nil {
			return nil, err
		}
		all = append(all, txn.Comparison{Field: txn.HasValue, Key: key, Value: value})
	}
	switch {
	case len(all) == 0:
		return nil, bad("it compares nothing; it takes exists, mod_revision, create_revision, version, lease, value or value_base64")
	case exists == txn.AnyBelow && (c.Exists == nil || len(all) > 1):
		return nil, bad("a prefix takes exists, and nothing else")
	}
	return all, nil
}

// value returns the value that one of the two forms gives.
func (a *Txns) value(text, encoded *string) (value []byte, err error) {
	switch {
	case (text == nil) == (encoded == nil):
		return nil, bad("it takes value or value_base64, and not both")
	case text != nil:
		value = []byte(*text)
	default:
		value, err = base64.StdEncoding.Strict().DecodeString(*encoded)
		if err != nil || strings.ContainsAny(*encoded, "\r\n") { // which the decoder skips
			return nil, bad("value_base64 is not base64 with padding")
		}
	}
	if int64(len(value)) > a.MaxValue {
		return nil, fmt.Errorf("%w: a value of %d bytes, %d are allowed", problem.ErrTooLarge, len(value), a.MaxValue)
	}
	return value, nil
}

// op makes an operation.
func (a *Txns) op(in *opJSON) (op txn.Op, err error) {
	n := 0
	for _, there := range []bool{in.Put != nil, in.Delete != nil, in.Add != nil, in.Append != nil, in.Get != nil, in.List != nil} {
		if there {
			n++
		}
	}
	if n != 1 {
		return op, bad("it is one of put, delete, add, append, get and list")
	}
	switch {
	case in.Put != nil:
		return a.put(in.Put)
	case in.Append != nil:
		return a.append(in.Append)
	case in.Add != nil:
		return add(in.Add)
	case in.List != nil:
		return listOp(in.List)
	case in.Delete != nil:
		return txn.Op{Kind: txn.Delete, Key: in.Delete.Key}, api.CheckKey(in.Delete.Key)
	}
	return txn.Op{Kind: txn.Get, Key: in.Get.Key}, api.CheckKey(in.Get.Key)
}

func (a *Txns) put(in *putJSON) (op txn.Op, err error) {
	if in.Key == nil || in.Prefix != nil {
		return op, bad("a put takes a key, and no prefix")
	}
	op.Kind, op.Key = txn.Put, *in.Key
	if err := api.CheckKey(op.Key); err != nil {
		return op, err
	}
	return op, a.fill(&op, in)
}

func (a *Txns) append(in *putJSON) (op txn.Op, err error) {
	if in.Prefix == nil || in.Key != nil {
		return op, bad("an append takes a prefix, and no key")
	}
	op.Kind, op.Key = txn.Append, *in.Prefix
	if err := checkAppend(op.Key); err != nil {
		return op, err
	}
	return op, a.fill(&op, in)
}

// fill gives an operation value and lifetime.
func (a *Txns) fill(op *txn.Op, in *putJSON) (err error) {
	if op.Value, err = a.value(in.Value, in.ValueBase64); err != nil {
		return err
	}
	op.Life, err = lifetime(in.TTL, in.Lease)
	return err
}

// lifetime reads ttl and lease, as the query of a PUT has them.
func lifetime(ttl *string, lease *uint64) (state.Lifetime, error) {
	q := map[string][]string{}
	if ttl != nil {
		q["ttl"] = []string{*ttl}
	}
	if lease != nil {
		q["lease"] = []string{strconv.FormatUint(*lease, 10)}
	}
	return api.LifetimeIn(q)
}

func add(in *addJSON) (op txn.Op, err error) {
	op.Kind, op.Key = txn.Add, in.Key
	if err := api.CheckKey(op.Key); err != nil {
		return op, err
	}
	if in.Delta == nil {
		return op, bad(`delta is missing, as in "delta":"1"`)
	}
	if op.Delta, err = parseDelta(*in.Delta); err != nil {
		return op, err
	}
	op.Life, err = lifetime(in.TTL, in.Lease)
	return op, err
}

func listOp(in *listJSON) (op txn.Op, err error) {
	op.Kind, op.After, op.Limit = txn.List, in.After, txn.MaxItems
	if in.Prefix == nil {
		return op, bad(`prefix is missing; "" is for all keys`)
	}
	op.Key = *in.Prefix
	if err := checkPrefix(op.Key, 0); err != nil {
		return op, err
	}
	if in.Limit != nil {
		op.Limit = *in.Limit
	}
	if op.Limit < 1 || op.Limit > txn.MaxItems {
		return op, bad(fmt.Sprintf("limit is %d; it may be 1 to %d", op.Limit, txn.MaxItems))
	}
	return op, checkPrefix(op.After, 0)
}

// ServeTxn serves POST /v1/txn.
func (a *Txns) ServeTxn(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, append([]string{"values"}, api.FreshnessParams...)...)
	if err != nil {
		return err
	}
	want, err := api.ParseFreshness(q)
	if err != nil {
		return err
	}
	if v := q.Get("values"); q.Has("values") && v != "base64" {
		return bad(fmt.Sprintf("values is %q, not base64", web.Clip(v)))
	}
	if err := web.TakesJSON(r); err != nil {
		return err
	}
	body, err := a.body(w, r, nil, 4*a.MaxValue)
	if err != nil {
		return err
	}
	var in txnJSON
	if err := web.DecodeJSON(body, &in); err != nil {
		return err
	}
	t, err := a.transaction(&in)
	if err != nil {
		return err
	}
	note(audit.NoteOf(r.Context()), t)
	if err := rights.CallerOf(r.Context()).May(needs(t)...); err != nil {
		return err
	}
	if err := api.CheckIdempotencyKey(r); err != nil {
		return err
	}
	var o *txn.Outcome
	switch {
	case t.OnlyReads():
		o, err = a.read(w, r, t, want)
	case slices.ContainsFunc(api.FreshnessParams, q.Has):
		return bad("consistency, min_revision and max_age are for transactions that can only read")
	default:
		o, err = a.write(w, r, t)
	}
	if err != nil {
		return err
	}
	tell(w, o.Revision)
	web.WriteJSON(w, http.StatusOK, answer(o, q.Has("values")))
	return nil
}

// note notes what a transaction is about, whichever of its lists is carried out.
func note(n *audit.Note, t *txn.Txn) {
	if n == nil {
		return
	}
	var keys, prefixes []string
	for _, c := range t.If {
		if c.Field == txn.AnyBelow {
			prefixes = append(prefixes, c.Key)
		} else {
			keys = append(keys, c.Key)
		}
	}
	for _, op := range slices.Concat(t.Then, t.Else) {
		if op.Kind == txn.Append || op.Kind == txn.List {
			prefixes = append(prefixes, op.Key)
		} else {
			keys = append(keys, op.Key)
		}
	}
	n.About(unique(keys), unique(prefixes))
	if t.OnlyReads() {
		n.Reads()
	}
}

// unique sorts names, and leaves each in once.
func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// needs are the rights that a transaction takes: those of its conditions and of both lists,
// whichever is carried out.
func needs(t *txn.Txn) (all []rights.Need) {
	for _, c := range t.If {
		if c.Field == txn.AnyBelow {
			all = append(all, rights.OnPrefix(rights.Read, c.Key))
		} else {
			all = append(all, rights.OnKey(rights.Read, c.Key))
		}
	}
	for _, op := range slices.Concat(t.Then, t.Else) {
		switch op.Kind {
		case txn.Put, txn.Delete:
			all = append(all, rights.OnKey(rights.Write, op.Key))
		case txn.Add: // its answer tells the value
			all = append(all, rights.OnKey(rights.Read, op.Key), rights.OnKey(rights.Write, op.Key))
		case txn.Append:
			all = append(all, rights.OnPrefix(rights.Write, op.Key))
		case txn.Get:
			all = append(all, rights.OnKey(rights.Read, op.Key))
		case txn.List:
			all = append(all, rights.OnPrefix(rights.Read, op.Key))
		default: // one that is not known here
			all = append(all, rights.OfNode(rights.Admin))
		}
	}
	return all
}

// read decides a transaction that can change nothing on what this node has.
func (a *Txns) read(w http.ResponseWriter, r *http.Request, t *txn.Txn, want api.Wanted) (o *txn.Outcome, err error) {
	if err := a.Fresh.Prepare(w.Header(), r, want, needs(t)...); err != nil {
		return nil, err
	}
	lent := a.Look(func(s *state.State) { o, _, err = t.Plan(s, s.Revision) })
	if lent != nil {
		return nil, lent
	}
	return o, err
}

// write has the cluster carry out a transaction.
func (a *Txns) write(w http.ResponseWriter, r *http.Request, t *txn.Txn) (*txn.Outcome, error) {
	// How much a node lets an answer have is no part of what a client asks.
	like := *t
	like.MaxBytes = 0
	if err := a.own(r.Context(), t); err != nil {
		return nil, err
	}
	growth := api.NoGrowth
	if size, timed, ok := t.Growth(); ok {
		growth = size + timed*(lease.Cost+len(t.Owner))
	}
	res, err := a.Commands.DoOnce(w, r, api.Change{
		Command: state.EncodeTxn(t), Like: state.EncodeTxn(&like), Growth: growth, Level: state.TxnLevel, Numbers: txn.MaxOps,
	})
	return res.Txn, err
}

// own gives a transaction that binds keys to leases the owner by whom it names them. It has
// one: who may bind keys to the leases of others can do so to those of one owner at a time.
func (a *Txns) own(ctx context.Context, t *txn.Txn) (err error) {
	for _, op := range slices.Concat(t.Then, t.Else) {
		if op.Life.Kind == state.WithLease {
			t.Owner, err = a.Of(ctx, op.Life.Value)
			return err
		}
	}
	return nil
}

// answerJSON is the answer to a transaction. A result has the name of its operation.
type answerJSON struct {
	Succeeded bool             `json:"succeeded"`
	Revision  uint64           `json:"revision"`
	Results   []map[string]any `json:"results"`
}

func answer(o *txn.Outcome, encoded bool) answerJSON {
	a := answerJSON{o.Succeeded, o.Revision, make([]map[string]any, len(o.Results))}
	for i, r := range o.Results {
		a.Results[i] = map[string]any{r.Kind.String(): result(r, o.Revision, encoded)}
	}
	return a
}

// result is what came of an operation. revision is the store's.
func result(r txn.Result, revision uint64, encoded bool) any {
	items, form := make([]json.RawMessage, len(r.Items)), list.Form{Base64: encoded}
	for i, f := range r.Items {
		items[i] = form.Append(nil, f.Key, f.Item, f.Left)
	}
	if r.TooLarge {
		return struct {
			TooLarge bool `json:"too_large"`
		}{true}
	}
	switch r.Kind {
	case txn.Delete:
		return struct {
			Deleted int `json:"deleted"`
		}{r.Deleted}
	case txn.Add:
		return struct {
			Value string `json:"value"`
			Mod   uint64 `json:"mod_revision"`
		}{strconv.FormatInt(r.Number, 10), revision}
	case txn.Get:
		if len(items) == 0 {
			return nil
		}
		return items[0]
	case txn.List:
		return struct {
			Items []json.RawMessage `json:"items"`
			Next  string            `json:"next,omitempty"`
		}{items, r.Next}
	}
	return struct {
		Key string `json:"key"`
		Mod uint64 `json:"mod_revision"`
	}{r.Key, revision}
}
