package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/problem"
	"strings"
	"testing"
)

// Guarantee: of the body of a refused request in HTTP/2 so much is taken and no more; of
// one in HTTP/1 nothing, since net/http does it.
func TestProblemTakesRest(t *testing.T) {
	const long = http2Rest + 1<<10
	for _, tt := range []struct{ proto, length, left int }{
		{2, 1, 0}, {2, http2Rest, 0}, {2, http2Rest + 1, 1}, {2, long, 1 << 10}, {1, 1, 1},
	} {
		body := strings.NewReader(strings.Repeat("x", tt.length))
		w := httptest.NewRecorder()
		WriteProblem(w, &http.Request{ProtoMajor: tt.proto, Body: io.NopCloser(body)}, problem.ErrTooLarge)
		if body.Len() != tt.left || w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%+v: %d bytes are left, %d", tt, body.Len(), w.Code)
		}
	}
	w := httptest.NewRecorder()
	if WriteProblem(w, nil, problem.ErrOverloaded); w.Code != http.StatusTooManyRequests {
		t.Error(w.Code)
	}
}
