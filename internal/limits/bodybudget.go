package limits

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/rounds"
	"slices"
	"sync"
	"time"
)

// BodyBudget bounds the memory of all request bodies that have not arrived whole,
// together. A body is read in pieces that grow with what has come, and each but
// the first is taken from the budget. When it is spent, bodies that have taken
// long give way, the oldest first, and others wait a little before they are refused.
// The oldest never waits, so that they do not all wait for each other.
type BodyBudget struct {
	most int64

	mu      sync.Mutex
	used    int64
	bodies  []*heldBody   // those that hold something, in the order of their beginning
	changed chan struct{} // closed when something was given back
}

const (
	// BodyBudgetBytes is as much as the proposer's queue takes.
	BodyBudgetBytes = rounds.MaxQueuedBytes
	// BodyFirst is the first piece, which is free: small writers are never
	// refused, and the buffers of a connection take more.
	BodyFirst = 4 << 10
	// BodyPatience is how long a body keeps what it holds when others need it.
	BodyPatience = 2 * time.Second
	// bodyWait is how long a body waits for others to end.
	bodyWait = time.Second
)

// heldBody is what one body holds of the budget.
type heldBody struct {
	began time.Time
	held  int64
	cut   func() // ends the reading
	isCut bool
}

// NewBodyBudget returns a budget of so many bytes for all bodies together. The oldest
// body may hold more than there is.
func NewBodyBudget(most int64) *BodyBudget {
	return &BodyBudget{most: most, changed: make(chan struct{})}
}

// take has a body hold n bytes more.
func (b *BodyBudget) take(h *heldBody, n int64) error {
	end := time.NewTimer(bodyWait)
	defer end.Stop()
	for {
		b.mu.Lock()
		oldest := len(b.bodies) == 0 || b.bodies[0] == h
		if b.used+n <= b.most || oldest {
			if h.held == 0 {
				b.bodies = append(b.bodies, h)
			}
			b.used += n
			h.held += n
			b.mu.Unlock()
			return nil
		}
		b.cutOld(h, b.used+n-b.most)
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-end.C:
			return errTooManyBodies
		}
	}
}

// Try holds n bytes, if there is room for them now, until they are released.
func (b *BodyBudget) Try(n int64) (release func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.most {
		return nil, false
	}
	b.used += n
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.giveBack(n)
	}, true
}

// errTooManyBodies: more bodies are on their way than there is memory for.
var errTooManyBodies = fmt.Errorf("%w: more bodies are under way than it has memory for", problem.ErrOverloaded)

// cutOld ends bodies that have taken long until so much comes back. The caller
// holds mu.
func (b *BodyBudget) cutOld(but *heldBody, n int64) {
	for _, h := range b.bodies {
		if n <= 0 {
			break
		}
		if h == but || time.Since(h.began) < BodyPatience {
			continue
		}
		if !h.isCut {
			h.isCut = true
			h.cut()
		}
		n -= h.held
	}
}

// done gives back what a body holds, and reports whether it was cut.
func (b *BodyBudget) done(h *heldBody) (cut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.held > 0 {
		b.bodies = slices.DeleteFunc(b.bodies, func(o *heldBody) bool { return o == h })
		b.giveBack(h.held)
		h.held = 0
	}
	return h.isCut
}

// giveBack tells those who wait that there is room. The caller holds mu.
func (b *BodyBudget) giveBack(n int64) {
	b.used -= n
	close(b.changed)
	b.changed = make(chan struct{})
}

// Read appends a request's body to buf: all that it announces or, if it does not
// say, up to its end, which is past most an error.
func (b *BodyBudget) Read(w http.ResponseWriter, r *http.Request, buf []byte, most int64) ([]byte, error) {
	conn := http.NewResponseController(w)
	h := &heldBody{began: time.Now(), cut: func() { _ = conn.SetReadDeadline(time.Now()) }}
	buf, err := b.readPieces(h, r, buf, most)
	if b.done(h) {
		// Also if the rest came all the same: the connection's deadline is over,
		// which would look as if the client had hung up.
		err = errTooManyBodies
	}
	var tooLarge *http.MaxBytesError
	if errors.Is(err, problem.ErrOverloaded) || errors.As(err, &tooLarge) {
		w.Header().Set("Connection", "close") // what is left of the body is not read
	}
	return buf, err
}

func (b *BodyBudget) readPieces(h *heldBody, r *http.Request, buf []byte, most int64) ([]byte, error) {
	known, head := r.ContentLength >= 0, len(buf)
	left := r.ContentLength
	if !known {
		left = most + 1 // one more, to see that it is too large
	}
	for piece := int64(BodyFirst); left > 0; piece = max(BodyFirst, int64(len(buf))) {
		piece = min(piece, left)
		if h.held > 0 || piece > BodyFirst {
			if err := b.take(h, piece); err != nil {
				return buf, err
			}
		}
		buf = slices.Grow(buf, int(piece))
		for end := len(buf) + int(piece); len(buf) < end; {
			n, err := r.Body.Read(buf[len(buf):end])
			buf = buf[:len(buf)+n]
			left -= int64(n)
			switch {
			case err == nil, known && left == 0:
			case !known && errors.Is(err, io.EOF):
				return buf, sized(int64(len(buf)-head), most)
			case errors.Is(err, io.EOF):
				return buf, io.ErrUnexpectedEOF
			default:
				return buf, err
			}
		}
	}
	return buf, sized(int64(len(buf)-head), most)
}

func sized(n, most int64) error {
	if n > most {
		return &http.MaxBytesError{Limit: most}
	}
	return nil
}
