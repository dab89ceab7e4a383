package doctor_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"larder/handler/admin/doctor"
	"larder/handler/shared/store"
)

// storeThatSays is an S3 server that answers everything with an error, and is reached
// with wrong keys.
func storeThatSays(t *testing.T, status int, code string) store.Store {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>what the store says</Message></Error>", code)
	}))
	t.Cleanup(server.Close)
	return openStore(t, "s3://bucket/prefix?endpoint="+url.QueryEscape(server.URL), store.Credentials{AccessKey: "key", SecretKey: "hush"})
}

func openStore(t *testing.T, address string, keys store.Credentials) store.Store {
	t.Helper()
	s, err := store.Open(address, keys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Doctor says what exactly is wrong with the store, and does it no harm.
func TestWhatFailsWithTheStore(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	tests := map[string]struct {
		open   func(t *testing.T) store.Store
		status doctor.Status
		says   []string
	}{
		"a directory": {
			func(t *testing.T) store.Store { return openStore(t, "file://"+t.TempDir(), store.Credentials{}) },
			doctor.OK,
			[]string{"can be written, read and listed"},
		},
		"wrong secret key": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusForbidden, "SignatureDoesNotMatch") },
			doctor.Failed,
			[]string{"s3://bucket/prefix/: version: SignatureDoesNotMatch: what the store says -> The secret key is not that of the access key"},
		},
		"wrong access key": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusForbidden, "InvalidAccessKeyId") },
			doctor.Failed,
			[]string{"-> The access key is not known there. Until"},
		},
		"no rights": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusForbidden, "AccessDenied") },
			doctor.Failed,
			[]string{"-> The credentials need s3:GetObject"},
		},
		"no bucket": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusNotFound, "NoSuchBucket") },
			doctor.Failed,
			[]string{"NoSuchBucket", "-> The bucket has to be made first"},
		},
		"a wrong clock": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusForbidden, "RequestTimeTooSkewed") },
			doctor.Failed,
			[]string{"-> The clock of this machine or of the store is wrong"},
		},
		"what nobody knows": {
			func(t *testing.T) store.Store { return storeThatSays(t, http.StatusForbidden, "Whatever") },
			doctor.Failed,
			[]string{"Whatever", "-> Look at LARDER_SHARED"},
		},
		"nobody there": {
			func(t *testing.T) store.Store {
				return openStore(t, "s3://bucket?endpoint=http://127.0.0.1:1", store.Credentials{AccessKey: "key", SecretKey: "hush"})
			},
			doctor.Failed,
			[]string{"refused", "-> Nobody listens there"},
		},
		"no directory": {
			func(t *testing.T) store.Store {
				return openStore(t, "file://"+filepath.Join(t.TempDir(), "not-there"), store.Credentials{})
			},
			doctor.Failed,
			[]string{"not-there", "-> The directory has to be there, mounted"},
		},
		"another version": {
			func(t *testing.T) store.Store {
				s := openStore(t, "file://"+t.TempDir(), store.Credentials{})
				if _, err := s.Create(t.Context(), "version", []byte("larder 2\n")); err != nil {
					t.Fatal(err)
				}
				return s
			},
			doctor.Failed,
			[]string{"larder 2", "a prefix of its own"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			p.cfg.Shared = test.open(t)
			r := p.want(t, "shared store", test.status, test.says...)
			if r.OK != (test.status == doctor.OK) {
				t.Errorf("the report is OK: %t", r.OK)
			}
			for _, c := range r.Checks {
				if text := c.Detail + c.Do; strings.Contains(text, "hush") || strings.Contains(text, "\n") {
					t.Errorf("%s says %q", c.Name, text)
				}
			}
			// What it has made it has removed.
			dir, ok := strings.CutPrefix(p.cfg.Shared.String(), "file://")
			if entries, err := os.ReadDir(filepath.Join(dir, "objects", "doctor")); ok && len(entries) > 0 {
				t.Errorf("%d objects are left (%v)", len(entries), err)
			}
		})
	}
}
