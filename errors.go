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

	// errDiskFull: a disk on which the cluster depends is almost full.
	errDiskFull = newProblem(http.StatusInsufficientStorage, "disk_full", notApplied, retryLater,
		"the disks have no room for this")

	// Of the HTTP interface itself.

	errBadRequest = newProblem(http.StatusBadRequest, "bad_request", notApplied, noRetry,
		"bad request")
	errNoSuchPath = newProblem(http.StatusNotFound, "no_such_path", notApplied, noRetry,
		"no such path")
	errMethodNotAllowed = newProblem(http.StatusMethodNotAllowed, "method_not_allowed", notApplied, noRetry,
		"method not allowed")
	errTooLarge = newProblem(http.StatusRequestEntityTooLarge, "too_large", notApplied, noRetry,
		"the value is too large")
	errMediaType = newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", notApplied, noRetry,
		"the body has a type that is not taken here")
	errRequestTimeout = newProblem(http.StatusRequestTimeout, "request_timeout", notApplied, retryLater,
		"the request did not arrive in time")
	errWrongHost = newProblem(http.StatusMisdirectedRequest, "wrong_host", notApplied, noRetry,
		"this name is not one of this node's")
	errCrossOrigin = newProblem(http.StatusForbidden, "cross_origin", notApplied, noRetry,
		"a browser sent this on behalf of another site")
	errAmbiguous = newProblem(http.StatusConflict, "ambiguous", notApplied, noRetry,
		"a node and a key have this name")
	errInternal = newProblem(http.StatusInternalServerError, "internal", maybeApplied, noRetry,
		"internal error")

	// Of changes of the members and of the leader.

	errMemberExists = newProblem(http.StatusConflict, "member_exists", notApplied, noRetry,
		"another member has this ID or this URL")
	errMemberRemoved = newProblem(http.StatusConflict, "member_removed", notApplied, noRetry,
		"this ID was removed; an ID is used once in the life of a cluster")
	errMemberUnknown = newProblem(http.StatusNotFound, "not_found", notApplied, noRetry,
		"no member has this ID")
	errLastVoter = newProblem(http.StatusConflict, "last_voter", notApplied, noRetry,
		"the last voter can neither be removed nor become a learner")
	errBadPeerURL = newProblem(http.StatusBadRequest, "bad_request", notApplied, noRetry,
		"bad peer URL")
	// errSameNode: the change did not happen, and no other ID would help.
	errSameNode = newProblem(http.StatusConflict, "member_exists", notApplied, noRetry,
		"this URL is another name of a member's")
	errNotVoter = newProblem(http.StatusConflict, "not_voter", notApplied, noRetry,
		"only a voter can lead")
	errNotHandedOver = newProblem(http.StatusServiceUnavailable, "not_handed_over", maybeApplied, retrySoon,
		"leadership was not handed over")
	// errElsewhere: this node does not lead; ask another.
	errElsewhere = newProblem(http.StatusServiceUnavailable, "not_leader", notApplied, retrySoon,
		"this node is not the leader")

	// May have happened.

	// errOutcomeUnknown: the request was handed to raft, and the answer did
	// not come in time. It may still be applied.
	errOutcomeUnknown = newProblem(http.StatusGatewayTimeout, "outcome_unknown", maybeApplied, retryLater,
		"handed to the cluster, but not confirmed in time: it may or may not happen")

	// This node is broken.

	// errStuck: a part of the node does not come round any more.
	errStuck = newProblem(http.StatusServiceUnavailable, "stuck", notApplied, retryLater,
		"this node hangs and should be started again")

	errDiverged = newProblem(http.StatusServiceUnavailable, "diverged", notApplied, noRetry,
		"this node's data is not that of the other replicas: nothing that it holds can be relied on. "+
			"Remove it through another node (DELETE /ID) and join under a new ID with an empty data directory")
	// errHistories: not found by a check, but from a log that contradicts this node's.
	errHistories = newProblem(http.StatusServiceUnavailable, "diverged", notApplied, noRetry,
		"this node's log and another member's contradict each other: there are two histories, and writes that were "+
			"acknowledged in one are missing in the other, as when a data directory was put back from an older copy. "+
			"To keep the history of the others, remove this node through one of them (DELETE /ID) and join under a new ID with an empty "+
			"data directory. To keep this node's, stop all nodes and make a new cluster of its directory (raftkv recover)")
	errNoMajority = newProblem(http.StatusServiceUnavailable, "diverged", notApplied, retryLater,
		"the replicas hold different data, and no majority of them agrees: "+
			"nothing is served before a check finds one. Nodes that are down may make it; else restore a backup")
	// errMemory: found by this node alone, in itself. Its disk may be sound,
	// because what is not the sum's does not get there (writeState).
	errMemory = newProblem(http.StatusServiceUnavailable, "diverged", notApplied, noRetry,
		"what this node holds in memory is not what was written into it: the memory has failed. "+
			"Start it again, so that it loads its data from its disk; if it then says diverged, the others have noticed, and it is to be replaced")
	// errEnding: the node has met a fault with which it cannot go on, such as an
	// error of the log's disk. Its process ends once its clients know.
	errEnding = newProblem(http.StatusInternalServerError, "internal", notApplied, retryLater,
		"this node cannot go on, and ends")

	// How a node ends.

	// errOldCopy ends a node whose directory forgot what the cluster heard from it.
	// It broke promises, votes or acknowledgements, that others may have relied on.
	errOldCopy = errors.New("this node's data directory is an older copy of the one with which it took part in the cluster, " +
		"or another process runs with a copy of it. If there is such a process, stop one of the two for good. " +
		"Else remove this node through another one (DELETE /ID) and join under a new ID with an empty data directory. " +
		"If so many nodes end like this that no majority is left, run raftkv recover --force-new-cluster on one that does not")

	// errUsedID: this ID belongs to a node with another data directory. Going
	// on could cost acknowledged writes: this one has forgotten its votes.
	errUsedID = errors.New("this node ID was used before, with a data directory that is not this one: " +
		"an ID is used once. If that directory is lost, remove the node (DELETE /ID) and join under a new ID")

	// errRemoved: the node was taken out of the cluster. Its process ends
	// with exit status 0, because that is what was asked for.
	errRemoved = errors.New("this node was removed from the cluster")
)
