//go:build !race

package blobcache_test

// interleavings is how many random ones a whole test run tries.
const interleavings = 10_000
