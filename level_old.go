//go:build raftkv_level1

package main

// programLevel is that of the version before the replicas checked each other.
// Such a program is built to test upgrades.
const programLevel = firstLevel
