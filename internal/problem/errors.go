package problem

import (
	"errors"
	"net/http"
)

// What can become of a request, besides success. Each error says whether it
// happened and whether to try again; problem.go tells the client.
var (
	// Did not happen.

	ErrNotFound = declare(http.StatusNotFound, "not_found", NotApplied, NoRetry,
		"no such key")
	ErrPrecondition = declare(http.StatusPreconditionFailed, "precondition_failed", NotApplied, NoRetry,
		"the condition does not hold")
	ErrOverloaded = declare(http.StatusTooManyRequests, "overloaded", NotApplied, RetrySoon,
		"too many requests are waiting on this node")
	ErrNoLeader = declare(http.StatusServiceUnavailable, "no_leader", NotApplied, RetrySoon,
		"the cluster has no leader that this node can reach")
	ErrStopping = declare(http.StatusServiceUnavailable, "stopping", NotApplied, RetrySoon,
		"this node is stopping")
	ErrNotReady = declare(http.StatusServiceUnavailable, "not_ready", NotApplied, RetrySoon,
		"this node is not ready")
	ErrUnavailable = declare(http.StatusServiceUnavailable, "unavailable", NotApplied, RetrySoon,
		"the cluster did not confirm in time that this read is fresh")
	ErrTooStale = declare(http.StatusServiceUnavailable, "too_stale", NotApplied, RetrySoon,
		"what this node has is older than was asked for")
	ErrWouldLose = declare(http.StatusConflict, "would_lose_quorum", NotApplied, RetryLater,
		"the change would leave the cluster without a reachable majority")
	ErrQuota = declare(http.StatusInsufficientStorage, "quota_exceeded", NotApplied, RetryLater,
		"there is no room for more keys and values")
	ErrInProgress = declare(http.StatusConflict, "change_in_progress", NotApplied, RetrySoon,
		"another membership change is in progress")

	// ErrNoSuchLease: a write names a lease that has ended, or never was. Where a request
	// is about the lease itself it is ErrLeaseUnknown.
	ErrNoSuchLease = declare(http.StatusConflict, "no_such_lease", NotApplied, NoRetry,
		"there is no such lease: it has run out, was revoked or never was")
	ErrLeaseUnknown = declare(http.StatusNotFound, "no_such_lease", NotApplied, NoRetry,
		"there is no such lease: it has run out, was revoked or never was")
	ErrLeaseFull = declare(http.StatusConflict, "lease_full", NotApplied, NoRetry,
		"the lease holds as many keys as a lease may")
	ErrTooManyLeases = declare(http.StatusInsufficientStorage, "quota_exceeded", NotApplied, RetryLater,
		"there are as many leases as there may be")
	ErrNotANumber = declare(http.StatusConflict, "not_a_number", NotApplied, NoRetry,
		"the value is not a decimal number")
	ErrOutOfRange = declare(http.StatusConflict, "out_of_range", NotApplied, NoRetry,
		"the number would not fit into 64 bits with a sign")
	// ErrKeyReused: 422 is what a draft of the IETF says of it.
	ErrKeyReused = declare(http.StatusUnprocessableEntity, "idempotency_key_reused", NotApplied, NoRetry,
		"another request has this Idempotency-Key")
	// ErrUpgrading: some member runs a program that does not know the request yet.
	ErrUpgrading = declare(http.StatusServiceUnavailable, "upgrading", NotApplied, RetrySoon,
		"not all members of the cluster run a program yet that knows this")

	// ErrDiskFull: a disk on which the cluster depends is almost full.
	ErrDiskFull = declare(http.StatusInsufficientStorage, "disk_full", NotApplied, RetryLater,
		"the disks have no room for this")

	// Of the HTTP interface itself.

	ErrBadRequest = declare(http.StatusBadRequest, "bad_request", NotApplied, NoRetry,
		"bad request")
	ErrNoSuchPath = declare(http.StatusNotFound, "no_such_path", NotApplied, NoRetry,
		"no such path")
	ErrMethodNotAllowed = declare(http.StatusMethodNotAllowed, "method_not_allowed", NotApplied, NoRetry,
		"method not allowed")
	ErrTooLarge = declare(http.StatusRequestEntityTooLarge, "too_large", NotApplied, NoRetry,
		"this is too large")
	ErrMediaType = declare(http.StatusUnsupportedMediaType, "unsupported_media_type", NotApplied, NoRetry,
		"the body has a type that is not taken here")
	ErrRequestTimeout = declare(http.StatusRequestTimeout, "request_timeout", NotApplied, RetryLater,
		"the request did not arrive in time")
	// ErrTooSlow can only be told at the end of an answer that breaks off.
	ErrTooSlow = declare(http.StatusRequestTimeout, "request_timeout", NotApplied, RetryLater,
		"the answer was not taken in time")
	ErrWrongHost = declare(http.StatusMisdirectedRequest, "wrong_host", NotApplied, NoRetry,
		"this name is not one of this node's")
	ErrCrossOrigin = declare(http.StatusForbidden, "cross_origin", NotApplied, NoRetry,
		"a browser sent this on behalf of another site")
	// ErrUnauthenticated: it is not known who asks. web.Problem adds WWW-Authenticate.
	ErrUnauthenticated = declare(http.StatusUnauthorized, "unauthenticated", NotApplied, NoRetry,
		"it is not known who asks")
	ErrForbidden = declare(http.StatusForbidden, "forbidden", NotApplied, NoRetry,
		"this is not allowed")
	ErrAmbiguous = declare(http.StatusConflict, "ambiguous", NotApplied, NoRetry,
		"a node and a key have this name")
	ErrInternal = declare(http.StatusInternalServerError, "internal", MaybeApplied, NoRetry,
		"internal error")

	// Of changes of the members and of the leader.

	ErrMemberExists = declare(http.StatusConflict, "member_exists", NotApplied, NoRetry,
		"another member has this ID or this URL")
	ErrMemberRemoved = declare(http.StatusConflict, "member_removed", NotApplied, NoRetry,
		"this ID was removed; an ID is used once in the life of a cluster")
	ErrMemberUnknown = declare(http.StatusNotFound, "not_found", NotApplied, NoRetry,
		"no member has this ID")
	ErrLastVoter = declare(http.StatusConflict, "last_voter", NotApplied, NoRetry,
		"the last voter can neither be removed nor become a learner")
	ErrBadPeerURL = declare(http.StatusBadRequest, "bad_request", NotApplied, NoRetry,
		"bad peer URL")
	// ErrSameNode: the change did not happen, and no other ID would help.
	ErrSameNode = declare(http.StatusConflict, "member_exists", NotApplied, NoRetry,
		"this URL is another name of a member's")
	ErrNotVoter = declare(http.StatusConflict, "not_voter", NotApplied, NoRetry,
		"only a voter can lead")
	ErrNotHandedOver = declare(http.StatusServiceUnavailable, "not_handed_over", MaybeApplied, RetrySoon,
		"leadership was not handed over")
	// ErrElsewhere: this node does not lead; ask another.
	ErrElsewhere = declare(http.StatusServiceUnavailable, "not_leader", NotApplied, RetrySoon,
		"this node is not the leader")

	// May have happened.

	// ErrOutcomeUnknown: the request was handed to raft, and the answer did
	// not come in time. It may still be applied.
	ErrOutcomeUnknown = declare(http.StatusGatewayTimeout, "outcome_unknown", MaybeApplied, RetryLater,
		"handed to the cluster, but not confirmed in time: it may or may not happen")

	// This node is broken.

	// ErrStuck: a part of the node does not come round any more.
	ErrStuck = declare(http.StatusServiceUnavailable, "stuck", NotApplied, RetryLater,
		"this node hangs and should be started again")

	ErrDiverged = declare(http.StatusServiceUnavailable, "diverged", NotApplied, NoRetry,
		"this node's data is not that of the other replicas: nothing that it holds can be relied on. "+
			"Remove it through another node (DELETE /ID) and join under a new ID with an empty data directory")
	// ErrHistories: not found by a check, but from a log that contradicts this node's.
	ErrHistories = declare(http.StatusServiceUnavailable, "diverged", NotApplied, NoRetry,
		"this node's log and another member's contradict each other: there are two histories, and writes that were "+
			"acknowledged in one are missing in the other, as when a data directory was put back from an older copy. "+
			"To keep the history of the others, remove this node through one of them (DELETE /ID) and join under a new ID with an empty "+
			"data directory. To keep this node's, stop all nodes and make a new cluster of its directory (raftkv recover)")
	// ErrDisputed: a request can end for it, and a node not be ready; it accuses nobody.
	ErrDisputed = declare(http.StatusServiceUnavailable, "disputed", NotApplied, RetryLater,
		"the histories of this node and of another member contradict each other, and too few voters answer to tell which one "+
			"the majority keeps: nothing can be committed before that. Start the voters that are down. If they are lost, choose one node's "+
			"history, stop all nodes, and make a new cluster of that node's directory (raftkv recover)")
	ErrNoMajority = declare(http.StatusServiceUnavailable, "diverged", NotApplied, RetryLater,
		"the replicas hold different data, and no majority of them agrees: "+
			"nothing is served before a check finds one. Nodes that are down may make it; else restore a backup")
	// ErrMemory: found by this node alone, in itself. Its disk may be sound,
	// because what is not the sum's does not get there (state.Write).
	ErrMemory = declare(http.StatusServiceUnavailable, "diverged", NotApplied, NoRetry,
		"what this node holds in memory is not what was written into it: the memory has failed. "+
			"Start it again, so that it loads its data from its disk; if it then says diverged, the others have noticed, and it is to be replaced")
	// ErrEnding: the node has met a fault with which it cannot go on, such as an
	// error of the log's disk. Its process ends once its clients know.
	ErrEnding = declare(http.StatusInternalServerError, "internal", NotApplied, RetryLater,
		"this node cannot go on, and ends")

	// How a node ends.

	// ErrOldCopy ends a node whose directory forgot what the cluster heard from it.
	// It broke promises, votes or acknowledgements, that others may have relied on.
	ErrOldCopy = errors.New("this node's data directory is an older copy of the one with which it took part in the cluster, " +
		"or another process runs with a copy of it. If there is such a process, stop one of the two for good. " +
		"Else remove this node through another one (DELETE /ID) and join under a new ID with an empty data directory. " +
		"If so many nodes end like this that no majority is left, run raftkv recover --force-new-cluster on one that does not")

	// ErrUsedID: this ID belongs to a node with another data directory. Going
	// on could cost acknowledged writes: this one has forgotten its votes.
	ErrUsedID = errors.New("this node ID was used before, with a data directory that is not this one: " +
		"an ID is used once. If that directory is lost, remove the node (DELETE /ID) and join under a new ID")

	// ErrRemoved: the node was taken out of the cluster. Its process ends
	// with exit status 0, because that is what was asked for.
	ErrRemoved = errors.New("this node was removed from the cluster")
)
