package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// retrieveTimeout bounds all that is asked about credentials at a time. It is less
	// than the patience of those who wait, who can't give up earlier.
	retrieveTimeout = 1500 * time.Millisecond

	// retrieveAgain is when credentials are asked for again that could not be renewed
	// but are still valid.
	retrieveAgain = 15 * time.Second
)

// newCredentials are those that were given or else the first that there are: of the
// environment, of a web identity or container, of the machine's role.
func newCredentials(given Credentials, region string) *credentials.Credentials {
	if given.AccessKey != "" {
		return credentials.NewStaticV4(given.AccessKey, given.SecretKey, "")
	}
	client := &http.Client{
		Transport:     newTransport(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return credentials.New(&chain{providers: []credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.IAM{Client: client, Region: region},
	}})
}

// chain is the library's chain of providers, but says why there are no credentials
// rather than go on without, bounds the time that it takes, and keeps credentials for
// as long as they are valid. It is called by one goroutine at a time.
type chain struct {
	providers []credentials.Provider

	value credentials.Value
	until time.Time // zero: for ever

	err  error // of the last time
	rest time.Time
}

// RetrieveWithCredContext implements credentials.Provider.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	began := time.Now()
	if began.Before(c.rest) {
		return credentials.Value{}, c.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), retrieveTimeout) // whoever asks first, asks for all
	defer cancel()
	value, err := c.first(&credentials.CredContext{Client: cc.Client, Endpoint: cc.Endpoint, Context: ctx})
	now := time.Now()
	switch {
	case err == nil && value.Expiration.IsZero():
		c.value, c.until = value, time.Time{}
	case err == nil:
		c.value, c.until = value, now.Add(value.Expiration.Sub(now)*4/5)
	case now.Before(c.value.Expiration):
		c.until = now.Add(min(retrieveAgain, c.value.Expiration.Sub(now)))
	default: // who has waited for this as well does not have to wait for the same again
		c.err, c.rest = err, now.Add(now.Sub(began))
		return credentials.Value{}, err
	}
	return c.value, nil
}

func (c *chain) first(cc *credentials.CredContext) (credentials.Value, error) {
	var errs error
	for _, p := range c.providers {
		value, err := p.RetrieveWithCredContext(cc)
		if err == nil && value.AccessKeyID != "" && value.SecretAccessKey != "" {
			return value, nil
		}
		errs = errors.Join(errs, err)
	}
	return credentials.Value{}, fmt.Errorf("%w: none were given, none are in the environment, and there is no role: %w", errNoCredentials, errs)
}

// Retrieve implements credentials.Provider.
func (c *chain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(&credentials.CredContext{})
}

// IsExpired implements credentials.Provider.
func (c *chain) IsExpired() bool {
	return !c.until.IsZero() && !time.Now().Before(c.until)
}
