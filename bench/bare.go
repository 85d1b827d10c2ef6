package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// bare is a ceiling: what net/http leaves of a machine to a server that does
// nothing but what raftkv must do with a request: the checks, the limits, the
// headers. It keeps its keys in a map, alone, in memory, gone with its process.
type bare struct {
	self string // path of this program
}

func (b bare) command(_ *cluster, n *node) []string {
	return []string{b.self, bareCommand, "-listen", n.client}
}

func (b bare) ready(n *node) error { return ask("GET", "http://"+n.client+"/readyz", "", nil) }

func (b bare) state(*node) (nodeState, error) { return nodeState{leads: true}, nil }

// The limits of raftkv's own server, with its default --request-timeout and
// --max-value-size.
const (
	requestTimeout = 5 * time.Second
	maxValueSize   = 1 << 20
	maxKeySize     = 4096
)

// serveBare is the process of the bare handler.
func serveBare(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet(bareCommand, flag.ContinueOnError)
	addr := fs.String("listen", "", "host:port")
	if err := fs.Parse(args); err != nil {
		return err
	}
	server := &http.Server{
		Addr:              *addr,
		Handler:           newBareHandler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30*time.Second + requestTimeout,
		WriteTimeout:      60*time.Second + requestTimeout,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // nobody is to be told of an error now
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type bareItem struct {
	value    []byte
	revision uint64
}

type bareHandler struct {
	cross    *http.CrossOriginProtection
	mu       sync.RWMutex
	items    map[string]bareItem
	revision uint64
}

func newBareHandler() *bareHandler {
	return &bareHandler{items: map[string]bareItem{}, cross: http.NewCrossOriginProtection()}
}

// ServeHTTP makes the checks that raftkv makes, and answers.
func (b *bareHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, ok := strings.CutPrefix(r.URL.Path, "/")
	stale, queryOK := isStale(r)
	switch {
	case !localHost(r.Host):
		http.Error(w, "wrong host", http.StatusMisdirectedRequest)
	case b.cross.Check(r) != nil:
		http.Error(w, "cross origin", http.StatusForbidden)
	case key == "readyz":
	case !ok || key == "" || len(key) > maxKeySize || !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0:
		http.Error(w, "bad key", http.StatusBadRequest)
	case !queryOK || r.Header["If-Match"] != nil || r.Header["If-None-Match"] != nil || r.Header["Idempotency-Key"] != nil:
		http.Error(w, "not served here", http.StatusBadRequest)
	case r.Method == http.MethodGet:
		b.get(w, key, stale)
	case r.Method == http.MethodPut:
		b.put(w, r, key)
	default:
		http.Error(w, "not served here", http.StatusMethodNotAllowed)
	}
}

// localHost is raftkv's check of the Host header.
func localHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return host == "localhost" || net.ParseIP(host) != nil
}

func isStale(r *http.Request) (stale, ok bool) {
	if r.URL.RawQuery == "" && !r.URL.ForceQuery {
		return false, true
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	stale = q.Get("consistency") == "stale"
	return stale, err == nil && len(q) == 1 && stale
}

func (b *bareHandler) get(w http.ResponseWriter, key string, stale bool) {
	b.mu.RLock()
	it, ok := b.items[key]
	revision := b.revision
	b.mu.RUnlock()
	if !ok {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	h := w.Header()
	h["Raftkv-Consistency"] = []string{"linearizable"}
	if stale {
		h["Raftkv-Consistency"] = []string{"stale"}
		h["Raftkv-Leader-Contact"] = []string{"0"}
	}
	h["Raftkv-Revision"] = []string{strconv.FormatUint(revision, 10)}
	h["Etag"] = []string{`"` + strconv.FormatUint(it.revision, 10) + `"`}
	h["Content-Type"] = []string{"application/octet-stream"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(it.value))}
	_, _ = w.Write(it.value) // a client that went away is no fault
}

func (b *bareHandler) put(w http.ResponseWriter, r *http.Request, key string) {
	if r.ContentLength < 0 || r.ContentLength > maxValueSize {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	var buf bytes.Buffer
	buf.Grow(int(min(r.ContentLength, 32<<10)))
	if _, err := io.CopyN(&buf, r.Body, r.ContentLength); err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	b.revision++
	revision := b.revision
	b.items[key] = bareItem{value: buf.Bytes(), revision: revision}
	b.mu.Unlock()
	h := w.Header()
	text := strconv.FormatUint(revision, 10)
	h["Etag"] = []string{`"` + text + `"`}
	h["Raftkv-Revision"] = []string{text}
	w.WriteHeader(http.StatusNoContent)
}
