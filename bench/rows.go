package main

import "regexp"

// row is one workload of the table, and who is put under it.
type row struct {
	name   string
	writes float64 // part of the requests that are PUTs
	read   operation
	conns  int
	size   int // of the values
	keys   keyRange
	// atHalf has it run open loop, at half of the rate that etcd's gRPC reaches
	// with this row's load in a closed loop.
	atHalf  bool
	lanes   []string
	quick   bool // it belongs to the short table
	targets []target
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
)

var (
	allLanes    = []string{raftkvLeader, raftkvFollower, gatewayLeader, gatewayFollower, grpcLeader, grpcFollower, bareHandlerLane}
	leaderLanes = []string{raftkvLeader, gatewayLeader, grpcLeader, bareHandlerLane}
)

// The figures of a lane.
const (
	figureRate = "rate"
	figureP50  = "p50"
	figureP99  = "p99"
)

// The keys of rows with values of unlike sizes are apart, so that a read always
// finds what it expects.
var (
	usualKeys  = keyRange{first: 0, count: 10_000}
	middleKeys = keyRange{first: 1_000_000, count: 10_000}
	largeKeys  = keyRange{first: 2_000_000, count: 500}
)

const usualSize = 128

// rateRows are the rows whose lanes take turns.
func rateRows() []row {
	put := func(r row) row { r.writes = 1; return r }
	atLeast := func(lane string, ratio float64, rival string) target {
		return target{lane: lane, figure: figureRate, least: ratio, rival: rival}
	}
	return []row{
		put(row{name: "PUT, 64 connections", conns: 64, lanes: allLanes, quick: true, targets: []target{
			atLeast(raftkvLeader, 5, gatewayLeader),
			atLeast(raftkvLeader, 3.5, grpcLeader),
			atLeast(raftkvLeader, 0.5, bareHandlerLane),
			atLeast(raftkvFollower, 0.8, raftkvLeader),
		}}),
		put(row{name: "PUT, 256 connections", conns: 256, lanes: allLanes, targets: []target{
			atLeast(raftkvLeader, 4, grpcLeader),
		}}),
		put(row{name: "PUT, 1 connection", conns: 1, lanes: allLanes, targets: []target{
			{lane: raftkvLeader, figure: figureP50, most: 0.7, rival: grpcLeader},
		}}),
		{name: "GET, linearizable, 64 connections", read: get, conns: 64, lanes: allLanes, quick: true, targets: []target{
			atLeast(raftkvLeader, 5, gatewayLeader),
			atLeast(raftkvLeader, 3, grpcLeader),
			atLeast(raftkvLeader, 0.7, bareHandlerLane),
		}},
		{name: "GET, stale, 64 connections", read: getStale, conns: 64, lanes: leaderLanes, quick: true, targets: []target{
			atLeast(raftkvLeader, 0.9, bareHandlerLane),
		}},
		{name: "half PUT, half GET, 64 connections", writes: 0.5, read: get, conns: 64, lanes: leaderLanes},
		put(row{name: "PUT of 1 KiB, 64 connections", conns: 64, size: 1 << 10, keys: middleKeys, lanes: leaderLanes}),
		put(row{name: "PUT of 64 KiB, 64 connections", conns: 64, size: 64 << 10, keys: largeKeys, lanes: leaderLanes}),
		put(row{name: "PUT at half of etcd's maximum, open loop", conns: 64, atHalf: true,
			lanes: leaderLanes, targets: []target{
				{lane: raftkvLeader, figure: figureP99, most: 0.5, rival: grpcLeader},
			}}),
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
			short := lane != gatewayFollower && lane != grpcFollower
			if lanes.MatchString(lane) && (short || !quick) {
				some = append(some, lane)
			}
		}
		r.lanes = some
		out = append(out, r)
	}
	return out
}
