package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/entry"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/reconfig"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/suspect"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"raftkv/internal/walfile"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What docs/one-write.md shows of a write is made here: three nodes of the real
// code, whose loops this test turns by hand, one after the other. So nothing
// depends on who is faster, and between two turns it can look at everybody.

const (
	oneKey, oneValue = "colour", "green"
	// oneLife stands in the document for the random number of a node's life.
	oneLife = 0x0123456789abcdef
	oneBoot = 3
	before  = 4 // writes through node 2 before the one that is shown
)

// oneNode is a node whose loops the test turns.
type oneNode struct {
	*raftNode
	t        *testing.T
	srv      *server
	net      *oneNet
	appended [][]*raftpb.Message // all that its storage was given
}

// oneNet is the node's transport: it keeps what is to be sent.
type oneNet struct {
	transport.Messenger
	sent []*raftpb.Message
}

func (n *oneNet) Send(msgs []*raftpb.Message) { n.sent = append(n.sent, msgs...) }

func (n *oneNet) AddPeer(types.ID, []string) {}

// onePeers are the members.
func onePeers() (peers []address.Peer) {
	for id := range uint64(3) {
		peers = append(peers, address.Peer{ID: id + 1, URL: fmt.Sprintf("http://10.0.0.%d:2380", id+1)})
	}
	return peers
}

// oneDir is the data directory of a node that has had two lives, in a cluster in
// which all have announced themselves.
func oneDir(t *testing.T, id uint64) string {
	t.Helper()
	st := state.First(onePeers())
	for _, p := range onePeers() {
		announce, err := state.DecodeCommand(state.EncodeAnnounce(p.ID, p.ID, state.ProgramLevel, "http://127.0.0.1:9121"))
		testkit.Must(t, err)
		st.Apply(announce)
	}
	dir := t.TempDir()
	testkit.Must(t, storage.Create(zap.NewNop(), dir, storage.Identity{
		Format: storage.DirFormat, Node: id, Instance: id, ClusterID: address.ClusterIDOf(onePeers()), Initial: address.FormatPeers(onePeers()),
	}, st))
	for range oneBoot - 1 {
		testkit.Must(t, oneStorage(t, dir).Close())
	}
	return dir
}

func oneStorage(t *testing.T, dir string) *storage.Opened {
	t.Helper()
	st, err := storage.Open(zap.NewNop(), dir, storage.Bounds{}, func(storage.Identity, bool) error { return nil })
	testkit.Must(t, err)
	return st
}

// openOne puts a node together as openServer and startRaft do, but starts no loop.
func openOne(t *testing.T, id uint64, dir string) *oneNode {
	t.Helper()
	cfg := config.DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.PeerURL, cfg.Cluster = id, dir, onePeers()[id-1].URL, onePeers()
	cfg.RequestTimeout, cfg.ElectionTimeout = time.Hour, time.Hour // this machine may be slow
	st := oneStorage(t, dir)
	srv := newServer(cfg, zap.NewNop(), st, 9121)
	n := &oneNode{raftNode: srv.node, t: t, srv: srv, net: &oneNet{}}
	srv.connect(n.net, reconfig.ClusterInfo{})
	n.appliedC = make(chan *raftpb.Message, 64)
	n.doubts.Call = func(_ context.Context, f func(*raft.RawNode)) error {
		f(n.loop.rn)
		return nil
	}
	c := raftConfig(config.DefaultConfig(), storage.RaftStorage{MemoryStorage: st.Mem, Storage: st.Storage, Want: srv.kv.AskForSnapshot}, zap.NewNop())
	c.ID, c.Applied = id, n.applied.Get()
	rn, err := raft.NewRawNode(c)
	testkit.Must(t, err)
	n.loop = raftLoop{rn: rn, outbox: contact.NewOutbox()}
	n.doubts.Last, n.doubts.BegunAt = st.Last, st.Storage.Hard.GetCommit()
	n.publish()
	n.group.Go(func() error { return srv.proposals.Run(n.life) })
	t.Cleanup(func() {
		srv.end()
		testkit.Must(t, n.group.Wait())
		testkit.Must(t, st.Close())
	})
	return n
}

