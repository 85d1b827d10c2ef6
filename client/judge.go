package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// broken judges an attempt that got no answer, or not the whole of it.
func (k *call) broken(ctx context.Context, e *endpoint, err error, sent bool) outcome {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	o := outcome{err: &Error{Endpoint: e.base, cause: err}, unknown: sent && k.r.effect != reading, again: true}
	var (
		config configError
		op     *net.OpError
		cert   *tls.CertificateVerificationError
		noTLS  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &config), errors.Is(err, ErrClosed):
		o.again = false
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate"):
		o.hopeless, o.unknown = true, false // the node did not take ours, so it has read nothing
	case errors.As(err, &cert), errors.As(err, &noTLS):
		o.hopeless = true
	}
	return o
}

// silentError ends an attempt whose endpoint has said nothing for too long.
type silentError struct{ limit time.Duration }

func (e silentError) Error() string { return fmt.Sprintf("nothing came for %v", e.limit) }

// Timeout makes it an error of time, as those of package net.
func (e silentError) Timeout() bool { return true }

// errNotTried is why a call failed whose time was over before it began.
var errNotTried = errors.New("no endpoint was asked")

// problem is the body of an answer that is an error.
type problem struct {
	Code    Code   `json:"code"`
	Detail  string `json:"detail"`
	Outcome string `json:"outcome"`
	Retry   bool   `json:"retry"`
}

// judge says what an answer means.
func (k *call) judge(e *endpoint, resp *http.Response, body []byte) outcome {
	cluster := resp.Header.Get("Raftkv-Cluster-Id")
	if o := k.sameCluster(e, cluster); o != nil {
		o.unknown = o.unknown && k.isAnswer(resp.StatusCode)
		return *o
	}
	if r, err := strconv.ParseUint(resp.Header.Get("Raftkv-Revision"), 10, 64); err == nil {
		k.sawRevision(r)
	}
	if k.isAnswer(resp.StatusCode) && (cluster != "" || k.r.bare) {
		if k.r.only == nil {
			k.endpoints.served(e)
		}
		return outcome{answer: &answer{status: resp.StatusCode, header: resp.Header, body: body, from: e}}
	}
	p, known := problemOf(resp, body)
	err := &Error{Endpoint: e.base, Status: resp.StatusCode, Code: p.Code, Detail: p.Detail, Revision: tagOf(resp.Header)}
	o := outcome{err: err, unknown: p.Outcome == "unknown" && k.r.effect != reading, hopeless: !p.Retry}
	if !known {
		err.cause = ErrStranger
		o.again = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
		o.unknown = k.r.effect != reading && (resp.StatusCode >= 500 || k.isAnswer(resp.StatusCode))
		o.hopeless = false
		return o
	}
	err.cause = p.Code
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	o.after = time.Duration(min(max(seconds, 0), 60)) * time.Second
	switch s := resp.StatusCode; {
	case s == http.StatusServiceUnavailable, s == http.StatusInternalServerError:
		o.again = true
	case s == http.StatusTooManyRequests, s == http.StatusGatewayTimeout, s == http.StatusRequestTimeout, seconds > 0:
		o.again, o.hopeless = true, false
	default:
		o.definite = fromLog(p.Code)
	}
	return o
}

// fromLog reports whether an error is what became of all attempts: it was decided where
// writes are in one order, and is given again to each attempt with the same key.
func fromLog(code Code) bool {
	switch code {
	case NotFound, NoSuchLease, PreconditionFailed, NotANumber, OutOfRange, LeaseFull:
		return true
	}
	return false
}

// sameCluster holds an answer against those before it. It returns nil if they are of one cluster.
func (k *call) sameCluster(e *endpoint, id string) *outcome {
	if id == "" {
		return nil
	}
	if k.cluster.Load() == nil {
		k.cluster.CompareAndSwap(nil, &id)
	}
	first := *k.cluster.Load()
	if first == id {
		return nil
	}
	k.endpoints.foreign(e, id)
	err := fmt.Errorf("%w: %s is of cluster %s, those before it of %s", ErrOtherCluster, e.base, id, first)
	return &outcome{err: &Error{Endpoint: e.base, cause: err}, unknown: k.r.effect != reading}
}

// problemOf reads an answer that is an error. It reports whether a node said it.
func problemOf(resp *http.Response, body []byte) (problem, bool) {
	var p problem
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if strings.TrimSpace(kind) == "application/problem+json" && json.Unmarshal(body, &p) == nil && p.Code != "" {
		return p, true
	}
	text := fmt.Sprintf("%d %s, and not from a node of raftkv", resp.StatusCode, http.StatusText(resp.StatusCode))
	if to := resp.Header.Get("Location"); to != "" && resp.StatusCode >= 300 && resp.StatusCode < 400 {
		text += fmt.Sprintf(", to %q, which is not followed", clip(to, maxShown))
	}
	return problem{Detail: fmt.Sprintf("%s: %q", text, strings.ToValidUTF8(clip(string(body), maxShown), "?"))}, false
}

// tagOf returns the revision in an ETag; 0 if there is none.
func tagOf(h http.Header) uint64 {
	r, err := strconv.ParseUint(strings.Trim(h.Get("Etag"), `"`), 10, 64)
	if err != nil {
		return 0
	}
	return r
}
