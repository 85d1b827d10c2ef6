// Package rights answers: who may do what? A file names who there is, by which tokens or
// certificate each is recognized, and which rights each has. A request becomes needs, which are
// made of what it says alone, and a caller has them or has not: nothing is looked up, so that
// a refusal tells nothing of what there is. The package knows no routes; package access does.
package rights

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"raftkv/internal/meter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// lookEvery is the time between two looks at the file.
const lookEvery = 3 * time.Second

// Config is what a Keeper needs.
type Config struct {
	Log   *zap.Logger
	File  string
	Every time.Duration // between two looks at the file; 0: lookEvery
}

// Keeper keeps the rights that are in force: those of the file as it was last good.
type Keeper struct {
	cfg   Config
	table atomic.Pointer[Table]

	mu       sync.Mutex
	text     []byte // of the last look
	trouble  error
	onChange []func()
	holds    map[*hold]struct{}

	loaded, failed atomic.Uint64 // looks that found another text
	failures       failures
}

// New reads the file. The error says what is wrong with it.
func New(cfg Config) (*Keeper, error) {
	if cfg.Every == 0 {
		cfg.Every = lookEvery
	}
	k := &Keeper{cfg: cfg, holds: map[*hold]struct{}{}}
	text, err := read(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("the file of rights: %w", err)
	}
	t, warnings, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the file of rights, %s: %w", cfg.File, err)
	}
	k.text = text
	k.table.Store(t)
	k.say(t, warnings)
	return k, nil
}

// read reads a file that is not too large.
func read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	return text, nil
}

func (k *Keeper) say(t *Table, warnings []Warning) {
	hash := t.Hash()
	k.cfg.Log.Info("rights are in force", zap.String("file", k.cfg.File), zap.Int("entries", t.names), zap.String("sha256", hex.EncodeToString(hash[:])))
	for _, w := range warnings {
		k.cfg.Log.Warn("the file of rights allows what may not be meant", zap.String("file", k.cfg.File), zap.Int("line", w.Line), zap.String("what", w.Text))
	}
}

// Table returns the rights that are in force.
func (k *Keeper) Table() *Table { return k.table.Load() }

// Trouble returns nil, or why the file as it is now is not in force.
func (k *Keeper) Trouble() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trouble
}

// OnChange has f called after each change that is in force.
func (k *Keeper) OnChange(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onChange = append(k.onChange, f)
}

// Run looks at the file until ctx ends, and tells of failures.
func (k *Keeper) Run(ctx context.Context) error {
	look, tell := time.NewTicker(k.cfg.Every), time.NewTicker(tellEvery)
	defer look.Stop()
	defer tell.Stop()
	for {
		select {
		case <-look.C:
			k.Look()
		case <-tell.C:
			k.failures.tell(k.cfg.Log)
		case <-ctx.Done():
			return nil
		}
	}
}

// Look compares the file with what it was. Another text is in force from now on if it is
// good; else the rights stay as they are. It is called by one goroutine at a time.
func (k *Keeper) Look() {
	text, err := read(k.cfg.File) // its disk may not answer: nobody else waits for that
	k.mu.Lock()
	if err == nil && bytes.Equal(text, k.text) {
		k.mu.Unlock() // nothing new; a trouble with this text stays
		return
	}
	var t *Table
	var warnings []Warning
	if err == nil {
		k.text = text
		t, warnings, err = Parse(text)
	} else {
		k.text = nil // once it can be read again it is looked at again
	}
	if err != nil {
		if k.trouble == nil || k.trouble.Error() != err.Error() {
			k.failed.Add(1)
			k.cfg.Log.Error("the file of rights is not in force; those from before are", zap.String("file", k.cfg.File), zap.Error(err))
		}
		k.trouble = err
		k.mu.Unlock()
		return
	}
	k.trouble = nil
	old := k.table.Swap(t)
	k.loaded.Add(1)
	close(old.over)
	k.say(t, warnings)
	calls := k.onChange
	held := make([]*hold, 0, len(k.holds))
	for h := range k.holds {
		held = append(held, h)
	}
	k.mu.Unlock()
	for _, h := range held {
		h.check()
	}
	for _, f := range calls {
		f()
	}
}

// Admit returns a context that knows who asks.
func (k *Keeper) Admit(ctx context.Context, s Shown) (context.Context, *Caller, error) {
	c, err := k.Table().Identify(s.Names, s.Authorization)
	if err != nil {
		return ctx, nil, err
	}
	return context.WithValue(ctx, contextKey{}, &admitted{c, k, s}), c, nil
}

// hold is something that lasts, and for which a right is needed for as long.
type hold struct {
	keeper *Keeper
	shown  Shown
	needs  []Need

	mu   sync.Mutex
	lost func(error) // nil: it was called, or is not to be any more
}

// check calls lost if the rights that are in force are not enough.
func (h *hold) check() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil {
		return
	}
	if err := h.keeper.Still(h.shown, h.needs...); err != nil {
		h.lost(err)
		h.lost = nil
	}
}

// end has lost not be called any more. It returns only when that is not running.
func (h *hold) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = nil
}

// WhileMay has lost called, once, with what May says, if the caller of a request may no
// longer do what it needs, because the file has changed. It is called at once if that is so
// already. stop ends that, and returns only when lost is not running; lost must not call it.
func WhileMay(ctx context.Context, lost func(error), needs ...Need) (stop func()) {
	a, ok := ctx.Value(contextKey{}).(*admitted)
	if !ok || a.keeper == nil {
		return func() {}
	}
	h := &hold{keeper: a.keeper, shown: a.shown, needs: needs, lost: lost}
	k := a.keeper
	k.mu.Lock()
	k.holds[h] = struct{}{}
	k.mu.Unlock()
	h.check() // it may have changed since the request was admitted
	return func() {
		h.end()
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.holds, h)
	}
}

// Still returns nil if the caller of a request may do what it needs by the rights that are in
// force now: for what has waited since the request was admitted.
func Still(ctx context.Context, needs ...Need) error {
	a, ok := ctx.Value(contextKey{}).(*admitted)
	if !ok || a.keeper == nil {
		return nil
	}
	return a.keeper.Still(a.shown, needs...)
}

// Still is Still of a request that has shown s.
func (k *Keeper) Still(s Shown, needs ...Need) error {
	c, err := k.Table().Identify(s.Names, s.Authorization)
	if err != nil {
		return err
	}
	return c.May(needs...)
}

// Register adds what there is to count.
func (k *Keeper) Register(reg prometheus.Registerer) {
	meter.Counters(reg, "raftkv_auth_failures_total", "Requests that were refused for want of a right, by why: unauthenticated, because it is not known who asks, or forbidden.",
		"reason", map[string]func() uint64{"unauthenticated": k.failures.unknown.Load, "forbidden": k.failures.forbidden.Load})
	meter.Counters(reg, "raftkv_auth_reloads_total", "Changes of the file of rights that were noticed, by whether they are in force.",
		"result", map[string]func() uint64{"ok": k.loaded.Load, "failed": k.failed.Load})
	meter.Gauge(reg, "raftkv_auth_trouble", "1 if the file of rights as it is now is not in force.", func() float64 {
		if k.Trouble() != nil {
			return 1
		}
		return 0
	})
}