// hear takes messages in that came over the network.
func (n *oneNode) hear(msgs ...*raftpb.Message) {
	n.t.Helper()
	for _, m := range msgs {
		if m.GetTo() != n.id {
			continue
		}
		b, err := proto.Marshal(m)
		testkit.Must(n.t, err)
		m = &raftpb.Message{}
		testkit.Must(n.t, proto.Unmarshal(b, m))
		testkit.Must(n.t, n.Process(n.t.Context(), m))
		n.step(<-n.recvC)
	}
	n.handleReady()
}

// sync is a turn of the persist loop, and reports whether there was work.
func (n *oneNode) sync() bool {
	n.t.Helper()
	msgs := n.loop.appends
	if len(msgs) == 0 {
		return false
	}
	n.loop.appends, n.loop.urgent = nil, false
	n.disk.Hand()
	testkit.Must(n.t, n.store(n.t.Context(), msgs))
	n.appended = append(n.appended, msgs)
	s, err := n.answer(msgs)
	testkit.Must(n.t, err)
	n.stored(s)
	n.handleReady()
	return true
}

// apply is a turn of the apply loop.
func (n *oneNode) apply() bool {
	n.t.Helper()
	commits := n.loop.commits
	n.loop.commits = nil
	for _, c := range commits {
		testkit.Must(n.t, n.srv.kv.commit(c, n.reconfigure))
		c.applied()
	}
	for len(n.appliedC) > 0 {
		n.step(<-n.appliedC)
	}
	n.handleReady()
	return len(commits) > 0
}

// take returns what the node has sent since the last time.
func (n *oneNode) take() []*raftpb.Message {
	sent := n.net.sent
	n.net.sent = nil
	return sent
}

// tell sends the notices that are held, once it is time.
func (n *oneNode) tell() {
	select {
	case <-n.loop.outbox.Due.C:
	case <-time.After(4 * contact.NoticeDelay): // there are none
	}
	n.send(n.loop.outbox.Flush())
}

// leads reports whether the node leads.
func (n *oneNode) leads() bool { return n.status.Load().Role == raft.StateLeader }

// meet has a node look into its leader, as it does before it acknowledges anything
// of that. Two looks at raft's state belong to it: for the question, for the answer.
func (n *oneNode) meet(leader *oneNode) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	looks, call := 0, n.doubts.Call
	n.doubts.Call = func(ctx context.Context, f func(*raft.RawNode)) error {
		if looks++; looks == 2 {
			defer cancel()
		}
		return call(ctx, f)
	}
	n.doubts.AskStand = func(ctx context.Context, _ string, node, index uint64) (suspect.Stand, error) {
		return leader.doubts.StandFor(ctx, node, index)
	}
	testkit.Must(n.t, n.doubts.Inquire(ctx))
	n.doubts.Call = call
	n.handleReady()
}

// settle turns all loops of the nodes, and carries what they send, until nobody has
// anything to do.
func settle(nodes ...*oneNode) {
	for busy := true; busy; {
		busy = false
		for _, n := range nodes {
			n.handleReady()
			busy = n.sync() || busy
			busy = n.apply() || busy
			n.tell()
			sent := n.take()
			for _, to := range nodes {
				to.hear(sent...)
			}
			busy = busy || slices.ContainsFunc(sent, func(m *raftpb.Message) bool {
				return slices.ContainsFunc(nodes, func(to *oneNode) bool { return to.id == m.GetTo() })
			})
		}
	}
}

// elect makes the first of the nodes the leader of the others. They acknowledge
// nothing of it before elected has been called.
func elect(t *testing.T, elected func(), nodes ...*oneNode) {
	t.Helper()
	leader, others := nodes[0], nodes[1:]
	_, _, election := config.DefaultConfig().Ticks()
	for _, n := range others {
		for range election { // nobody votes while it believes in a leader
			n.loop.rn.Tick()
		}
		n.handleReady()
		n.take() // should it have stood for election itself: nobody has heard
	}
	testkit.Must(t, leader.loop.rn.Campaign())
	settle(nodes...)
	if !leader.leads() {
		t.Fatalf("node %d does not lead", leader.id)
	}
	elected()
	for _, n := range others {
		n.meet(leader)
	}
	settle(nodes...)
}

