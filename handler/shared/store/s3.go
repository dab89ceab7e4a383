package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/opencontainers/go-digest"
)

// The label of an object is kept in its metadata.
const (
	digestKey = "Larder-Digest"
	sizeKey   = "Larder-Size"
)

// maxSigned is how long a signed URL may be valid.
const maxSigned = 7 * 24 * time.Hour

// changeTries is how often a small object is sent that something is in the way of.
const changeTries = 5

// s3 is a Store in a bucket. Nothing of an object is held in memory but the buffers
// of a connection.
type s3 struct {
	s3Config
	transport *http.Transport
	requests  s3Requests
}

func openS3(u *url.URL, creds Credentials) (Store, error) {
	config, err := parseS3(u)
	if err != nil {
		return nil, err
	}
	if (creds.AccessKey == "") != (creds.SecretKey == "") {
		return nil, errors.New("an access key and a secret key are given together")
	}
	s := &s3{s3Config: config, transport: newTransport()}
	options := minio.Options{
		Creds:        newCredentials(creds, config.region),
		Secure:       config.secure,
		Transport:    s.transport,
		Region:       config.region,
		BucketLookup: minio.BucketLookupPath,
	}
	if config.amazon {
		options.BucketLookup = minio.BucketLookupAuto
	}
	if s.requests, err = newS3Requests(config.endpoint, options); err != nil {
		return nil, err
	}
	return s, nil
}

// String implements Store.
func (s *s3) String() string { return "s3://" + s.bucket + "/" + s.prefix }

// Close implements Store. Whoever is asked something is waited for by who asks.
func (s *s3) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Get implements Store.
func (s *s3) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error) {
	if err := errors.Join(CheckKey(key), CheckRange(offset, length)); err != nil {
		return nil, Info{}, &Error{Op: "get", Key: key, Err: err}
	}
	var options minio.GetObjectOptions
	switch {
	case length > 0:
		options.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		options.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	content, object, header, err := s.requests.get(ctx, s.bucket, s.prefix+key, options)
	if err != nil {
		return nil, Info{}, s3Error(ctx, "get", key, err)
	}
	left, size := object.Size, object.Size
	if offset > 0 || length > 0 {
		left, size, err = contentRange(header.Get("Content-Range"), offset, length)
	}
	if err == nil && size < 0 {
		err = errIncomplete
	}
	if err != nil {
		content.Close()
		return nil, Info{}, &Error{Op: "get", Key: key, Err: err}
	}
	object.Size = size
	return &s3Body{ctx: ctx, key: key, content: content, left: left}, s3Info(object), nil
}

// contentRange is how much an answer has, and how large all of it is. It has to be
// what was asked for.
func contentRange(header string, offset, length int64) (left, size int64, err error) {
	var first, last int64
	if n, err := fmt.Sscanf(header, "bytes %d-%d/%d", &first, &last, &size); n != 3 || err != nil {
		return 0, 0, fmt.Errorf("%w: Content-Range %.60q", errIncomplete, header)
	}
	end := size
	if length > 0 && length < size-offset {
		end = offset + length
	}
	if first != offset || last != end-1 {
		return 0, 0, fmt.Errorf("another range than that of %d bytes at %d: %.60q", length, offset, header)
	}
	return end - offset, size, nil
}

// s3Body ends well only if all has come.
type s3Body struct {
	ctx     context.Context // that of the request
	key     string
	content io.ReadCloser
	left    int64
}

// Read implements io.Reader.
func (b *s3Body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if err := b.ctx.Err(); err != nil { // all may be in buffers by now
		return 0, s3Error(b.ctx, "get", b.key, err)
	}
	n, err := b.content.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = s3Error(b.ctx, "get", b.key, err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *s3Body) Close() error { return b.content.Close() }

// Head implements Store.
func (s *s3) Head(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, &Error{Op: "head", Key: key, Err: err}
	}
	object, err := s.requests.head(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s3Error(ctx, "head", key, err)
	}
	return s3Info(object), nil
}

func s3Info(object minio.ObjectInfo) Info {
	info := Info{Size: object.Size, Modified: object.LastModified, Version: object.ETag, Length: -1}
	if d, err := digest.Parse(object.UserMetadata[digestKey]); err == nil {
		info.Digest = d
	}
	if length, err := strconv.ParseInt(object.UserMetadata[sizeKey], 10, 64); err == nil && length >= 0 {
		info.Length = length
	}
	return info
}

func (l Label) metadata() map[string]string {
	m := map[string]string{sizeKey: strconv.FormatInt(l.Size, 10)}
	if l.Digest != "" {
		m[digestKey] = l.Digest.String()
	}
	return m
}

// Create implements Store.
func (s *s3) Create(ctx context.Context, key string, content []byte) (version string, err error) {
	var options minio.PutObjectOptions
	options.SetMatchETagExcept("*")
	return s.change(ctx, "create", key, content, options)
}

// Replace implements Store.
func (s *s3) Replace(ctx context.Context, key string, content []byte, version string) (newVersion string, err error) {
	var options minio.PutObjectOptions
	options.SetMatchETag(version)
	return s.change(ctx, "replace", key, content, options)
}

func (s *s3) change(ctx context.Context, op, key string, content []byte, options minio.PutObjectOptions) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", &Error{Op: op, Key: key, Err: err}
	}
	sum := sha256.Sum256(content)
	options.DisableContentSha256 = true // which is about signing a stream of pieces
	var uploaded minio.UploadInfo
	var err error
	for range changeTries {
		uploaded, err = s.requests.put(ctx, s.bucket, s.prefix+key, bytes.NewReader(content), int64(len(content)), "", hex.EncodeToString(sum[:]), options)
		if !isOtherConflict(err) {
			break
		}
	}
	if err == nil && uploaded.ETag == "" {
		err = errIncomplete
	}
	return uploaded.ETag, conditional(ctx, op, key, err)
}

// Delete implements Store.
func (s *s3) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: "delete", Key: key, Err: err}
	}
	err := s3Error(ctx, "delete", key, s.requests.remove(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// List implements Store. The items have no labels.
func (s *s3) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Item{}, &Error{Op: "list", Key: prefix, Err: err})
			return
		}
		options := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, FetchOwner: new(false)}
		for object := range s.requests.list(ctx, s.bucket, options) {
			if object.Err != nil {
				yield(Item{}, s3Error(ctx, "list", prefix, object.Err))
				return
			}
			key, ok := strings.CutPrefix(object.Key, s.prefix)
			if !ok || CheckKey(key) != nil { // somebody else's
				continue
			}
			if !yield(Item{Key: key, Info: s3Info(object)}, nil) {
				return
			}
		}
		if ctx.Err() != nil { // which ends the listing without a word
			yield(Item{}, s3Error(ctx, "list", prefix, ctx.Err()))
		}
	}
}

// SignedURL implements Store.
func (s *s3) SignedURL(ctx context.Context, key string, valid time.Duration) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", &Error{Op: "sign", Key: key, Err: err}
	}
	u, err := s.requests.sign(ctx, s.bucket, s.prefix+key, min(max(valid, time.Second), maxSigned), nil)
	if err != nil {
		return "", s3Error(ctx, "sign", key, err)
	}
	return u.String(), nil
}
