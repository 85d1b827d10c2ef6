package rights

import (
	"errors"
	"raftkv/internal/problem"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// tellEvery is how often failures are told of at most: who tries tokens must not fill the log.
const tellEvery = time.Second

// failures counts requests that were refused for want of a right.
type failures struct {
	unknown, forbidden atomic.Uint64
	toldUnknown        uint64 // as tell has told them; only tell uses them
	toldForbidden      uint64
	last               atomic.Pointer[string] // what the last one was told
}

// Failed counts a request that was refused, if err says that it was for want of a right.
func (k *Keeper) Failed(err error) {
	f := &k.failures
	switch {
	case errors.Is(err, problem.ErrUnauthenticated):
		f.unknown.Add(1)
	case errors.Is(err, problem.ErrForbidden):
		f.forbidden.Add(1)
	default:
		return
	}
	text := err.Error()
	f.last.Store(&text)
}

// tell writes a line of what was refused since it was last called, if anything was. It has no
// token, not even a wrong one: that may be right elsewhere, or right but for a letter.
func (f *failures) tell(log *zap.Logger) {
	unknown, forbidden := f.unknown.Load(), f.forbidden.Load()
	if unknown == f.toldUnknown && forbidden == f.toldForbidden {
		return
	}
	last := ""
	if text := f.last.Load(); text != nil {
		last = *text
	}
	log.Warn("requests were refused for want of a right", zap.Uint64("unauthenticated", unknown-f.toldUnknown),
		zap.Uint64("forbidden", forbidden-f.toldForbidden), zap.String("last", last))
	f.toldUnknown, f.toldForbidden = unknown, forbidden
}