// put begins a PUT on a node and returns when its batch is on the way to raft.
func (n *oneNode) put(key, value string) (rounds.Proposal, <-chan *http.Response) {
	answer := make(chan *http.Response, 1)
	r := httptest.NewRequestWithContext(n.t.Context(), http.MethodPut, "/"+key, strings.NewReader(value))
	r.Host = "127.0.0.1:9121"
	go func() {
		w := httptest.NewRecorder()
		openapitest.Serve(n.t, n.srv.api, w, r)
		answer <- w.Result()
	}()
	return <-n.proposeC, answer
}

// offer gives raft a batch.
func (n *oneNode) offer(p rounds.Proposal) {
	n.propose(p)
	n.handleReady()
}

// startOne makes the cluster in which the write happens: node 1 leads, and some
// writes have come through node 2.
func startOne(t *testing.T) []*oneNode {
	t.Helper()
	var nodes []*oneNode
	for _, p := range onePeers() {
		nodes = append(nodes, openOne(t, p.ID, oneDir(t, p.ID)))
	}
	elect(t, func() {}, nodes...)
	for i := range before {
		p, answer := nodes[1].put(fmt.Sprint("before", i), "x")
		nodes[1].offer(p)
		settle(nodes...)
		if a := <-answer; a.StatusCode != http.StatusNoContent {
			t.Fatalf("a write before: %d", a.StatusCode)
		}
	}
	return nodes
}

// table is what each node has, station by station.
type table struct {
	b     strings.Builder
	nodes []*oneNode
	dead  string // the directory of node 1, if that is not up
}

func newTable(nodes []*oneNode) *table {
	tb := &table{nodes: nodes}
	fmt.Fprintf(&tb.b, "%-47s|", "last entry in / known as")
	for _, n := range nodes {
		fmt.Fprintf(&tb.b, "%-22s|", fmt.Sprintf("        node %d", n.id))
	}
	fmt.Fprintf(&tb.b, "\n%-47s|", "")
	for range nodes {
		tb.b.WriteString("  log disk comm. appl. |")
	}
	tb.b.WriteString("\n")
	return tb
}

func (tb *table) row(station string) {
	fmt.Fprintf(&tb.b, "%-47s|", station)
	for i, n := range tb.nodes {
		dir := n.storage.Dir
		if i == 0 && tb.dead != "" {
			dir = tb.dead
		}
		disk, err := walfile.Read(filepath.Join(dir, "wal"))
		testkit.Must(n.t, err)
		if dir == tb.dead {
			fmt.Fprintf(&tb.b, " %4s %4d %5s %5s |", "-", disk.Last(), "-", "-")
			continue
		}
		fmt.Fprintf(&tb.b, " %4d %4d %5d %5d |", n.doubts.Last, disk.Last(), n.loop.rn.BasicStatus().GetCommit(), n.srv.kv.applied.Get())
	}
	tb.b.WriteString("\n")
}

// waits checks that a handler has no answer yet.
func waits(t *testing.T, answer <-chan *http.Response) {
	t.Helper()
	select {
	case a := <-answer:
		t.Errorf("answered too soon: %d", a.StatusCode)
	default:
	}
}

