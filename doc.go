/*
Raftkv is a replicated key-value server on go.etcd.io/raft/v3.

# How a write travels

	curl ─► listener.go ─► httpapi.go ─► rounds ──proposeC──► raft.go ─► persist.go ─► storage
	                           │           ▲                    │  ▲
	                         rounds        └── apply.go ◄─commitC┘  └─► transport ─► peers
	                        (a read)              │
	                                            state         receive.go ◄─ transport ◄─ peers

Package names stand beside files of this directory. httpapi.go has package api turn the
request into a command; plain requests come there by package front. A rounds.Proposer gathers the commands that are waiting into one
batch and offers it to raft over proposeC. On the leader, raft.go appends it to the log; on a
follower, raft sends it to the leader, where receive.go takes it in. persist.go has
package storage make it durable here, while the others do the same; when a majority
has it, raft hands it back over commitC, on every node. apply.go applies it to the state
(package state, which kvstore.go holds), and only then wakes the handlers that wait.
The followers hear of the commit with the next message (package contact). DESIGN.md
has the packages, and the ways of a read and of a membership change.

# Goroutines

Those of the node are started in server.start, raftNode.startRaft, server.run and listen,
end with the node's context or its listener, and are waited for; where it is otherwise, the
last column says so. Nobody else touches what a goroutine owns; the last column says how
others reach it.

	goroutine                          owns                          reached by
	raft loop (raftNode.run)           raft itself, raftLoop         channels; call for rare things
	persist loop (raftNode.persist)    WAL, snapshot records         appendC, writtenC
	apply loop (kvstore.readCommits)   state, for writing; peers     commitC; readers lock kvstore.mu
	rounds.Proposer.Run                the choice of the next batch  its lock guards the queue
	rounds.Reader.Run                  the choice of the next round  its lock guards the rounds
	Storage.WriteSnapshots             the copy it writes, old files states, Recorded
	watermark.Keeper.Run               the mark's pace               its lock guards the file
	Storage.Watch                      nothing: looks at file names  ends the node
	reconfig.Members.Run               promotion of learners         one change at a time
	room.Keeper.Run                    what this node's disk has,    Admit, Hear; its lock guards what
	                                   what is refused               was heard
	observe.Watcher.Run                what it has said of the       its own; view is atomic
	                                   leader and the members
	observe.Watcher.AskVersions        nothing                       its lock guards the answers
	server.takePart,                   nothing; end once the node    Gate's lock
	boot.Acquaintances.ProveID         has published who it is
	suspect.Doubts.Inquire             nothing                       Sift, MeetAgain; ends when the node is split
	boot.Acquaintances.GetAcquainted   nothing                       Ask; asks about strangers
	checker.Checker.Report             this node's answer            Agreement: the newest only
	checker.Checker.Lead               when a check is due           its own; gives leadership up
	clock.Ticker.Run                   when a tick is due            its own; appends on the raft loop
	watch.Hub.Run, probe               whom a change is for          its lock, for who watches; each watcher's
	liveness.Monitor.Run               nothing                       asks each loop for a sign of life
	transport.Courier, one for each    the file it reads             ends when sent
	snapshot that is sent
	raftNode.watchRemoval              nothing                       errorC
	transport.Links.Watch, askOne      what is known of the links    its locks; peersMu, shared with the
	                                                                 apply loop
	transport.Links.RemoveLater,            nothing                       ends after three ticks
	one for a removed peer
	peertls.Open's, one a process      nothing                       ends with a signal; not waited for
	logging.Queue, one for each log    the lines of the log          its lock guards the queue
	audit.Log.FollowExpiries           nothing                       ends with the node
	logging.repeats.endWindow, after   nothing                       its lock; not waited for
	a minute with a line that repeats
	itself
	memory.TuneGC, one a process       nothing                       ends with a signal; not waited for
	room.Keeper's sender, one a peer   nothing                       ends when the peer has answered
	main's, for the signals            nothing                       ends with the process
	awaitEnd and stopWithin, at a stop nothing                       left behind when a disk hangs
	two listeners (listener.go)        their HTTP servers            shutdown, close
	HTTP handlers                      their request
	front.conn.serve, one for each     what it reads                 its lock, for who answers
	connection that is plain so far
	front.Server.answer                the answers of a round        put, by who ends the round
	front.Server.sweep                 nothing                       each connection's clock

Locks are held for moments, never while waiting or writing to disk, with three
exceptions: the mark keeper's, so that the mark can be lowered in time, the
inbox's, while it verifies a snapshot that came in, and peersMu, while rafthttp
ends the goroutines of a peer. No code holds two, except that the reader looks at
the leadership while it holds its own, that the hub takes
each watcher's under its own, and that the locks of the gate, the links and the
mailbox are taken under peersMu.

# Invariants

  - What is sent is durable: a message that promises something goes out after
    the fsync of what it promises (§3.8 of the thesis that DESIGN.md names).
    persist.go, persist and answer.
  - What is answered is applied: here, from a majority's disks.
  - snapshot index ≤ applied index ≤ commit index.
  - The state is a function of the log: apply reads no clock, no random number
    and no flag.
  - A batch is applied at most once, however often it was proposed: its
    identity is in the state (state.Window). Nobody is answered from an entry
    that is not, byte for byte, the batch that was sent (package rounds).
  - What contradicts this node's log does not get to raft, and nothing is
    acknowledged to a leader that has not vouched for its own (package suspect).
  - The members in the state are those of raft's configuration at the same
    index; checked at each change.
  - The mark on disk never claims more than the log has synced.
  - Nothing of the log in memory goes before raft knows it to be applied.
  - Equal states have equal hashes, whatever the version, the flags or the
    history of the replica.
  - A kind of command is proposed only when the cluster's level has reached it;
    the level never sinks.
*/
package main
