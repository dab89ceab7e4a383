package upstream

import (
	"context"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Outlook is what a question about a repository would meet at one URL of its
// registry now.
type Outlook struct {
	Place
	Wait    time.Duration // how long no question about the repository will be put; 0: one would be
	Limited bool          // that is because of a 429
	Cause   error         // why, if Wait is not 0; the place's own cause is another matter

	Credentials    bool // some would be shown
	CredentialsErr error
}

// Outlooks are those of a repository, in the order of the list. Nobody is asked
// for them, but the credentials are looked up.
func (r *Repository) Outlooks(ctx context.Context) []Outlook {
	var list []Outlook
	for _, p := range r.places() {
		o := Outlook{Place: p.stats()}
		refused := p.trouble(r.name).peek()
		if refused == nil {
			refused = p.breaker.peek()
		}
		if refused != nil {
			o.Wait, o.Limited, o.Cause = refused.left, refused.status == http.StatusTooManyRequests, refused.cause
		}
		auth, err := r.client.credentials(ctx, p)
		o.Credentials, o.CredentialsErr = err == nil && auth != authn.Anonymous, err
		list = append(list, o)
	}
	return list
}
