package upstream

// For tables and fuzz tests of what reads upstream's headers.
var (
	NextPage          = nextPage
	ParseContentRange = parseContentRange
)
