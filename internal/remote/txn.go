package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"strconv"
	"time"
)

// The command txn. It takes the JSON of POST /v1/txn, and makes of it what package client has.

func txnCommand() command.Command {
	return command.Command{
		Name: "txn", Args: "[FILE]", About: "make several reads and writes at once, if conditions hold", Remote: true,
		Long: `Carries out a transaction in the JSON of POST /v1/txn, from a file or from standard input:
what is under "then" if all conditions under "if" hold, else what is under "else". All of it
happens or none, in one revision, and once at most, however often the request had to be sent.
Exit 3 if the conditions do not hold.`,
		Example: `raftkv txn move.json
echo '{"if":[{"key":"a","mod_revision":7}],"then":[{"put":{"key":"a","value":"x"}}]}' | raftkv txn
raftkv txn --output json <<< '{"then":[{"add":{"key":"hits","delta":"1"}},{"get":{"key":"a"}}]}'`,
		New: newTxn,
	}
}

type (
	transaction struct {
		If   []condition `json:"if"`
		Then []operation `json:"then"`
		Else []operation `json:"else"`
	}
	condition struct {
		Key            *string `json:"key"`
		Prefix         *string `json:"prefix"`
		Exists         *bool   `json:"exists"`
		ModRevision    *uint64 `json:"mod_revision"`
		CreateRevision *uint64 `json:"create_revision"`
		Version        *uint64 `json:"version"`
		Lease          *uint64 `json:"lease"`
		Value          *string `json:"value"`
		Base64         *[]byte `json:"value_base64"`
	}
	// operation has exactly one of these.
	operation struct {
		Put    *operands `json:"put"`
		Delete *operands `json:"delete"`
		Add    *operands `json:"add"`
		Append *operands `json:"append"`
		Get    *operands `json:"get"`
		List   *operands `json:"list"`
	}
	operands struct {
		Key        *string      `json:"key"`
		Prefix     *string      `json:"prefix"`
		Value      *string      `json:"value"`
		Base64     *[]byte      `json:"value_base64"`
		Delta      *json.Number `json:"delta"`
		TTL        *string      `json:"ttl"`
		Lease      *uint64      `json:"lease"`
		Limit      *int         `json:"limit"`
		StartAfter *string      `json:"start_after"`
	}
)

func newTxn() command.Action {
	return command.Action{
		Check: func(o *command.Call) {
			if len(o.Args) == 0 && command.IsTerminal(o.Stdin) {
				o.Review.Errs = append(o.Review.Errs, errors.New("expected FILE, or a transaction on standard input"))
			}
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			file := o.Arg(0)
			if file == "" {
				file = "-"
			}
			text, err := read(o, file)
			if err != nil {
				return err
			}
			t, err := parseTxn(text)
			if err != nil {
				return config.NewUsageError(fmt.Errorf("the transaction: %w", err))
			}
			return t.run(ctx, o, c)
		}),
	}
}

// parseTxn reads a transaction strictly.
func parseTxn(text []byte) (t transaction, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return t, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return t, errors.New("expected nothing behind it")
	}
	return t, nil
}

func (t *transaction) run(ctx context.Context, o *command.Call, c *client.Client) error {
	txn := c.Txn()
	for i, cond := range t.If {
		made, err := cond.client()
		if err != nil {
			return config.NewUsageError(fmt.Errorf("if[%d]: %w", i, err))
		}
		txn.If(made)
	}
	for _, part := range []struct {
		name string
		ops  []operation
		add  func(...client.Op) *client.Txn
	}{{"then", t.Then, txn.Then}, {"else", t.Else, txn.Else}} {
		for i, op := range part.ops {
			made, err := op.client()
			if err != nil {
				return config.NewUsageError(fmt.Errorf("%s[%d]: %w", part.name, i, err))
			}
			part.add(made)
		}
	}
	result, err := txn.Commit(ctx)
	if err != nil {
		return err
	}
	return t.print(o, result)
}

