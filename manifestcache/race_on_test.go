//go:build race

package manifestcache_test

// interleavings is how many random ones a whole test run tries. Under the race
// detector each takes several times as long.
const interleavings = 300
