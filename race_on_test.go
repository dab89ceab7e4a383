//go:build race

package main

// raced is whether the race detector slows everything down.
const raced = true
