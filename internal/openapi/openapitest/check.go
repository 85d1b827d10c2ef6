package openapitest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// maxBody is how much of a body is kept to be looked at. Of a longer one status and headers
// are.
const maxBody = 1 << 20

// Of returns the exchange of a request and of an answer whose body was read; with whole it
// came to its end.
func Of(r *http.Request, status int, header http.Header, body []byte, whole bool) *Exchange {
	x := &Exchange{Method: r.Method, URL: r.URL, Sent: r.Header, Status: status, Header: header, Answer: body, Whole: whole && len(body) <= maxBody}
	if r.GetBody == nil || r.ContentLength > maxBody {
		return x
	}
	sent, err := r.GetBody()
	if err != nil {
		return x
	}
	defer func() { _ = sent.Close() }()
	if text, err := io.ReadAll(io.LimitReader(sent, maxBody+1)); err == nil && len(text) <= maxBody {
		x.Body = text
	}
	return x
}

// Check fails a test if the document does not describe an exchange.
func Check(t testing.TB, x *Exchange) {
	t.Helper()
	d, err := Served()
	if err == nil {
		err = d.Check(x)
	}
	if err != nil {
		t.Error(err)
	}
}

// Serve has a handler answer a request, and checks the answer.
func Serve(t testing.TB, h http.Handler, w *httptest.ResponseRecorder, r *http.Request) {
	t.Helper()
	method, target := r.Method, *r.URL
	h.ServeHTTP(w, r)
	res := w.Result() // what a handler does to its headers later no client sees
	x := Of(r, res.StatusCode, res.Header, w.Body.Bytes(), true)
	x.Method, x.URL = method, &target
	if method == http.MethodHead {
		x.Answer = nil // no client sees that either
	}
	Check(t, x)
}

// Transport returns a transport that checks the answers that come over another. A body is
// looked at once it was read to its end.
func Transport(t testing.TB, over http.RoundTripper) http.RoundTripper {
	return transport{t, over}
}

type transport struct {
	t    testing.TB
	over http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (c transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.over.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, t: c.t, r: r, status: resp.StatusCode, header: resp.Header.Clone()}
	return resp, nil
}

// CloseIdleConnections is what http.Client uses.
func (c transport) CloseIdleConnections() {
	if over, ok := c.over.(interface{ CloseIdleConnections() }); ok {
		over.CloseIdleConnections()
	}
}

// watched is the body of an answer that is checked when it ends, or is given up.
type watched struct {
	io.ReadCloser
	t      testing.TB
	r      *http.Request
	status int
	header http.Header
	seen   bytes.Buffer
	long   bool // seen is not all
	done   bool
}

// Read keeps what it reads, up to a bound.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.long = w.long || w.seen.Len()+n > maxBody; w.long {
		w.seen = bytes.Buffer{}
	} else {
		w.seen.Write(p[:n])
	}
	if err != nil {
		w.check(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close closes the body.
func (w *watched) Close() error {
	w.check(false)
	return w.ReadCloser.Close()
}

func (w *watched) check(whole bool) {
	if w.done {
		return
	}
	w.done = true
	Check(w.t, Of(w.r, w.status, w.header, w.seen.Bytes(), whole && !w.long))
}
