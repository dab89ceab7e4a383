package store

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
)

// s3Requests are those of the library's methods that are used. As functions they are
// all of it that is linked: of a client that a Store refers to, the linker keeps every
// method, because templates find methods by name.
type s3Requests struct {
	get      func(ctx context.Context, bucket, name string, options minio.GetObjectOptions) (io.ReadCloser, minio.ObjectInfo, http.Header, error)
	head     func(ctx context.Context, bucket, name string, options minio.StatObjectOptions) (minio.ObjectInfo, error)
	put      func(ctx context.Context, bucket, name string, content io.Reader, size int64, md5, sha256 string, options minio.PutObjectOptions) (minio.UploadInfo, error)
	begin    func(ctx context.Context, bucket, name string, options minio.PutObjectOptions) (upload string, err error)
	putPart  func(ctx context.Context, bucket, name, upload string, number int, content io.Reader, size int64, options minio.PutObjectPartOptions) (minio.ObjectPart, error)
	copyPart func(ctx context.Context, fromBucket, from, bucket, name, upload string, number int, offset, length int64, metadata map[string]string) (minio.CompletePart, error)
	complete func(ctx context.Context, bucket, name, upload string, parts []minio.CompletePart, options minio.PutObjectOptions) (minio.UploadInfo, error)
	abort    func(ctx context.Context, bucket, name, upload string) error
	copy     func(ctx context.Context, fromBucket, from, bucket, name string, metadata map[string]string, source minio.CopySrcOptions, options minio.PutObjectOptions) (minio.ObjectInfo, error)
	remove   func(ctx context.Context, bucket, name string, options minio.RemoveObjectOptions) error
	list     func(ctx context.Context, bucket string, options minio.ListObjectsOptions) iter.Seq[minio.ObjectInfo]
	sign     func(ctx context.Context, bucket, name string, valid time.Duration, parameters url.Values) (*url.URL, error)
}

// newS3Requests makes requests that are sent a second time if there is no answer, or
// the answer is not now. Puts are not: one that has a condition may have been done, and
// would then find it not met; and of others the content is read again by who sends it.
func newS3Requests(endpoint string, options minio.Options) (s3Requests, error) {
	options.MaxRetries = 2 // which counts the first
	again, err := minio.NewCore(endpoint, &options)
	if err != nil {
		return s3Requests{}, err
	}
	options.MaxRetries = 1
	once, err := minio.NewCore(endpoint, &options)
	if err != nil {
		return s3Requests{}, err
	}
	return s3Requests{
		get:      again.GetObject,
		head:     again.StatObject,
		put:      once.PutObject,
		begin:    again.NewMultipartUpload,
		putPart:  once.PutObjectPart,
		copyPart: again.CopyObjectPart,
		complete: again.CompleteMultipartUpload,
		abort:    once.AbortMultipartUpload,
		copy:     again.CopyObject,
		remove:   again.RemoveObject,
		list:     again.ListObjectsIter,
		sign:     once.PresignedGetObject,
	}, nil
}
