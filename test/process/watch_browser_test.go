//go:build unix

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// watchPage is the page of a site whose scripts call a node: the client of docs/watch.md, and a plain EventSource that
// has been away for too long. It counts what the browser does by itself.
const watchPage = `<!doctype html><meta charset="utf-8"><title>watch</title><script>
const seen = {open: 0, error: 0, reset: [], unavailable: []};
const Plain = EventSource;
window.EventSource = class extends Plain {
  constructor(url) {
    super(url);
    this.addEventListener("open", () => seen.open++);
    this.addEventListener("error", () => seen.error++);
    for (const event of ["reset", "unavailable"]) this.addEventListener(event, (e) => seen[event].push(JSON.parse(e.data).code));
  }
};
%s
let now = [];
watch("%s/v1/watch?prefix=w/&state=true", (copy) => { now = [...copy.values()].map(({type, ...item}) => item); });

const late = [];
const lateStart = () => {
  const source = new Plain("%s/v1/watch?key=w/late&after_revision=1");
  for (const event of ["reset", "change"]) source.addEventListener(event, (e) => late.push({event, id: e.lastEventId, data: JSON.parse(e.data)}));
};
</script>`

// watchBrowser starts a browser, which shows a page.
func watchBrowser(t *testing.T, url string) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox,
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) { cmd.SysProcAttr = procAttr(syscall.SIGKILL) }))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	testkit.Must(t, chromedp.Do(ctx, chromedp.Navigate(url)))
	return ctx
}

// watchEvaluate has the page evaluate an expression, and decodes what comes of it.
func watchEvaluate(ctx context.Context, expression string, into any) error {
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("JSON.stringify("+expression+")"))
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// Guarantee: a page that keeps a copy by the lines of docs/watch.md, with a browser's own EventSource, ends with what the
// store holds, whoever of the nodes dies, stops and starts again meanwhile, and however long it is cut off.
func TestWatchJavaScript(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster, and a browser")
	}
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skip("chromium is missing: no browser has tried the watch") // also where all tests must run: not every system has it
	}
	t.Parallel() // it mostly waits
	port := procFreePort(t)
	s := newWatchScene(t, "--allowed-origin", procURL(port))
	page := fmt.Sprintf(watchPage, docBlock(t, "docs/watch.md", "js"), s.gates[s.node].url(), s.c.url(s.node))
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	testkit.Must(t, err)
	site := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(page)) // a browser that goes shows no page
	}))
	testkit.Must(t, site.Listener.Close())
	site.Listener = l
	site.Start()
	t.Cleanup(site.Close)
	start := time.Now()
	ctx := watchBrowser(t, site.URL)
	t.Logf("the browser shows the page after %v", time.Since(start))

	type counts struct {
		Open, Error        int
		Reset, Unavailable []string
	}
	seen := func() (n counts) {
		t.Helper()
		testkit.Must(t, watchEvaluate(ctx, "seen", &n))
		return n
	}
	var resets, opens = 0, 0
	equal := func(when string) {
		t.Helper()
		want := s.c.held(s.other(), "w/")
		procEventually(t, watchWithin, when+" the page has what the store holds", func() error {
			var now []watchItem
			if err := watchEvaluate(ctx, "now", &now); err != nil {
				return err
			}
			if err := watchDiffers(watchCopy(now), want); err != nil {
				want = s.c.held(s.other(), "w/") // keys go away by themselves
				return err
			}
			return nil
		})
	}
	s.run(func(when string) {
		t.Helper()
		equal(when)
		n := seen()
		switch when {
		case "at the beginning", "after a reset":
			resets++
			opens++
		case "after the node has been started again":
			opens++
		}
		if strings.Join(n.Reset, " ") != strings.Join([]string{"start", "history_gone"}[:resets], " ") || n.Open != opens {
			t.Errorf("%s: resets %v, %d connections; want %d and %d", when, n.Reset, n.Open, resets, opens)
		}
		t.Logf("%s after %v: %+v", when, time.Since(start), n)
	})

	// The state that follows a reset breaks off, and the browser comes back to a node that remembers all that was before the
	// reset: to go on there would leave out what the page has forgotten.
	remembers := s.other()
	s.c.stop(remembers)
	args := s.c.nodes[remembers].args
	args[len(args)-1] = "64MiB" // of --watch-history
	s.c.start(remembers)        // and replays its whole log
	s.away("twice away", "w/end")
	end := s.gates[s.node].cut(2000, s.c.url(remembers))
	defer end()
	s.gates[s.node].open()
	procEventually(t, watchWithin, "the page is told to forget", func() error {
		if n := seen(); len(n.Reset) < 3 {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	end()
	equal("after a state that broke off")
	if n := seen(); fmt.Sprint(n.Reset) != "[start history_gone history_gone start]" {
		t.Errorf("the page has seen the resets %v", n.Reset)
	}
	t.Logf("a state that broke off, after %v: %+v", time.Since(start), seen())

	// Who asks for changes alone is told that some are lost, and goes on from there.
	_, err = chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void]("lateStart()"))
	testkit.Must(t, err)
	type message struct {
		Event, ID string
		Data      struct {
			Code     string
			Oldest   uint64
			Revision uint64
		}
	}
	var late []message
	got := func(n int) {
		t.Helper()
		procEventually(t, watchAtOnce, fmt.Sprint(n, " messages"), func() error {
			if err := watchEvaluate(ctx, "late", &late); err != nil || len(late) < n {
				return fmt.Errorf("%+v %w", late, err)
			}
			return nil
		})
	}
	got(1)
	id, err := strconv.ParseUint(late[0].ID, 10, 64)
	if m := late[0]; m.Event != "reset" || m.Data.Code != "history_gone" || err != nil || m.Data.Oldest < 2 || m.Data.Oldest > id+1 {
		t.Errorf("a watch from revision 1 begins with %+v", m)
	}
	tag := s.c.put(s.other(), "w/late", "it goes on")
	got(2)
	if m := late[1]; m.Event != "change" || strconv.Quote(m.ID) != tag || m.Data.Revision <= id {
		t.Errorf("it goes on with %+v, want revision %s", m, tag)
	}
	if n := seen(); len(n.Unavailable) > 1 {
		t.Errorf("the nodes said %v, want stopping, once at most", n.Unavailable)
	}
}
