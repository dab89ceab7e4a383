package upstream

import (
	"crypto/rand"
	"regexp"
	"slices"
	"strings"
)

// maxHops is how many larders may be in a row. More are a loop, whatever they are
// called.
const maxHops = 8

// hopPattern is the name of a larder in a Via header. RFC 9110, section 7.6.3.
var hopPattern = regexp.MustCompile(`^larder-[A-Z2-7]{26}$`)

// newHop is a name that no other larder has.
func newHop() string { return "larder-" + rand.Text() }

// hops are the larders that Via headers name. Nothing else of a client's headers
// goes upstream.
func hops(via []string) (names []string) {
	for _, value := range via {
		for entry := range strings.SplitSeq(value, ",") {
			if fields := strings.Fields(entry); len(fields) >= 2 && hopPattern.MatchString(fields[1]) {
				names = append(names, fields[1])
			}
		}
	}
	return names
}

// Name is what this larder is called where others are.
func (c *Client) Name() string { return c.hop }

// Loops reports whether a request with these Via headers has been here before, and
// would go round for ever: each larder puts its name into what it asks upstream.
func (c *Client) Loops(via []string) bool {
	names := hops(via)
	return len(names) >= maxHops || slices.Contains(names, c.hop)
}

// Via is the repository for who comes with these Via headers: what is asked for
// them goes upstream with the names of the larders that have passed it on. A
// question that many share has those of who came first, which is enough: see
// Repository.Circular for two who came first at once.
func (r *Repository) Via(via []string) *Repository {
	if len(via) == 0 {
		return r
	}
	passed := *r
	passed.hops = hops(via)
	return &passed
}

// Asking are the larders that what is asked is for.
func (r *Repository) Asking() []string { return r.hops }

// Circular reports whether a larder that asks about the repository is itself being
// asked about it. If either joined the other's question, they would wait for each
// other.
func (r *Repository) Circular() bool {
	return len(r.hops) > 0 && slices.ContainsFunc(r.places(), func(p *place) bool { return p.waitsFor(r.hops, r.name) })
}

// Answer is the Via header for the answer to a request with these Via headers: a
// larder that asks is told the name of the one that it asks, others nothing.
func (c *Client) Answer(via []string) []string {
	if len(hops(via)) == 0 {
		return nil
	}
	return []string{c.viaHeader(nil)}
}

// viaHeader is what a request upstream is marked with.
func (c *Client) viaHeader(passed []string) string {
	var s strings.Builder
	for _, hop := range passed {
		s.WriteString("1.1 " + hop + ", ")
	}
	s.WriteString("1.1 " + c.hop)
	return s.String()
}