// the only message of a type to a node.
func only(t *testing.T, msgs []*raftpb.Message, typ raftpb.MessageType, to uint64) *raftpb.Message {
	t.Helper()
	var found []*raftpb.Message
	for _, m := range msgs {
		if m.GetType() == typ && m.GetTo() == to {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d messages %s to node %d among %v, want one", len(found), typ, to, msgs)
	}
	return found[0]
}

// Guarantee: the bytes and the tables in docs/one-write.md are what the code makes.
func TestOneWriteIsDocumented(t *testing.T) {
	blocks := make(map[string]string)
	throughFollower(t, blocks)
	throughLeader(t, blocks)
	killedBeforeItsSync(t, blocks)
	killedBeforeOthersKnow(t, blocks)
	killedBeforeItsAnswer(t, blocks)
	compareBlocks(t, "docs/one-write.md", blocks)
}

// throughFollower carries the write from node 2 to the leader and back.
func throughFollower(t *testing.T, blocks map[string]string) {
	nodes := startOne(t)
	one, two, three := nodes[0], nodes[1], nodes[2]
	tb := newTable(nodes)
	tb.row("0 before")

	p, answer := two.put(oneKey, oneValue)
	id, cmds, err := state.DecodeBatch(p.Data)
	testkit.Must(t, err)
	fix := fixedLife(id.Life)
	cmd := state.EncodeWrite(state.KindPut, state.Condition{}, oneKey, []byte(oneValue))
	want := entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 2, Boot: oneBoot, Seq: before, Low: before, Life: oneLife}), cmd)
	if got := fix(p.Data); !bytes.Equal(got, want) || len(cmds) != 1 {
		t.Fatalf("the batch is %x, want %x", got, want)
	}
	blocks["command"] = dumpCommand(cmd)
	blocks["batch"] = dumpBatch(want, cmd)
	tb.row("1 node 2: in a batch, queued for raft")

	two.offer(p)
	sent := two.take()
	blocks["prop"] = dumpMessage(t, only(t, sent, raftpb.MsgProp, 1), fix)
	one.hear(sent...)
	tb.row("2 node 1: appended in memory, MsgApp sent")

	sent = one.take()
	app := only(t, sent, raftpb.MsgApp, 2)
	entry, err := proto.Marshal(app.GetEntries()[0])
	testkit.Must(t, err)
	blocks["entry"] = dumpProto(fix(entry), new(raftpb.Entry).ProtoReflect().Descriptor(), "")
	blocks["app"] = dumpMessage(t, app, fix)
	two.hear(sent...)
	three.hear(sent...)
	tb.row("3 nodes 2, 3: appended in memory")

	one.sync()
	if got := one.loop.rn.BasicStatus().GetCommit(); got != app.GetCommit() {
		t.Errorf("committed %d with one disk", got)
	}
	blocks["wal"] = dumpFrames(t, one.appended, fix)
	tb.row("4 node 1: fsync")
	two.sync()
	tb.row("5 node 2: fsync, MsgAppResp sent")

	sent = two.take()
	blocks["resp"] = dumpMessage(t, only(t, sent, raftpb.MsgAppResp, 1), fix)
	one.hear(sent...)
	sent = one.take()
	notice := only(t, sent, raftpb.MsgApp, 2)
	blocks["notice"] = dumpMessage(t, notice, fix)
	if len(sent) != 1 || len(notice.GetEntries()) != 0 {
		t.Errorf("with the commit node 1 sends %v", sent)
	}
	tb.row("6 node 1: committed, node 2 is told")
	one.apply()
	tb.row("7 node 1: applied; nobody waits there")
	two.hear(notice)
	tb.row("8 node 2: knows of the commit")
	waits(t, answer)
	two.apply()
	a := <-answer
	tb.row("9 node 2: applied, answered")
	blocks["answer"] = dumpAnswer(a)
	three.sync()
	one.hear(three.take()...)
	tb.row("10 node 3: fsync, MsgAppResp sent")
	one.tell()
	three.hear(one.take()...)
	three.apply()
	tb.row("11 node 3: told after 5 ms, applied")
	blocks["stations-follower"] = tb.b.String()
}

// throughLeader carries the write from the leader's own client.
func throughLeader(t *testing.T, blocks map[string]string) {
	nodes := startOne(t)
	one, two, three := nodes[0], nodes[1], nodes[2]
	tb := newTable(nodes)
	tb.row("0 before")
	p, answer := one.put(oneKey, oneValue)
	tb.row("1 node 1: in a batch, queued for raft")
	one.offer(p)
	tb.row("2 node 1: appended in memory, MsgApp sent")
	sent := one.take()
	two.hear(sent...)
	three.hear(sent...)
	tb.row("3 nodes 2, 3: appended in memory")
	two.sync()
	three.sync()
	one.hear(two.take()...)
	one.hear(three.take()...)
	tb.row("4 nodes 2, 3: fsync; both MsgAppResp came in")
	waits(t, answer)
	one.apply()
	waits(t, answer)
	one.sync()
	tb.row("5 node 1: fsync; free to apply")
	waits(t, answer)
	one.apply()
	if a := <-answer; a.StatusCode != http.StatusNoContent {
		t.Errorf("answered with %d", a.StatusCode)
	}
	tb.row("6 node 1: applied, answered")
	if sent := one.take(); len(sent) != 0 {
		t.Errorf("nobody waits there, but node 1 sends %v", sent)
	}
	one.tell()
	sent = one.take()
	two.hear(sent...)
	three.hear(sent...)
	two.apply()
	three.apply()
	tb.row("7 nodes 2, 3: told after 5 ms, applied")
	blocks["stations-leader"] = tb.b.String()
}

