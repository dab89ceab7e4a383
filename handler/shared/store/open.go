package store

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Credentials are what an operator gives for an S3 store. The zero Credentials mean
// those of the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role
// of the pod, the task or the machine.
type Credentials struct {
	AccessKey, SecretKey string
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
)

// Open returns the store at rawURL, which it checks. It contacts nobody.
//
//	s3://BUCKET/PREFIX?region=REGION
//	s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION
//	file:///DIRECTORY
//	gs://BUCKET/PREFIX          if built with the tag gs
//	azblob://CONTAINER/PREFIX   if built with the tag azblob
//
// What is wrong with rawURL is said without a secret that may be in it.
func Open(rawURL string, creds Credentials) (Store, error) {
	u, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "s3":
		return openS3(u, creds)
	case "file":
		return openFiles(u)
	case "gs":
		return openGS(u)
	case "azblob":
		return openAzure(u)
	}
	return nil, fmt.Errorf("unknown scheme %.20q: it is s3, file, gs or azblob", u.Scheme)
}

// parse never says rawURL itself, nor do the errors of url.Parse get out: both may
// hold a password.
func parse(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil || u.Scheme == "" || u.Opaque != "":
		return nil, errors.New("no URL like s3://bucket/prefix or file:///directory")
	case u.User != nil:
		return nil, errors.New("credentials are not given in the URL")
	case u.Fragment != "":
		return nil, errors.New("a fragment (#) means nothing here")
	}
	if _, err := url.ParseQuery(u.RawQuery); err != nil {
		return nil, errors.New("the query (after ?) is malformed")
	}
	return u, nil
}

// parameters are the query's, each of which is known and given once at most.
func parameters(u *url.URL, known ...string) (map[string]string, error) {
	values := make(map[string]string)
	query := u.Query()
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch {
		case !slices.Contains(known, name) && len(known) == 0:
			return nil, fmt.Errorf("unknown parameter %.30q: %s:// takes none", name, u.Scheme)
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("unknown parameter %.30q: %s:// takes %s", name, u.Scheme, strings.Join(known, " and "))
		case len(query[name]) > 1:
			return nil, fmt.Errorf("%s= is given twice", name)
		}
		values[name] = query.Get(name)
	}
	return values, nil
}

// bucket is the one of u, and the prefix of all keys in it: "" or ending in a slash.
func bucket(u *url.URL) (name, prefix string, err error) {
	if !bucketName.MatchString(u.Host) || strings.Contains(u.Host, "..") {
		return "", "", fmt.Errorf("%.80q is no name of a bucket", u.Host)
	}
	prefix = strings.Trim(u.Path, "/")
	if prefix == "" {
		return u.Host, "", nil
	}
	if err := CheckKey(prefix); err != nil || len(prefix) > maxElement {
		return "", "", fmt.Errorf("%.80q can't be a prefix: it has letters, digits, -, _, . and single slashes, %d in all", prefix, maxElement)
	}
	return u.Host, prefix + "/", nil
}

// s3Config is what an s3:// URL says.
type s3Config struct {
	bucket, prefix string
	region         string
	endpoint       string // host, and port if one was given
	secure         bool   // https
	amazon         bool   // no endpoint was given
}

func parseS3(u *url.URL) (s3Config, error) {
	values, err := parameters(u, "region", "endpoint")
	if err != nil {
		return s3Config{}, err
	}
	c := s3Config{region: values["region"], endpoint: "s3.amazonaws.com", secure: true, amazon: true}
	if c.bucket, c.prefix, err = bucket(u); err != nil {
		return s3Config{}, err
	}
	if endpoint, ok := values["endpoint"]; ok {
		c.amazon = false
		if c.endpoint, c.secure, err = parseEndpoint(endpoint); err != nil {
			return s3Config{}, err
		}
		if _, ok := values["region"]; !ok {
			c.region = "us-east-1" // as servers that have no regions like it
		}
	}
	if !regionName.MatchString(c.region) {
		return s3Config{}, fmt.Errorf("region=%.40s is no region: it is like us-east-1, and needed unless there is an endpoint=", c.region)
	}
	return c, nil
}

// parseEndpoint never says the endpoint: it may hold a password.
func parseEndpoint(endpoint string) (host string, secure bool, err error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "", false, errors.New("endpoint= is not like https://host:port")
	case u.User != nil:
		return "", false, errors.New("credentials are not given in the endpoint")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", false, errors.New("endpoint= has more than https://host:port")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", false, errors.New("endpoint= has no valid port")
		}
		return net.JoinHostPort(u.Hostname(), port), u.Scheme == "https", nil
	}
	return strings.TrimSuffix(u.Host, ":"), u.Scheme == "https", nil
}

// parseFile is the directory of a file:// URL.
func parseFile(u *url.URL) (string, error) {
	if _, err := parameters(u); err != nil {
		return "", err
	}
	if u.Host != "" && u.Host != "localhost" || !filepath.IsAbs(u.Path) {
		return "", errors.New("a directory is given as file:///directory, with three slashes")
	}
	if dir := filepath.Clean(u.Path); dir != "/" {
		return dir, nil
	}
	return "", errors.New("file:/// is the root directory")
}
