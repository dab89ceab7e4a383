package store_test

import (
	"testing"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// open returns the store at rawURL until the test ends.
func open(t *testing.T, rawURL string, creds store.Credentials) store.Store {
	t.Helper()
	s, err := store.Open(rawURL, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestS3Conforms(t *testing.T) {
	gateway := storetest.Gateway(t)
	for name, prefix := range map[string]string{"whole bucket": "", "prefix": "a/prefix"} {
		t.Run(name, func(t *testing.T) {
			u := gateway.WithPrefix(prefix)
			storetest.Conform(t, open(t, u, gateway.Credentials), open(t, u, gateway.Credentials))
		})
	}
}

func TestFileConforms(t *testing.T) {
	u := "file://" + t.TempDir()
	storetest.Conform(t, open(t, u, store.Credentials{}), open(t, u, store.Credentials{}))
}
