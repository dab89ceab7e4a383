package manifestcache

import "sync"

// changes are the names of files that somebody is changing. A file and what the index
// knows of it are two, which no lock can hold together, as it would be held while the
// disk works: but whoever changes one of them, or finds that they differ and mends it,
// has the name for himself until both are changed. Who only reads need not wait.
//
// Nobody begins a second change within one, but for that of the name of a file's
// repository, whose own changes have none within: so nobody waits for himself.
type changes struct {
	mu      sync.Mutex               // guards what follows
	running map[string]chan struct{} // by name; closed when it is over
}

func newChanges() changes { return changes{running: make(map[string]chan struct{})} }

// begin waits until nobody else changes what has this name, and returns what ends the
// caller's own change of it.
func (c *changes) begin(name string) (end func()) {
	over := make(chan struct{})
	for {
		c.mu.Lock()
		other := c.running[name]
		if other == nil {
			c.running[name] = over
			c.mu.Unlock()
			break
		}
		c.mu.Unlock()
		<-other
	}
	return func() {
		c.mu.Lock()
		delete(c.running, name)
		c.mu.Unlock()
		close(over)
	}
}
