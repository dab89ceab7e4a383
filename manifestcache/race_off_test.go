//go:build !race

package manifestcache_test

// interleavings is how many random ones a whole test run tries.
const interleavings = 2_000
