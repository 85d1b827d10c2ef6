package main

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// row is one workload of the table, and who is put under it.
type row struct {
	name   string
	writes float64   // part of the requests that are PUTs
	read   operation // of all others
	conns  int
	size   int // of the values
	keys   keyRange
	// atHalf has it run open loop, at half of the rate that etcd's gRPC reaches
	// with this row's load in a closed loop.
	atHalf  bool
	rate    float64 // of an open loop; 0 is a closed one, or what atHalf will find
	stretch int     // turns are so many times as long as others; 0 is 1
	lanes   []string
	quick   bool // it belongs to the short table
	targets []target
	notes   []string
}

// turnSettings returns the settings of this row's turns.
func (r row) turnSettings(s settings) settings {
	s.warm *= time.Duration(max(1, r.stretch))
	s.length *= time.Duration(max(1, r.stretch))
	return s
}

// target is what is to be reached: a figure of a lane, relative to the same
// figure of another, measured in the same row.
type target struct {
	lane, figure string
	least, most  float64 // of the ratio; 0 is no bound
	rival        string
}

// The lanes: a system, the way to drive it, and through which node.
const (
	raftkvLeader    = "raftkv, leader"
	raftkvFollower  = "raftkv, follower"
	gatewayLeader   = "etcd gateway, leader"
	gatewayFollower = "etcd gateway, follower"
	grpcLeader      = "etcd gRPC, leader"
	grpcFollower    = "etcd gRPC, follower"
	bareHandlerLane = "bare net/http"
	natsLane        = "NATS KV, leader"
	redisLane       = "Redis, ONE node"
	// raftkvAt256 has 256 connections, whatever its row has.
	raftkvAt256 = "raftkv, leader, at 256"
	// raftkvOnce has an Idempotency-Key with each PUT.
	raftkvOnce = "raftkv, leader, once"
	// Those over TLS, at the client port and between the nodes.
	raftkvTLS  = "raftkv, leader, TLS"
	gatewayTLS = "etcd gateway, leader, TLS"
	grpcTLS    = "etcd gRPC, leader, TLS"
)

var (
	allLanes    = []string{raftkvLeader, raftkvFollower, gatewayLeader, gatewayFollower, grpcLeader, grpcFollower, bareHandlerLane}
	leaderLanes = []string{raftkvLeader, gatewayLeader, grpcLeader, bareHandlerLane}
	// The gateway is left out where it is one more hop to the same limit.
	crowdLanes = []string{raftkvLeader, raftkvAt256, grpcLeader, bareHandlerLane}
	// The bare handler has keys and nothing else.
	storeLanes = []string{raftkvLeader, raftkvFollower, gatewayLeader, grpcLeader}
	tlsLanes   = []string{raftkvTLS, raftkvLeader, gatewayTLS, grpcTLS, grpcLeader}
)

// The systems: what a cluster is of.
const (
	raftkvSystem = "raftkv"
	etcdSystem   = "etcd"
	natsSystem   = "nats"
	redisSystem  = "redis"
	bareSystem   = "bare"

	raftkvTLSSystem = "raftkv-tls"
	etcdTLSSystem   = "etcd-tls"
)

// lane says which system is put under load, and how.
type lane struct {
	system   string
	dial     dialer
	follower bool // through a follower
	conns    int  // 0: as many as the row has
}

// lane returns the lane of a name.
func (s settings) lane(name string) lane {
	switch name {
	case raftkvLeader, raftkvFollower:
		return lane{system: raftkvSystem, dial: dialRaftkv, follower: name == raftkvFollower}
	case raftkvAt256:
		return lane{system: raftkvSystem, dial: dialRaftkv, conns: 256}
	case raftkvOnce:
		return lane{system: raftkvSystem, dial: dialRaftkvOnce}
	case gatewayLeader, gatewayFollower:
		return lane{system: etcdSystem, dial: dialGateway, follower: name == gatewayFollower}
	case grpcLeader, grpcFollower:
		return lane{system: etcdSystem, dial: dialGRPC(s.workersPer), follower: name == grpcFollower}
	case raftkvTLS:
		return lane{system: raftkvTLSSystem, dial: over(s.secured.dial, raftkvOver)}
	case gatewayTLS:
		return lane{system: etcdTLSSystem, dial: over(s.secured.dial, gatewayOver)}
	case grpcTLS:
		return lane{system: etcdTLSSystem, dial: grpcOver(s.secured, s.workersPer)}
	case natsLane:
		return lane{system: natsSystem, dial: dialNATS(s.workersPer)}
	case redisLane:
		return lane{system: redisSystem, dial: dialRedis}
	default:
		return lane{system: bareSystem, dial: dialRaftkv}
	}
}

// The figures of a lane.
const (
	figureRate = "rate"
	figureP50  = "p50"
	figureP99  = "p99"
	figureCPU  = "server CPU of an operation"
)

// The keys of rows with values of unlike sizes are apart, so that a read always
// finds what it expects.
var (
	usualKeys  = keyRange{first: 0, count: 10_000}
	middleKeys = keyRange{first: 1_000_000, count: 10_000}
	largeKeys  = keyRange{first: 2_000_000, count: 500}
)

const usualSize = 128

// The rows about more than one key.
const (
	txnName       = "transaction, compare one and put two, 64 connections"
	listName      = "list of 1,000 keys, 64 connections"
	keepAliveName = "lease kept alive, 64 connections"
	onceName      = "PUT with an Idempotency-Key, 64 connections"
)

