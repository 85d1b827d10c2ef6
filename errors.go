package main

import (
	"errors"
	"net/http"
)

// What can become of a request, besides success. Each error says whether it
// happened and whether to try again; problem.go tells the client.
var (
	// Did not happen.

	errNotFound = newProblem(http.StatusNotFound, "not_found", notApplied, noRetry,
		"no such key")
	errPrecondition = newProblem(http.StatusPreconditionFailed, "precondition_failed", notApplied, noRetry,
		"the condition does not hold")
	errOverloaded = newProblem(http.StatusTooManyRequests, "overloaded", notApplied, retrySoon,
		"too many requests are waiting on this node")
	errNoLeader = newProblem(http.StatusServiceUnavailable, "no_leader", notApplied, retrySoon,
		"the cluster has no leader that this node can reach")
	errStopping = newProblem(http.StatusServiceUnavailable, "stopping", notApplied, retrySoon,
		"this node is stopping")
	errNotReady = newProblem(http.StatusServiceUnavailable, "not_ready", notApplied, retrySoon,
		"this node is not ready")
	errUnavailable = newProblem(http.StatusServiceUnavailable, "unavailable", notApplied, retrySoon,
		"the cluster did not confirm in time that this read is fresh")
	errWouldLose = newProblem(http.StatusConflict, "would_lose_quorum", notApplied, retryLater,
		"the change would leave the cluster without a reachable majority")
	errQuota = newProblem(http.StatusInsufficientStorage, "quota_exceeded", notApplied, retryLater,
		"there is no room for more keys and values")
	errInProgress = newProblem(http.StatusConflict, "change_in_progress", notApplied, retrySoon,
		"another membership change is in progress")

	// May have happened.

	// errOutcomeUnknown: the request was handed to raft, and the answer did
	// not come in time. It may still be applied.
	errOutcomeUnknown = newProblem(http.StatusGatewayTimeout, "outcome_unknown", maybeApplied, retryLater,
		"handed to the cluster, but not confirmed in time: it may or may not happen")

	// This node is broken.

	// errStuck: a part of the node does not come round any more.
	errStuck = newProblem(http.StatusServiceUnavailable, "stuck", notApplied, retryLater,
		"this node hangs and should be started again")

	// How a node ends.

	// errUsedID: this ID belongs to a node with another data directory. Going
	// on could cost acknowledged writes: this one has forgotten its votes.
	errUsedID = errors.New("this node ID was used before, with a data directory that is not this one: " +
		"an ID is used once. If that directory is lost, remove the node (DELETE /ID) and join under a new ID")

	// errRemoved: the node was taken out of the cluster. Its process ends
	// with exit status 0, because that is what was asked for.
	errRemoved = errors.New("this node was removed from the cluster")
)
