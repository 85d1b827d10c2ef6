// Package client answers: how does a Go program use a cluster of raftkv?
package client

//go:generate go run gencodes.go
