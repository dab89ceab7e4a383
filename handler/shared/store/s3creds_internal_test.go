package store

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// granting is a provider of credentials that is asked by nobody but chain.
type granting func() (credentials.Value, error)

func (g granting) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return g()
}
func (g granting) Retrieve() (credentials.Value, error) { return g() }
func (g granting) IsExpired() bool                      { return false }

// TestCredentialsAreUsedWhileTheyAreValid shows when they are renewed, and that a
// source which fails then takes away nothing.
func TestCredentialsAreUsedWhileTheyAreValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("the source fails")
		asked, down := 0, false
		creds := credentials.New(&chain{providers: []credentials.Provider{granting(func() (credentials.Value, error) {
			asked++
			if down {
				return credentials.Value{}, failed
			}
			return credentials.Value{AccessKeyID: "key", SecretAccessKey: "hush", Expiration: time.Now().Add(10 * time.Minute)}, nil
		})}})
		cc := &credentials.CredContext{}
		get := func(after time.Duration, wantAsked int, wantErr error) {
			t.Helper()
			time.Sleep(after)
			value, err := creds.GetWithContext(cc)
			if !errors.Is(err, wantErr) || err == nil && value.AccessKeyID != "key" || asked != wantAsked {
				t.Errorf("got %q, %v, asked %d times; want error %v, %d times", value.AccessKeyID, err, asked, wantErr, wantAsked)
			}
			if err != nil && !strings.Contains(err.Error(), errNoCredentials.Error()) {
				t.Errorf("%v does not say what is missing", err)
			}
		}
		get(0, 1, nil)
		get(8*time.Minute-time.Second, 1, nil)
		get(time.Second, 2, nil)
		down = true
		get(8*time.Minute, 3, nil)
		get(retrieveAgain-time.Second, 3, nil)
		get(time.Second, 4, nil)
		get(2*time.Minute, 5, failed)
		down = false
		get(0, 6, nil)
	})
}
