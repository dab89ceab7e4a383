package upstream

// For tables and fuzz tests of what reads upstream's headers.
var (
	Hops              = hops
	NextPage          = nextPage
	ParseContentRange = parseContentRange
	ParseQuota        = parseQuota
	RetryAfter        = retryAfter
)
