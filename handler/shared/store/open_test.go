package store_test

import (
	"strings"
	"testing"

	"larder/handler/shared/store"
)

func TestOpenTakesWhatIsRight(t *testing.T) {
	tests := map[string]string{
		"s3://bucket?region=eu-central-1":                                     "s3://bucket/",
		"s3://bucket/?region=eu-central-1":                                    "s3://bucket/",
		"s3://my.bucket-1/a/prefix/?region=us-east-1":                         "s3://my.bucket-1/a/prefix/",
		"s3://bucket/larder?endpoint=http://minio.infra:9000":                 "s3://bucket/larder/",
		"s3://bucket?endpoint=https://minio.example.org":                      "s3://bucket/",
		"s3://bucket?endpoint=https://minio.example.org/":                     "s3://bucket/",
		"s3://bucket?endpoint=http%3A%2F%2F%5B%3A%3A1%5D%3A9000&region=store": "s3://bucket/",
		"file:///mnt/nfs":                                                     "file:///mnt/nfs",
		"file:///mnt/nfs/larder/":                                             "file:///mnt/nfs/larder",
		"file://localhost/mnt/nfs":                                            "file:///mnt/nfs",
	}
	for rawURL, want := range tests {
		s, err := store.Open(rawURL, store.Credentials{AccessKey: "key", SecretKey: "hush"})
		if err != nil {
			t.Errorf("%s: %v", rawURL, err)
			continue
		}
		if got := s.String(); got != want {
			t.Errorf("%s: is %s, want %s", rawURL, got, want)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: Close: %v", rawURL, err)
		}
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	tests := map[string]string{
		"":                                "no URL",
		"bucket":                          "no URL",
		"/mnt/nfs":                        "no URL",
		"s3:bucket":                       "no URL",
		"s3://hush@%zz":                   "no URL",
		"http://minio:9000/bucket":        "unknown scheme",
		"s3://key:hush@bucket?region=x":   "credentials are not given in the URL",
		"s3://bucket?region=x#hush":       "fragment",
		"s3://bucket?region=%zz":          "malformed",
		"s3://bucket":                     "region=",
		"s3://bucket?region=":             "region=",
		"s3://bucket?region=EU%20west":    "region=",
		"s3://bucket?region=a&region=b":   "region= is given twice",
		"s3://bucket?reigon=eu-central-1": `unknown parameter "reigon": s3:// takes region and endpoint`,
		"s3://?region=x":                  "name of a bucket",
		"s3://BUCKET?region=x":            "name of a bucket",
		"s3://bu?region=x":                "name of a bucket",
		"s3://bucket:80?region=x":         "name of a bucket",
		"s3://buc..ket?region=x":          "name of a bucket",
		"s3://bucket/a//b?region=x":       "can't be a prefix",
		"s3://bucket/a/../b?region=x":     "can't be a prefix",
		"s3://bucket/a%20b?region=x":      "can't be a prefix",
		"s3://bucket/" + strings.Repeat("long/", 50) + "?region=x": "can't be a prefix",
		"s3://bucket?endpoint=minio:9000":                          "endpoint= is not like",
		"s3://bucket?endpoint=":                                    "endpoint= is not like",
		"s3://bucket?endpoint=ftp://minio":                         "endpoint= is not like",
		"s3://bucket?endpoint=http://":                             "endpoint= is not like",
		"s3://bucket?endpoint=http://key:hush@minio":               "credentials are not given in the endpoint",
		"s3://bucket?endpoint=http://minio/path":                   "endpoint= has more",
		"s3://bucket?endpoint=http://minio:0":                      "valid port",
		"s3://bucket?endpoint=http://minio:65536":                  "valid port",
		"file://mnt/nfs":                                           "three slashes",
		"file://":                                                  "three slashes",
		"file:///":                                                 "root directory",
		"file:///mnt?create=yes":                                   `unknown parameter "create": file:// takes none`,
	}
	for rawURL, want := range tests {
		_, err := store.Open(rawURL, store.Credentials{AccessKey: "key", SecretKey: "hush"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %q", rawURL, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v says a secret", rawURL, err)
		}
	}
	if _, err := store.Open("s3://bucket?region=x", store.Credentials{AccessKey: "key"}); err == nil {
		t.Error("half of the credentials were taken")
	}
}
