package logging

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Lines that repeat themselves: the first is written at once, the others of the
// same minute are counted, and at its end the newest of them is written with
// their number. (zap's sampler decides before it knows a line's fields, and
// drops lines without a word.)

const (
	// repeatWindow is how often a line that repeats itself is written.
	repeatWindow = time.Minute
	// newsBurst is how many lines of one message that are marked as news are
	// written in a repeatWindow before they, too, are counted.
	newsBurst = 10
	// maxLineKinds bounds how many lines are told apart at once. Beyond it those
	// of one logger and level count as one kind.
	maxLineKinds = 1024
)

// News marks a line that tells of a change. Two that look alike are two changes,
// such as a member that was down twice, and not a repeat.
var News = zap.Field{Key: "news", Type: zapcore.SkipType}

// repeats knows the lines of the last minute.
type repeats struct {
	mu     sync.Mutex
	kinds  map[string]*lineKind
	looked time.Time // when forget last did
}

// lineKind is the lines that count as the same.
type lineKind struct {
	ends time.Time // of the present window
	said int       // lines written in it
	held int       // lines held back in it

	// The newest that was held back.
	core   zapcore.Core
	entry  zapcore.Entry
	fields []zapcore.Field
}

func newRepeats() *repeats { return &repeats{kinds: make(map[string]*lineKind)} }

// admit reports whether a line is to be written now. If not, it is counted.
func (r *repeats) admit(core zapcore.Core, e zapcore.Entry, fields []zapcore.Field) bool {
	if e.Level < zapcore.InfoLevel || e.Level > zapcore.ErrorLevel {
		return true // whoever turns debug on wants all of it; a panic comes once
	}
	key, burst := kindOfLine(e, fields)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kinds[key] == nil && len(r.kinds) >= maxLineKinds && !r.forget(now) {
		key = fmt.Sprintf("%d %s", e.Level, e.LoggerName)
	}
	k := r.kinds[key]
	if k == nil || k.held == 0 && !now.Before(k.ends) {
		r.kinds[key] = &lineKind{ends: now.Add(repeatWindow), said: 1}
		return true
	}
	if k.said < burst {
		k.said++
		return true
	}
	if k.held == 0 {
		time.AfterFunc(k.ends.Sub(now), func() { _ = r.endWindow(k) }) // the log is where errors go
	}
	k.held++
	k.core, k.entry, k.fields = core, e, freeze(fields)
	return false
}

// forget drops the kinds of which there was none lately, and reports whether
// there is room for another. It looks once a second at most. The caller holds r.mu.
func (r *repeats) forget(now time.Time) bool {
	if now.Sub(r.looked) < time.Second {
		return false
	}
	r.looked = now
	for key, k := range r.kinds {
		if k.held == 0 && !now.Before(k.ends) {
			delete(r.kinds, key)
		}
	}
	return len(r.kinds) < maxLineKinds
}

// endWindow writes what was held back of one kind. In the next window there is
// nothing of it before its end.
func (r *repeats) endWindow(k *lineKind) error {
	r.mu.Lock()
	held, core, e, fields := k.held, k.core, k.entry, k.fields
	e.Time = time.Now()
	k.held, k.core, k.fields = 0, nil, nil
	k.said, k.ends = newsBurst, e.Time.Add(repeatWindow)
	r.mu.Unlock()
	if held == 0 {
		return nil // flush was here
	}
	return core.Write(e, append(fields, zap.Int("repeated", held)))
}

// flush writes all that was held back.
func (r *repeats) flush() error {
	r.mu.Lock()
	var kinds []*lineKind
	for _, k := range r.kinds {
		if k.held > 0 {
			kinds = append(kinds, k)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, k := range kinds {
		errs = append(errs, r.endWindow(k))
	}
	return errors.Join(errs...)
}

// kindOfLine returns what lines must have in common to count as repeats, and how
// many of them may be written in a window. Numbers within a text, as those of a
// term or a port, do not count, nor does how long something took; of news,
// nothing but the message does.
func kindOfLine(e zapcore.Entry, fields []zapcore.Field) (key string, burst int) {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %s", e.Level, e.LoggerName, withoutNumbers(e.Message))
	if slices.ContainsFunc(fields, func(f zapcore.Field) bool { return f.Equals(News) }) {
		return b.String(), newsBurst
	}
	for _, f := range fields {
		switch f.Type {
		case zapcore.SkipType, zapcore.DurationType, zapcore.TimeType, zapcore.TimeFullType:
		default:
			value := valueOf(f)
			if err, ok := value.(string); ok && f.Type == zapcore.ErrorType {
				value = withoutNumbers(err)
			}
			fmt.Fprintf(&b, " %s=%v", f.Key, value)
		}
	}
	return b.String(), 1
}

// withoutNumbers puts # for each run of digits.
func withoutNumbers(s string) string {
	var b strings.Builder
	digit := false
	for _, c := range s {
		was := digit
		digit = c >= '0' && c <= '9'
		switch {
		case !digit:
			b.WriteRune(c)
		case !was:
			b.WriteByte('#')
		}
	}
	return b.String()
}

// valueOf returns what a field says, as a value that does not change any more.
func valueOf(f zapcore.Field) any {
	m := zapcore.NewMapObjectEncoder()
	f.AddTo(m)
	return m.Fields[f.Key]
}

// freeze makes fields that do not change any more, whatever they tell of does.
func freeze(fields []zapcore.Field) []zapcore.Field {
	frozen := make([]zapcore.Field, 0, len(fields)+1)
	for _, f := range fields {
		switch {
		case f.Type == zapcore.ReflectType:
			f = zap.String(f.Key, fmt.Sprint(f.Interface))
		case f.Interface != nil && f.Type != zapcore.TimeType:
			f = zap.Any(f.Key, valueOf(f))
		}
		frozen = append(frozen, f)
	}
	return frozen
}
