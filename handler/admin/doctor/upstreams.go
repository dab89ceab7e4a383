package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"larder/handler/upstream"
)

// maxSkew is how far clocks may be apart before that is worth a word. Certificates
// and tokens have beginnings and ends; a minute or two is allowed for by all.
const maxSkew = time.Minute

// upstreams asks the registries.
func (cfg Config) upstreams(ctx context.Context, known *upstream.Repository, tag string) []Check {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var checks []Check
	for _, u := range cfg.Upstreams.CheckUp(ctx, known, tag) {
		c := Check{Name: "upstream " + u.Host, Status: OK, Detail: u.URL + " answers, to anybody"}
		if u.Parent {
			c.Name = "parent"
		}
		for _, s := range u.Steps {
			c.Steps = append(c.Steps, step(string(s.Name), s.Took))
		}
		switch {
		case u.Err != nil:
			c.Status, c.Detail = Failed, fmt.Sprintf("%s: %s: %v", u.URL, u.Failed, u.Err)
			if c.Do = remedy(u); u.Parent {
				c.Status, c.Detail = Warning, c.Detail+"; meanwhile the registries are asked directly"
			}
		case u.Credentials:
			c.Detail = u.URL + " answers, and takes larder's credentials"
		}
		c.quota(u.Quota)
		if u.Dated && u.Skew.Abs() > maxSkew {
			c.Detail += fmt.Sprintf("; its clock is %v ahead of this one", u.Skew)
			if c.Status == OK {
				c.Status, c.Do = Warning, "Set this machine's clock: certificates and tokens are refused when it is far off."
			}
		}
		checks = append(checks, c)
	}
	return checks
}

func (c *Check) quota(q upstream.Quota) {
	if q == (upstream.Quota{}) {
		return
	}
	c.Detail += fmt.Sprintf("; %d of %d pulls are left of its rate limit", q.Remaining, q.Limit)
	if q.Remaining == 0 && c.Status == OK {
		c.Status, c.Do = Warning, fmt.Sprintf("Wait, at most %v, or sign in for a higher limit; until then larder serves what is cached.", q.Window)
	}
}

// remedy is what to do about a checkup that failed.
func remedy(u *upstream.Checkup) string {
	var status int
	variable := "LARDER_UPSTREAMS"
	if u.Parent {
		variable = "LARDER_PARENT"
	}
	if e, ok := errors.AsType[*upstream.Error](u.Err); ok {
		status = e.Status
	}
	switch {
	case u.Failed == upstream.StepCredentials:
		return "Check LARDER_PASSWORD_FILE, or the config.json of Docker that larder reads and its credential helpers."
	case u.Failed == upstream.StepResolve:
		return "Check the name in " + variable + ", and what this machine takes for its DNS (/etc/resolv.conf)."
	case u.Parent && u.Failed == upstream.StepConnect:
		return "Check that the larder in LARDER_PARENT runs and is reached there (its LARDER_ADDR), and that a firewall lets this one through."
	case u.Failed == upstream.StepConnect:
		return "Check that the registry is up at that URL, and that a firewall lets larder through; if the way there is a proxy, set HTTPS_PROXY."
	case u.Failed == upstream.StepTLS:
		return "Check this machine's clock and the URL's scheme; if a CA of your own has signed the registry's certificate, set SSL_CERT_FILE to that CA's."
	case status == http.StatusTooManyRequests:
		return "Wait, or sign in for a higher limit; until then larder serves what is cached."
	case u.Parent && (status == http.StatusUnauthorized || status == http.StatusForbidden):
		return "It wants a password, or another one: docker login there as the user that larder runs as."
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		if !u.Credentials {
			return "It wants a password: set LARDER_USERNAME and LARDER_PASSWORD for the default upstream, or docker login as the user that larder runs as."
		}
		return "Check the user name and the password that larder has for it: LARDER_USERNAME and LARDER_PASSWORD for the default upstream, Docker's config.json for others."
	case u.Parent && status >= http.StatusInternalServerError:
		return "The parent is in trouble: larder doctor there says more."
	case status >= http.StatusInternalServerError:
		return "The registry is in trouble: look at its status page, and wait; until then larder serves what is cached."
	default:
		return "Check the URL in " + variable + ": what answers there does not do so as a registry."
	}
}