// killedBeforeItsSync: the leader has sent the entry, and its own disk lacks it.
func killedBeforeItsSync(t *testing.T, blocks map[string]string) {
	nodes := startOne(t)
	one, two, three := nodes[0], nodes[1], nodes[2]
	tb := newTable(nodes)
	p, answer := two.put(oneKey, oneValue)
	two.offer(p)
	one.hear(two.take()...)
	sent := one.take()
	two.hear(sent...)
	three.hear(sent...)
	two.sync()
	three.sync()
	tb.row("nodes 2, 3: fsync; node 1: not yet")
	blocks["killed-before-sync"] = takeOver(t, tb, answer)
}

// killedBeforeOthersKnow: the leader knows of the commit, and nobody else does.
func killedBeforeOthersKnow(t *testing.T, blocks map[string]string) {
	nodes := startOne(t)
	one, two, three := nodes[0], nodes[1], nodes[2]
	tb := newTable(nodes)
	p, answer := two.put(oneKey, oneValue)
	two.offer(p)
	one.hear(two.take()...)
	sent := one.take()
	two.hear(sent...)
	three.hear(sent...)
	one.sync()
	two.sync()
	one.hear(two.take()...)
	tb.row("node 1: committed; nobody else knows")
	blocks["killed-before-news"] = takeOver(t, tb, answer)
}

// killedBeforeItsAnswer: the leader has applied the write of its own client.
func killedBeforeItsAnswer(t *testing.T, blocks map[string]string) {
	nodes := startOne(t)
	one, two, three := nodes[0], nodes[1], nodes[2]
	tb := newTable(nodes)
	p, _ := one.put(oneKey, oneValue)
	one.offer(p)
	sent := one.take()
	two.hear(sent...)
	three.hear(sent...)
	one.sync()
	two.sync()
	one.hear(two.take()...)
	one.apply()
	tb.row("node 1: applied; the answer is not sent")
	blocks["killed-before-answer"] = takeOver(t, tb, nil)
}

// takeOver kills node 1, has node 2 elected and node 1 started again. A client waits
// at node 2, if answer is not nil, whose batch is then proposed a second time.
func takeOver(t *testing.T, tb *table, answer <-chan *http.Response) string {
	t.Helper()
	one, two, three := tb.nodes[0], tb.nodes[1], tb.nodes[2]
	tb.dead = testkit.Crashed(t, one.storage.Dir)
	one.take()
	two.take()
	three.take()
	tb.row("node 1 is killed")
	elect(t, func() {
		tb.row("node 2 leads; node 3 has not met it yet")
		if answer != nil {
			waits(t, answer)
			two.offer(<-two.proposeC)
			tb.row("node 2: the same batch is proposed again")
		}
	}, two, three)
	tb.row("nodes 2, 3: committed and applied")
	if answer != nil {
		a := <-answer
		if a.StatusCode != http.StatusNoContent || a.Header.Get("Raftkv-Revision") != fmt.Sprint(before+1) {
			t.Errorf("the answer is %d, %v", a.StatusCode, a.Header)
		}
	}
	one = openOne(t, 1, tb.dead)
	tb.nodes[0], tb.dead = one, ""
	_, heartbeat, _ := config.DefaultConfig().Ticks()
	for range heartbeat {
		two.loop.rn.Tick()
	}
	settle(tb.nodes...)
	one.meet(two)
	settle(tb.nodes...)
	tb.row("node 1 is started again, and has caught up")
	for _, n := range tb.nodes {
		it, revision := n.srv.kv.Get(oneKey)
		if it == nil || string(it.Value) != oneValue || it.Version != 1 || revision != before+1 {
			t.Errorf("node %d: the item is %+v, at revision %d", n.id, it, revision)
		}
	}
	last, err := two.storage.Mem.LastIndex()
	testkit.Must(t, err)
	entries, err := two.storage.Mem.Entries(state.FirstIndex+before+2, last+1, 1<<20)
	testkit.Must(t, err)
	for _, e := range entries {
		what := "empty: how a leader begins its term"
		if len(e.GetData()) > 0 {
			what = "the batch"
		}
		fmt.Fprintf(&tb.b, "entry %d, term %d: %s\n", e.GetIndex(), e.GetTerm(), what)
	}
	return tb.b.String()
}

