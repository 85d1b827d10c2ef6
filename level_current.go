//go:build !raftkv_level1

package main

// programLevel is the highest level of commands that this program knows.
const programLevel = lifeLevel
