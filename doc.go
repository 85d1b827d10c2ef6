/*
Raftkv is a replicated key-value server on go.etcd.io/raft/v3.

# How a write travels

	curl ─► listener.go ─► httpapi.go ─► propose.go ──proposeC──► raft.go ─► storage.go
	                           │            ▲                      │  ▲
	                        read.go         └── apply.go ◄─commitC─┘  └─► rafthttp ─► peers

httpapi.go turns the request into a command. propose.go gathers the commands
that are waiting into one batch and offers it to raft over proposeC. raft.go
appends it to the log; storage.go makes it durable here, while the followers
do the same; when a majority has it, raft hands it back over commitC. apply.go
applies it to the state (kvstore.go), and only then wakes the handlers that
wait. The followers hear of the commit with the next message (notice.go).

# Goroutines

Each is started in one place (server.start, raftNode.startRaft, listen), ends
with the node's context or its listener, and is waited for. Nobody else touches
what it owns; the last column says how others reach it.

	goroutine                        owns                          reached by
	raft loop (raftNode.run)         raft itself, raftLoop         channels; call for rare things
	persist loop (raftNode.persist)  WAL, snapshot records         appendC, writtenC
	apply loop (kvstore.readCommits) state, for writing; peers     commitC; readers lock kvstore.mu
	proposer (proposer.run)          the choice of the next batch  proposer.mu guards the queue
	reader (reader.run)              the choice of the next round  reader.mu guards the rounds
	snapshot writer                  the copy it writes, old files states, recorded
	mark keeper (markKeeper.run)     the mark's pace               markKeeper.mu guards the file
	watch (storage.watch)            nothing: looks at file names  ends the node
	members (members.run)            promotion of learners         members.turn: one change at a time
	watcher.run                      what it has said of the       its own; view is atomic
	                                 leader and the members
	watcher.askVersions              nothing                       versions.mu guards the answers
	takePart, proveID                nothing; end once the node    gate.mu
	                                 has published who it is
	doubts.inquire                   nothing                       signs, reopened; ends when the node is split
	getAcquainted                    nothing                       acquaintances.wake; asks about strangers
	checker.report                   this node's answer            agreement.own: the newest only
	checker.lead                     when a check is due           its own; gives leadership up
	liveness.run                     nothing                       asks each loop for a sign of life
	courier.deliver, one for each    the file it reads             ends when sent
	watchRemoval                     nothing                       errorC
	links.watch, askOne              what is known of the links    links.mu; peersMu, shared with the apply loop
	letGo, one for a removed peer    nothing                       ends after three ticks
	logQueue, one for the process    the lines of the log          logQueue.mu guards the queue
	endWindow, after a minute with   nothing                       repeats.mu; not waited for
	a line that repeats itself
	tuneGC, one for the process      nothing                       ends with a signal; not waited for
	two listeners (listener.go)      their HTTP servers            stop, cut
	HTTP handlers                    their request

Locks are held for moments, never while waiting or writing to disk, with three
exceptions: the mark keeper's, so that the mark can be lowered in time, the
inbox's, while it verifies a snapshot that came in, and peersMu, while rafthttp
ends the goroutines of a peer. No code holds two, except that the reader looks at
the leadership while it holds its own, and that the locks of the gate, the links
and the mailbox are taken under peersMu.

# Invariants

  - What is sent is durable: a message that promises something goes out after
    the fsync of what it promises (§3.8 of the thesis that DESIGN.md names).
    raft.go, persist.
  - What is answered is applied: here, from a majority's disks.
  - snapshot index ≤ applied index ≤ commit index.
  - The state is a function of the log: apply reads no clock, no random number
    and no flag.
  - A batch is applied at most once, however often it was proposed: its
    identity is in the state (kvstore.go, window). Nobody is answered from an
    entry that is not, byte for byte, the batch that was sent (life.go).
  - What contradicts this node's log does not get to raft, and nothing is
    acknowledged to a leader that has not vouched for its own (suspect.go).
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
