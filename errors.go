package main

import "errors"

// What can become of a request, besides success. Each error belongs to one of
// three kinds, and httpapi.go tells the client which: it did not happen, it
// may have happened, this node is broken.
var (
	// Did not happen.

	errNotFound     = errors.New("no such key")
	errPrecondition = errors.New("the condition does not hold")
	errOverloaded   = errors.New("too many requests are waiting on this node")
	errNoLeader     = errors.New("the cluster has no leader that this node can reach")
	errStopping     = errors.New("this node is stopping")
	errNotReady     = errors.New("this node is not ready")
	errUnavailable  = errors.New("the cluster did not confirm in time that this read is fresh")
	errWouldLose    = errors.New("the change would leave the cluster without a reachable majority")
	errQuota        = errors.New("there is no room for more keys and values")
	errInProgress   = errors.New("another membership change is in progress")

	// May have happened.

	// errOutcomeUnknown: the request was handed to raft, and the answer did
	// not come in time. It may still be applied.
	errOutcomeUnknown = errors.New("handed to the cluster, but not confirmed in time: it may or may not happen")

	// This node is broken.

	// errStuck: a part of the node does not come round any more.
	errStuck = errors.New("this node hangs and should be started again")

	// How a node ends.

	// errUsedID: this ID belongs to a node with another data directory. Going
	// on could cost acknowledged writes: this one has forgotten its votes.
	errUsedID = errors.New("this node ID was used before, with a data directory that is not this one: " +
		"an ID is used once. If that directory is lost, remove the node (DELETE /ID) and join under a new ID")

	// errRemoved: the node was taken out of the cluster. Its process ends
	// with exit status 0, because that is what was asked for.
	errRemoved = errors.New("this node was removed from the cluster")
)