// fixedLife returns a function that puts oneLife in the place of a life's number.
func fixedLife(life uint64) func([]byte) []byte {
	random, fixed := binary.LittleEndian.AppendUint64(nil, life), binary.LittleEndian.AppendUint64(nil, oneLife)
	return func(b []byte) []byte { return bytes.ReplaceAll(b, random, fixed) }
}

// line is a line of a dump: bytes, and what they are. Long ones are wrapped.
func line(b []byte, format string, args ...any) string {
	const width = 12
	var s strings.Builder
	text := fmt.Sprintf(format, args...)
	for {
		n := min(width, len(b))
		s.WriteString(strings.TrimRight(fmt.Sprintf("%-*s  %s", 3*width-1, fmt.Sprintf("% x", b[:n]), text), " ") + "\n")
		if b, text = b[n:], ""; len(b) == 0 {
			return s.String()
		}
	}
}

func dumpCommand(cmd []byte) string {
	return line(cmd[:1], "kind: put") + line(cmd[1:2], "condition: none") + line(cmd[2:3], "length of the key") +
		line(cmd[3:3+len(oneKey)], "the key %q", oneKey) + line(cmd[3+len(oneKey):], "the value %q, up to the end", oneValue)
}

// dumpBatch: all numbers are so small that they take a byte.
func dumpBatch(batch, cmd []byte) string {
	s := line(batch[:1], "format: with the life")
	for i, name := range []string{"node", "boot: its third life", "sequence", "low: all batches below are settled"} {
		s += line(batch[1+i:2+i], "%s", name)
	}
	head := len(batch) - len(cmd) - 1
	return s + line(batch[5:head], "life: its random number") + line(batch[head:head+1], "length of the command") +
		line(batch[head+1:], "the command")
}

func dumpMessage(t *testing.T, m *raftpb.Message, fix func([]byte) []byte) string {
	t.Helper()
	b, err := proto.Marshal(m)
	testkit.Must(t, err)
	return dumpProto(fix(b), m.ProtoReflect().Descriptor(), "")
}

// dumpProto explains an encoded message of protobuf field by field.
func dumpProto(b []byte, d protoreflect.MessageDescriptor, indent string) (s string) {
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(num, typ, b[tag:])
		f := d.Fields().ByNumber(num)
		name := indent + string(f.Name())
		switch {
		case typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b[tag:])
			value := fmt.Sprint(v)
			if f.Kind() == protoreflect.EnumKind {
				value = string(f.Enum().Values().ByNumber(protoreflect.EnumNumber(v)).Name())
			}
			s += line(b[:size], "%s = %s", name, value)
		default:
			v, _ := protowire.ConsumeBytes(b[tag:])
			s += line(b[:size-len(v)], "%s, %d bytes:", name, len(v))
			switch {
			case f.Kind() == protoreflect.MessageKind:
				s += dumpProto(v, f.Message(), indent+"  ")
			case len(v) > 0:
				s += line(v, "%s  the batch", indent)
			}
		}
		b = b[size:]
	}
	return s
}

