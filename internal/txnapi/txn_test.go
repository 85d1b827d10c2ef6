package txnapi

import (
	"errors"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"raftkv/internal/web"
	"reflect"
	"testing"
)

// Guarantee: whatever a client sends as a transaction, it is refused with a reason, or is
// within every bound, and gets into the log and out of it as it is.
func FuzzTransaction(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"then":[{"put":{"key":"a","value":"1","ttl":"30s"}},{"delete":{"key":"c"}},{"add":{"key":"hits","delta":"1"}},{"append":{"prefix":"jobs/","value":"x"}}]}`,
		`{"if":[{"key":"a","mod_revision":7},{"key":"b","exists":false},{"key":"c","value":"x"},{"prefix":"p/","exists":false},{"key":"l","lease":3,"version":1,"create_revision":2}]}`,
		`{"else":[{"get":{"key":"a"}},{"list":{"prefix":"jobs/","limit":10,"start_after":"jobs/1"}}]}`,
		`{"then":[{"put":{"key":"a","value_base64":"/w==","lease":7}}]}`, `{"then":[{"put":{"key":"a"}},{"put":{"key":"a"}}]}`, `{"if":[{}]}`, `{"then":[{}]}`,
	} {
		f.Add([]byte(body))
	}
	a := &Txns{MaxValue: 1 << 20}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in txnJSON
		err := web.DecodeJSON(body, &in)
		var made *txn.Txn
		if err == nil {
			made, err = a.transaction(&in)
		}
		if err != nil {
			if !errors.Is(err, problem.ErrBadRequest) && !errors.Is(err, problem.ErrTooLarge) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		r := record.Reader{B: made.AppendTo(nil)}
		back, err := txn.Read(&r)
		if err != nil || r.Bad || back.Work() != made.Work() || !reflect.DeepEqual(back.AppendTo(nil), made.AppendTo(nil)) {
			t.Fatalf("%q: %+v came back as %+v, %v", body, made, back, err)
		}
		s := state.New(nil)
		if _, _, err := back.Plan(s, 0); err != nil && problem.Of(err).Status >= 500 {
			t.Errorf("%q: %v", body, err)
		}
	})
}