func (c condition) client() (client.Cond, error) {
	if c.Prefix != nil {
		if c.Key != nil || c.Exists == nil || c.ModRevision != nil || c.CreateRevision != nil || c.Version != nil || c.Lease != nil || c.Value != nil || c.Base64 != nil {
			return client.Cond{}, errors.New(`expected "prefix" with "exists" alone`)
		}
		if *c.Exists {
			return client.Prefix(*c.Prefix).Exists(), nil
		}
		return client.Prefix(*c.Prefix).Missing(), nil
	}
	if c.Key == nil {
		return client.Cond{}, errors.New(`expected "key" or "prefix"`)
	}
	cond := client.Key(*c.Key)
	if c.Exists != nil {
		if *c.Exists {
			cond = cond.Exists()
		} else {
			cond = cond.Missing()
		}
	}
	for _, n := range []struct {
		given *uint64
		with  func(client.Cond, uint64) client.Cond
	}{
		{c.ModRevision, client.Cond.ModRevision}, {c.CreateRevision, client.Cond.CreateRevision},
		{c.Version, client.Cond.Version}, {c.Lease, client.Cond.Lease},
	} {
		if n.given != nil {
			cond = n.with(cond, *n.given)
		}
	}
	v, given, err := bytesOf(c.Value, c.Base64)
	if given {
		cond = cond.Value(v)
	}
	return cond, err
}

// bytesOf returns a value that is told in one of two forms.
func bytesOf(text *string, base64 *[]byte) (v []byte, given bool, err error) {
	switch {
	case text != nil && base64 != nil:
		return nil, false, errors.New(`expected "value" or "value_base64", not both`)
	case text != nil:
		return []byte(*text), true, nil
	case base64 != nil:
		return *base64, true, nil
	}
	return nil, false, nil
}

// kind returns which operation it is, and its operands.
func (op operation) kind() (name string, of *operands, err error) {
	for _, o := range []struct {
		name string
		of   *operands
	}{{"put", op.Put}, {"delete", op.Delete}, {"add", op.Add}, {"append", op.Append}, {"get", op.Get}, {"list", op.List}} {
		if o.of != nil && of != nil {
			return "", nil, fmt.Errorf("expected one operation, not %s and %s", name, o.name)
		}
		if o.of != nil {
			name, of = o.name, o.of
		}
	}
	if of == nil {
		return "", nil, errors.New("expected one of put, delete, add, append, get, list")
	}
	return name, of, nil
}

// takes are the operands of each operation beside the first, which it must have.
var takes = map[string][]string{
	"put": {"key", "value", "ttl", "lease"}, "delete": {"key"}, "add": {"key", "delta", "ttl", "lease"},
	"append": {"prefix", "value", "ttl", "lease"}, "get": {"key"}, "list": {"prefix", "limit", "start_after"},
}

// check says which operand is missing, or has no business there.
func (of *operands) check(name string) error {
	there := map[string]bool{
		"key": of.Key != nil, "prefix": of.Prefix != nil, "value": of.Value != nil || of.Base64 != nil, "delta": of.Delta != nil,
		"ttl": of.TTL != nil, "lease": of.Lease != nil, "limit": of.Limit != nil, "start_after": of.StartAfter != nil,
	}
	if first := takes[name][0]; !there[first] {
		return fmt.Errorf("%s: expected %q", name, first)
	}
	for _, operand := range takes[name] {
		delete(there, operand)
	}
	for operand, given := range there {
		if given {
			return fmt.Errorf("%s takes no %q", name, operand)
		}
	}
	return nil
}