// rateRows are the rows whose lanes take turns.
func rateRows() []row {
	put := func(r row) row { r.writes = 1; return r }
	atLeast := func(lane string, ratio float64, rival string) target {
		return target{lane: lane, figure: figureRate, least: ratio, rival: rival}
	}
	beside := func(lanes []string, more ...string) []string { return slices.Concat(lanes, more) }
	return []row{
		put(row{name: "PUT, 64 connections", conns: 64, lanes: beside(allLanes, natsLane, redisLane), quick: true, targets: []target{
			atLeast(raftkvLeader, 5, gatewayLeader),
			atLeast(raftkvLeader, 3.5, grpcLeader),
			atLeast(raftkvLeader, 0.6, bareHandlerLane),
			atLeast(raftkvFollower, 0.9, raftkvLeader),
		}}),
		put(row{name: "PUT, 256 connections", conns: 256, lanes: beside(allLanes, natsLane, redisLane), targets: []target{
			atLeast(raftkvLeader, 4, grpcLeader),
			atLeast(raftkvLeader, 0.8, bareHandlerLane),
			{lane: raftkvLeader, figure: figureCPU, most: 1.1, rival: bareHandlerLane},
		}}),
		put(row{name: "PUT, 4,096 connections", conns: 4096, stretch: 2, lanes: crowdLanes}),
		put(row{name: "PUT, 1 connection", conns: 1, lanes: beside(allLanes, natsLane, redisLane), targets: []target{
			{lane: raftkvLeader, figure: figureP50, most: 0.7, rival: grpcLeader},
		}}),
		{name: "GET, linearizable, 64 connections", read: get, conns: 64, lanes: beside(allLanes, redisLane), quick: true, targets: []target{
			atLeast(raftkvLeader, 5, gatewayLeader),
			atLeast(raftkvLeader, 3, grpcLeader),
			atLeast(raftkvLeader, 1, bareHandlerLane),
		}},
		{name: "GET, linearizable, 4,096 connections", read: get, conns: 4096, stretch: 2, lanes: crowdLanes, targets: []target{
			atLeast(raftkvLeader, 0.6, raftkvAt256),
			{lane: raftkvLeader, figure: figureP99, most: 0.3, rival: bareHandlerLane},
		}},
		{name: "GET, stale, 64 connections", read: getStale, conns: 64, lanes: beside(leaderLanes, natsLane), quick: true, targets: []target{
			atLeast(raftkvLeader, 1.2, bareHandlerLane),
		}},
		{name: "half PUT, half GET, 64 connections", writes: 0.5, read: get, conns: 64, lanes: leaderLanes},
		{name: "1 PUT to 9 GET, 64 connections", writes: 0.1, read: get, conns: 64, lanes: leaderLanes},
		put(row{name: "PUT of 1 KiB, 64 connections", conns: 64, size: 1 << 10, keys: middleKeys, lanes: leaderLanes}),
		// Before the row of 64 KiB, whose state files are removed long after it.
		put(row{name: "PUT at half of etcd's maximum, open loop", conns: 64, atHalf: true,
			lanes: leaderLanes, targets: []target{
				{lane: raftkvLeader, figure: figureP99, most: 0.5, rival: grpcLeader},
			}}),
		{name: txnName, read: txn, conns: 64, lanes: storeLanes,
			notes: []string{"each client compares a key of its own, and writes it and one that all draw from"}},
		{name: listName, read: list, conns: 64, lanes: storeLanes},
		{name: keepAliveName, read: keepAlive, conns: 64, lanes: storeLanes,
			notes: []string{"raftkv's is committed by a majority; etcd's is in the memory of its leader alone"}},
		put(row{name: onceName, conns: 64, lanes: []string{raftkvOnce, raftkvLeader, gatewayLeader, grpcLeader},
			notes: []string{"in the first lane; the others send a plain PUT"}}),
		put(row{name: "PUT over TLS, 64 connections", conns: 64, lanes: tlsLanes}),
		{name: "GET over TLS, linearizable, 64 connections", read: get, conns: 64, lanes: tlsLanes},
		put(row{name: "PUT of 64 KiB, 64 connections", conns: 64, size: 64 << 10, keys: largeKeys, lanes: leaderLanes}),
	}
}

// chosen returns the rows whose names match, or those of the short table, with
// the lanes whose names match.
func chosen(rows []row, names, lanes *regexp.Regexp, quick bool) []row {
	var out []row
	for _, r := range rows {
		if quick && !r.quick || !names.MatchString(r.name) {
			continue
		}
		if r.size == 0 {
			r.size, r.keys = usualSize, usualKeys
		}
		var some []string
		for _, lane := range r.lanes {
			short := lane != gatewayFollower && lane != grpcFollower && lane != natsLane && lane != redisLane
			if lanes.MatchString(lane) && (short || !quick) {
				some = append(some, lane)
			}
		}
		r.lanes = some
		out = append(out, r)
	}
	return out
}

// without returns the rows without the lanes of a system that is not there, and
// a note in its place.
func without(rows []row, s settings, system string, why error) []row {
	var out []row
	for _, r := range rows {
		all := len(r.lanes)
		r.lanes = slices.DeleteFunc(slices.Clone(r.lanes), func(name string) bool { return s.lane(name).system == system })
		if len(r.lanes) < all {
			r.notes = append(slices.Clone(r.notes), fmt.Sprintf("skipped: %s: %v", system, why))
		}
		out = append(out, r)
	}
	return out
}
