package admin

import (
	"io"
	"net/http"
	"raftkv/internal/openapi"
	"raftkv/internal/problem"
	"raftkv/internal/web"
)

// ServeErrors answers GET /v1/errors with what there is to know of errors, which is where
// the type of each leads.
func ServeErrors(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, problem.Page())
	return web.IgnoreWriteError(err)
}

// ServeOpenAPI answers GET /v1/openapi.yaml with what describes all requests and answers
// to programs.
func ServeOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml") // RFC 9512
	_, err := io.WriteString(w, openapi.Document)
	return web.IgnoreWriteError(err)
}

// ServeHelp answers GET / with what this is and where to go next.
func ServeHelp(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return web.NotAllowed(w, "GET, HEAD")
	}
	if err := web.NoQuery(r); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, `raftkv: a replicated key-value store.

  curl -X PUT -d hello http://HOST/my-key     write a key
  curl http://HOST/my-key                     read it, on any node
  curl -X DELETE http://HOST/v1/kv/my-key     delete it
  curl http://HOST/v1/kv?prefix=my-           list keys
  curl -N http://HOST/v1/watch?prefix=my-     be told of changes
  curl http://HOST/v1/members                 who is in the cluster
  curl http://HOST/v1/status                  how this node is
  curl -o FILE http://HOST/v1/snapshot        a backup, for raftkv restore
  curl http://HOST/v1/openapi.yaml            all requests and answers, for programs

The README tells the rest.
`)
	return web.IgnoreWriteError(err)
}
