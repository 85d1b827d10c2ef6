package limits

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/problem"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowBody is a request whose body comes when it is told to.
type slowBody struct {
	r   *http.Request
	in  *io.PipeWriter
	got chan error // what became of it
}

// slowAnswer lets the budget end the reading of a body as it does on a connection.
type slowAnswer struct {
	*httptest.ResponseRecorder
	end func()
}

func (a slowAnswer) SetReadDeadline(time.Time) error { a.end(); return nil }

// begin begins to read a body of so many bytes.
func (b *BodyBudget) begin(size int64) *slowBody {
	out, in := io.Pipe()
	s := &slowBody{r: httptest.NewRequest("PUT", "/k", out), in: in, got: make(chan error, 1)}
	s.r.ContentLength = size
	w := slowAnswer{httptest.NewRecorder(), func() { _ = in.CloseWithError(context.DeadlineExceeded) }}
	go func() {
		_, err := b.Read(w, s.r, nil, 1<<30)
		if errors.Is(err, problem.ErrOverloaded) && w.Header().Get("Connection") != "close" {
			err = errors.New("the connection is kept")
		}
		_ = out.Close() // nobody reads what is still sent
		s.got <- err
	}()
	return s
}

// Without this unfinished bodies take all memory; or keep others out for as long
// as they like; or small ones, which take nothing, are refused for them.
func TestBodyBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 10
		b := NewBodyBudget(4 * size)
		send := func(s *slowBody, n int) {
			t.Helper()
			if _, err := s.in.Write(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		var slow []*slowBody
		for range 4 { // all but the last byte: the first 4 KiB are free
			slow = append(slow, b.begin(size))
			send(slow[len(slow)-1], size-1)
		}
		if b.used > b.most || b.used < 4*(size-2*BodyFirst) {
			t.Fatalf("%d bytes are taken of %d", b.used, b.most)
		}
		late := b.begin(size)
		_, _ = late.in.Write(make([]byte, size-1)) // it is not read to its end
		if err := <-late.got; !errors.Is(err, problem.ErrOverloaded) {
			t.Fatalf("one too many: %v", err)
		}
		small := b.begin(BodyFirst)
		send(small, BodyFirst)
		if err := <-small.got; err != nil {
			t.Errorf("a small one: %v", err)
		}
		time.Sleep(BodyPatience)
		honest := b.begin(size)
		send(honest, size)
		if err := <-honest.got; err != nil {
			t.Errorf("one that comes when others have been slow: %v", err)
		}
		if err := <-slow[0].got; !errors.Is(err, problem.ErrOverloaded) {
			t.Errorf("the oldest ended with %v", err)
		}
		for _, s := range slow[1:] {
			send(s, 1)
			if err := <-s.got; err != nil {
				t.Errorf("one that nobody had to wait for: %v", err)
			}
		}
		if b.used != 0 || len(b.bodies) != 0 {
			t.Errorf("%d bytes are taken by %d bodies in the end", b.used, len(b.bodies))
		}
		large := b.begin(10 * size) // alone, one may be larger than the budget
		send(large, 10*size)
		if err := <-large.got; err != nil {
			t.Errorf("a large one alone: %v", err)
		}
	})
}

// Without this a body of unknown length is not what was sent, or may be larger
// than is allowed.
func TestBodyOfUnknownLength(t *testing.T) {
	b := NewBodyBudget(1 << 20)
	for _, size := range []int{0, 1, BodyFirst - 1, BodyFirst, BodyFirst + 1, 99999, 100000, 100001} {
		want := bytes.Repeat([]byte("v"), size)
		r := httptest.NewRequest("PUT", "/k", io.MultiReader(bytes.NewReader(want)))
		r.ContentLength = -1
		got, err := b.Read(httptest.NewRecorder(), r, []byte("head"), 100000)
		var tooLarge *http.MaxBytesError
		if size > 100000 {
			if !errors.As(err, &tooLarge) {
				t.Errorf("%d bytes: %v", size, err)
			}
		} else if err != nil || string(got) != "head"+string(want) {
			t.Errorf("%d bytes: got %d: %v", size, len(got), err)
		}
	}
	if b.used != 0 {
		t.Errorf("%d bytes are taken in the end", b.used)
	}
	r := httptest.NewRequest("PUT", "/k", strings.NewReader("short"))
	r.ContentLength = 6
	if _, err := b.Read(httptest.NewRecorder(), r, nil, 10); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body that is shorter than it said: %v", err)
	}
}
