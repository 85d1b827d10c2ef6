package front

import (
	"net"
	"net/http"
	"raftkv/internal/front/nowait"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strconv"
	"sync"
)

// answers are the connections whose requests are to be answered. Whoever ends a round
// puts all of them in; the answering goroutine takes all that there are.
type answers struct {
	mu   sync.Mutex
	due  []*conn
	kick chan struct{}
}

// Done implements rounds.Waiter.
func (c *conn) Done(res state.Result) {
	c.res = res
	c.srv.answers.put(c)
}

func (a *answers) put(c *conn) {
	a.mu.Lock()
	a.due = append(a.due, c)
	first := len(a.due) == 1
	a.mu.Unlock()
	if !first {
		return
	}
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// take returns all that is due, and keeps spare for what comes next.
func (a *answers) take(spare []*conn) []*conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := a.due
	a.due = spare[:0]
	return due
}

// writer is what the answering goroutine writes with.
type writer struct {
	*nowait.Writer
	out []byte // what is written to one connection after the other
}

// answer answers, until the server is closed.
func (s *Server) answer() {
	var due []*conn
	w := &writer{Writer: nowait.NewWriter()}
	for {
		select {
		case <-s.answers.kick:
		case <-s.closed:
			return
		}
		due = s.answers.take(due)
		for _, c := range due {
			c.reply(w)
		}
		clear(due)
	}
}

// reply answers a request that has waited. It never waits for the client.
func (c *conn) reply(w *writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			c.caught(p)
			c.waits, c.broken = false, true
			c.rouse()
		}
	}()
	if !c.waits {
		return // the client has hung up
	}
	(*c.srv.handler.Load()).Finish(&c.req, c.res)
	var value []byte
	w.out, value = c.render(w.out[:0])
	c.count()
	rest, err := c.try(w, value)
	c.waits = false
	switch {
	case err != nil:
		c.broken = true
	case rest != nil:
		c.rest = rest
	case !c.closing:
		c.clock.enter(idle, c.srv.until(c.srv.limits.Idle))
		if c.sleeps || c.more {
			c.rouse() // else what comes next does
		}
		return
	}
	c.rouse()
}

// buffers returns what is to be written, the second only if there is anything.
func buffers(a, b []byte) net.Buffers {
	if len(b) == 0 {
		return net.Buffers{a}
	}
	return net.Buffers{a, b}
}

// render appends the request's answer to out, but for a value that is too large to be
// copied, which it returns.
func (c *conn) render(out []byte) (head, value []byte) {
	a := &c.req.Answer
	status, body := a.Status, a.Body
	var more []web.Field
	if a.Err != nil {
		status, more, body = web.Problem(a.Err)
		c.closing = c.closing || a.Close
	}
	c.closing = c.closing || c.client.IsExpired()
	c.srv.served.Add(1)
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, "\r\nDate: "...)
	out = append(out, *c.srv.date.Load()...)
	out = append(out, *c.srv.always.Load()...)
	asks := false
	for _, fields := range [...][]web.Field{a.Fields(), more} {
		for _, f := range fields {
			asks = asks || f.Name == "Cache-Control"
			out = appendField(out, f.Name, f.Value)
		}
	}
	if !asks {
		out = appendField(out, "Cache-Control", web.CacheNever[0])
	}
	if c.closing {
		out = appendField(out, "Connection", "close")
	}
	if status != http.StatusNoContent && status != http.StatusNotModified {
		out = append(out, "\r\nContent-Length: "...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
	}
	out = append(out, "\r\n\r\n"...)
	switch {
	case c.req.Method == http.MethodHead:
		return out, nil
	case len(body) > maxInline:
		return out, body
	}
	return append(out, body...), nil
}

func appendField(out []byte, name, value string) []byte {
	out = append(out, "\r\n"...)
	out = append(out, name...)
	out = append(out, ": "...)
	return append(out, value...)
}
