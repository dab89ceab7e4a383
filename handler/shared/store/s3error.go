package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"
)

var (
	errNoCredentials = errors.New("no credentials")
	errIncomplete    = errors.New("the answer says neither yes nor why not")
)

// s3Hints are what an operator should look at, by S3's code.
var s3Hints = map[string]string{
	"AccessDenied":                 "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload for this bucket and prefix",
	"AuthorizationHeaderMalformed": "region= is not the bucket's",
	"EntityTooLarge":               "the store does not take objects of this size",
	"ExpiredToken":                 "the session token has expired",
	"InsufficientStorage":          "the store is full",
	"InvalidAccessKeyId":           "the access key is not known there",
	"InvalidRegion":                "region= is not the bucket's",
	"InvalidToken":                 "the session token is not valid there",
	"NoSuchBucket":                 "the bucket has to be made first",
	"PermanentRedirect":            "region= is not the bucket's",
	"QuotaExceeded":                "the store is full",
	"RequestTimeTooSkewed":         "the clock of this machine or of the store is wrong",
	"SignatureDoesNotMatch":        "the secret key is not that of the access key, or region= is wrong",
	"SlowDown":                     "the store wants fewer requests",
	"TemporaryRedirect":            "region= is not the bucket's, or the bucket was made a moment ago",
	"XAdminUserNotFound":           "the access key is not known there",
	"XMinioStorageFull":            "the store is full",
}

// s3Error makes err what a Store returns.
func s3Error(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Op: op, Key: key, Err: cause}
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // which says the URL again
		}
		return &Error{Op: op, Key: key, Hint: hint(err), Err: err}
	}
	switch {
	case answer.Code == minio.NoSuchKey:
		return ErrNotExist
	case answer.Code == minio.InvalidRange || answer.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return ErrRange
	case answer.Code == minio.NotImplemented || answer.StatusCode == http.StatusNotImplemented:
		return ErrUnsupported
	}
	message := fmt.Errorf("%.60s: %.200s", cmp.Or(answer.Code, http.StatusText(answer.StatusCode)), strings.ToValidUTF8(answer.Error(), "?"))
	return &Error{Op: op, Key: key, Code: answer.Code, Hint: s3Hints[answer.Code], Err: message}
}

// conditional is s3Error for a request with a condition that was not met, perhaps
// because of another that came at the same time.
func conditional(ctx context.Context, op, key string, err error) error {
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		switch {
		case answer.StatusCode == http.StatusNotModified, answer.StatusCode == http.StatusPreconditionFailed:
			return ErrChanged
		case answer.StatusCode == http.StatusConflict && !isOtherConflict(err):
			return ErrChanged
		case answer.Code == minio.NoSuchKey: // there is nothing to replace
			return ErrChanged
		}
	}
	return s3Error(ctx, op, key, err)
}

// isOtherConflict reports whether something else than another conditional request was
// in the way, as at a server of files that was about to remove a directory. Nothing
// has been done then.
func isOtherConflict(err error) bool {
	answer := minio.ToErrorResponse(err)
	if answer.StatusCode != http.StatusConflict {
		return false
	}
	switch answer.Code {
	case "ConditionalRequestConflict", "OperationAborted", minio.Conflict:
		return false
	}
	return true
}

// hint is what an operator should look at if there was no answer.
func hint(err error) string {
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "endpoint= names a host that is not known here"
	}
	switch {
	case errors.Is(err, errNoCredentials):
		return "set LARDER_SHARED_ACCESS_KEY and LARDER_SHARED_SECRET_KEY, or give this machine a role"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens there: see endpoint=, and whether the store runs"
	case strings.Contains(err.Error(), "HTTP response to HTTPS client"): // which has no type
		return "endpoint= has to begin with http://"
	}
	return ""
}