// dumpFrames explains what the last of a run of appends wrote into the log. The
// checksum of a record covers all records before it, so the appends are made once
// more, with a fixed number of the life, in a directory of their own.
func dumpFrames(t *testing.T, appended [][]*raftpb.Message, fix func([]byte) []byte) string {
	t.Helper()
	dir := oneDir(t, 1)
	o := oneStorage(t, dir)
	var segment string
	var was []testkit.Frame
	var content []byte
	look := func() []testkit.Frame {
		files := testkit.Segments(t, dir)
		segment = files[len(files)-1]
		var err error
		content, err = os.ReadFile(segment)
		testkit.Must(t, err)
		return testkit.Frames(t, content)
	}
	for _, msgs := range appended {
		was = look()
		var fixed []*raftpb.Message
		for _, m := range msgs {
			m = proto.Clone(m).(*raftpb.Message)
			for _, e := range m.GetEntries() {
				e.Data = fix(e.GetData())
			}
			fixed = append(fixed, m)
		}
		testkit.Must(t, o.Append(fixed))
	}
	now := look()
	testkit.Must(t, o.Close())
	log, err := walfile.Read(filepath.Join(dir, "wal"))
	testkit.Must(t, err)
	s := fmt.Sprintf("wal/%s\n", filepath.Base(segment))
	for _, f := range now[len(was):] {
		frame := content[f.Off:f.End]
		head := binary.LittleEndian.Uint64(frame)
		size := int(head & (1<<56 - 1))
		s += line(frame[:8], "length %d, padding %d; at offset %d", size, head>>56&7, f.Off)
		rec := &walpb.Record{}
		testkit.Must(t, proto.Unmarshal(frame[8:8+size], rec))
		what, holds, has := "an entry", proto.Message(&raftpb.Entry{}), proto.Message(log.Entries[len(log.Entries)-1])
		if rec.GetType() == wal.StateType {
			what, holds, has = "a hard state", &raftpb.HardState{}, log.Hard
		}
		testkit.Must(t, walfile.DecodeRecord(rec, holds))
		if !proto.Equal(holds, has) {
			t.Errorf("the frame has %v, the log %v", holds, has)
		}
		at := 8 + size - len(rec.GetData())
		s += dumpProto(frame[8:at-2], rec.ProtoReflect().Descriptor(), "")
		s += line(frame[at-2:at], "data, %d bytes: %s", len(rec.GetData()), what)
		s += dumpProto(rec.GetData(), holds.ProtoReflect().Descriptor(), "  ")
		if pad := frame[8+size:]; len(pad) > 0 {
			s += line(pad, "padding to eight bytes")
		}
	}
	return s
}

func dumpAnswer(a *http.Response) string {
	s := fmt.Sprintf("HTTP/1.1 %d %s\n", a.StatusCode, http.StatusText(a.StatusCode))
	for _, name := range []string{"Cache-Control", "Etag", "Raftkv-Revision"} {
		s += name + ": " + a.Header.Get(name) + "\n"
	}
	return s
}

// compareBlocks compares the blocks of a document with those that were made. A
// block follows a line that names it. RAFTKV_UPDATE_DOCS=1 rewrites them.
func compareBlocks(t *testing.T, file string, blocks map[string]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	testkit.Must(t, err)
	update := os.Getenv("RAFTKV_UPDATE_DOCS") != ""
	seen := make(map[string]bool)
	updated := regexp.MustCompile("(?s)(<!-- made by a test: ([a-z-]+) -->\n```text\n)(.*?)(```\n)").ReplaceAllStringFunc(string(text), func(found string) string {
		head, rest, _ := strings.Cut(found, "```text\n")
		name := strings.Fields(head)[5]
		body := strings.TrimSuffix(rest, "```\n")
		made, ok := blocks[name]
		if seen[name] = true; !ok {
			t.Errorf("%s has a block %s, which is not made", file, name)
			return found
		}
		if body != made && !update {
			t.Errorf("%s, block %s: RAFTKV_UPDATE_DOCS=1 rewrites it. It is\n%s\nbut should be\n%s", file, name, body, made)
		}
		return head + "```text\n" + made + "```\n"
	})
	for name, made := range blocks {
		if !seen[name] {
			t.Errorf("%s has no block %s:\n%s", file, name, made)
		}
	}
	if update && !t.Failed() {
		testkit.Must(t, os.WriteFile(file, []byte(updated), 0o644))
	}
}