func (op operation) client() (client.Op, error) {
	name, of, err := op.kind()
	if err == nil {
		err = of.check(name)
	}
	if err != nil {
		return client.Op{}, err
	}
	v, _, err := bytesOf(of.Value, of.Base64)
	if err != nil {
		return client.Op{}, err
	}
	life, err := of.life()
	if err != nil {
		return client.Op{}, fmt.Errorf("%s: %w", name, err)
	}
	switch name {
	case "put":
		return client.PutOp(*of.Key, v, life...), nil
	case "delete":
		return client.DeleteOp(*of.Key), nil
	case "add":
		delta := int64(1)
		if of.Delta != nil {
			if delta, err = strconv.ParseInt(of.Delta.String(), 10, 64); err != nil {
				return client.Op{}, errors.New("add: expected a whole number of 64 bits as delta")
			}
		}
		return client.AddOp(*of.Key, delta, life...), nil
	case "append":
		return client.AppendOp(*of.Prefix, v, life...), nil
	case "get":
		return client.GetOp(*of.Key), nil
	}
	var opts []client.ListOption
	if of.Limit != nil {
		opts = append(opts, client.Limit(*of.Limit))
	}
	if of.StartAfter != nil {
		opts = append(opts, client.StartAfter(*of.StartAfter))
	}
	return client.ListOp(*of.Prefix, opts...), nil
}

func (of *operands) life() (opts []client.WriteOption, err error) {
	if of.TTL != nil {
		d, err := time.ParseDuration(*of.TTL)
		if err != nil {
			return nil, errors.New("expected a time with its unit as ttl, as in 30s")
		}
		opts = append(opts, client.TTL(d))
	}
	if of.Lease != nil {
		opts = append(opts, client.WithLease(*of.Lease))
	}
	return opts, nil
}

// print tells what became of the transaction, as the HTTP API does.
func (t *transaction) print(o *command.Call, result client.TxnResult) error {
	ops := t.Then
	if !result.Succeeded {
		ops = t.Else
	}
	answer := struct {
		Succeeded bool             `json:"succeeded"`
		Revision  uint64           `json:"revision"`
		Results   []map[string]any `json:"results"`
	}{result.Succeeded, result.Revision, []map[string]any{}}
	for i, r := range result.Results {
		if i >= len(ops) {
			return fmt.Errorf("the answer has %d results of %d operations", len(result.Results), len(ops))
		}
		name, _, err := ops[i].kind()
		if err != nil {
			return err
		}
		answer.Results = append(answer.Results, map[string]any{name: resultOf(name, r)})
	}
	err := o.Print(answer, func(w io.Writer) error {
		for i, r := range result.Results {
			if err := ops[i].printResult(w, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !result.Succeeded {
		return command.No("a condition does not hold; what is under else was done")
	}
	return err
}

// resultOf returns the result of an operation for JSON.
func resultOf(name string, r client.Result) any {
	switch name {
	case "put", "append":
		return written{r.Key, r.Revision}
	case "add":
		return struct {
			Value       string `json:"value"`
			ModRevision uint64 `json:"mod_revision"`
		}{strconv.FormatInt(r.Number, 10), r.Revision}
	case "delete":
		n := 0
		if r.Deleted {
			n = 1
		}
		return deletedKeys{n}
	case "get":
		if r.Item == nil {
			return nil
		}
		return command.ItemOf(*r.Item)
	}
	items := []command.Item{}
	for _, i := range r.Items {
		items = append(items, command.ItemOf(i))
	}
	return struct {
		Items []command.Item `json:"items"`
		Next  string         `json:"next,omitempty"`
	}{items, r.Next}
}

// printResult prints the result of an operation in a line, or in several for a list.
func (op operation) printResult(w io.Writer, r client.Result) (err error) {
	switch name, of, _ := op.kind(); name {
	case "put":
		_, err = fmt.Fprintf(w, "put %s\n", *of.Key)
	case "append":
		_, err = fmt.Fprintf(w, "append %s\n", r.Key)
	case "add":
		_, err = fmt.Fprintf(w, "add %s %d\n", *of.Key, r.Number)
	case "delete":
		_, err = fmt.Fprintf(w, "delete %s %t\n", *of.Key, r.Deleted)
	case "get":
		if r.Item == nil {
			_, err = fmt.Fprintf(w, "get %s: there is no such key\n", *of.Key)
			break
		}
		_, err = fmt.Fprintf(w, "get %s %s\n", *of.Key, oneLine(r.Item.Value))
	case "list":
		for _, i := range r.Items {
			if _, err = fmt.Fprintf(w, "list %s %s\n", i.Key, oneLine(i.Value)); err != nil {
				break
			}
		}
	}
	return err
}
