//go:build gs || azblob

package store

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// The label of an object is kept in its metadata.
const (
	cloudDigest = "larder-digest"
	cloudSize   = "larder-size"
)

// sendBuffer is what is held of a content on its way.
const sendBuffer = 4 << 20

// cloud is a Store in a bucket of Google or a container of Azure. It can't replace
// under a condition.
type cloud struct {
	name   string
	dial   func(ctx context.Context) (*blob.Bucket, error) // looks for credentials
	prefix string

	mu     sync.Mutex // guards bucket
	bucket *blob.Bucket
}

// openCloud knows u by a driver that was built in.
func openCloud(u *url.URL, known ...string) (Store, error) {
	if _, err := parameters(u, known...); err != nil {
		return nil, err
	}
	name, prefix, err := bucket(u)
	if err != nil {
		return nil, err
	}
	place := url.URL{Scheme: u.Scheme, Host: name, RawQuery: u.RawQuery}
	dial := func(ctx context.Context) (*blob.Bucket, error) { return blob.OpenBucket(ctx, place.String()) }
	return &cloud{name: u.Scheme + "://" + name + "/" + prefix, dial: dial, prefix: prefix}, nil
}

// String implements Store.
func (c *cloud) String() string { return c.name }

// Close implements Store.
func (c *cloud) Close() error {
	c.mu.Lock()
	b := c.bucket
	c.bucket = nil
	c.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.Close()
}

// open returns the bucket.
func (c *cloud) open(ctx context.Context) (*blob.Bucket, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	c.mu.Lock()
	b := c.bucket
	c.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := c.dial(context.WithoutCancel(ctx)) // credentials are renewed with it
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bucket != nil {
		_ = b.Close() // another was as fast
	} else {
		c.bucket = b
	}
	return c.bucket, nil
}

// cloudError makes err what a Store returns.
func cloudError(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Op: op, Key: key, Err: cause}
	}
	code, hint := gcerrors.Code(err), ""
	switch code {
	case gcerrors.NotFound:
		return ErrNotExist
	case gcerrors.Unimplemented:
		return ErrUnsupported
	case gcerrors.PermissionDenied:
		hint = "the credentials have to allow to read, write, delete and list objects"
	}
	return &Error{Op: op, Key: key, Code: code.String(), Hint: hint, Err: err}
}

// Get implements Store. It is two requests: the label does not come with the content.
func (c *cloud) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error) {
	if err := CheckRange(offset, length); err != nil {
		return nil, Info{}, &Error{Op: "get", Key: key, Err: err}
	}
	b, info, err := c.head(ctx, "get", key)
	if err != nil {
		return nil, Info{}, err
	}
	if offset >= info.Size && (offset > 0 || length > 0) {
		return nil, Info{}, ErrRange
	}
	reader, err := b.NewRangeReader(ctx, c.prefix+key, offset, length, nil)
	if err != nil {
		return nil, Info{}, cloudError(ctx, "get", key, err)
	}
	if reader.Size() != info.Size {
		_ = reader.Close()
		return nil, Info{}, &Error{Op: "get", Key: key, Err: errors.New("the object changed while it was asked for")}
	}
	left := info.Size - offset
	if length >= 0 {
		left = min(left, length)
	}
	return &cloudBody{ctx: ctx, key: key, content: reader, left: left}, info, nil
}

// cloudBody ends well only if all has come.
type cloudBody struct {
	ctx     context.Context // that of Get
	key     string
	content io.ReadCloser
	left    int64
}

// Read implements io.Reader.
func (b *cloudBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, cloudError(b.ctx, "get", b.key, err)
	}
	n, err := b.content.Read(p)
	if b.left -= int64(n); err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = cloudError(b.ctx, "get", b.key, err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *cloudBody) Close() error { return b.content.Close() }

// Head implements Store.
func (c *cloud) Head(ctx context.Context, key string) (Info, error) {
	_, info, err := c.head(ctx, "head", key)
	return info, err
}

func (c *cloud) head(ctx context.Context, op, key string) (*blob.Bucket, Info, error) {
	if err := CheckKey(key); err != nil {
		return nil, Info{}, &Error{Op: op, Key: key, Err: err}
	}
	b, err := c.open(ctx)
	if err != nil {
		return nil, Info{}, cloudError(ctx, op, key, err)
	}
	attributes, err := b.Attributes(ctx, c.prefix+key)
	if err != nil {
		return nil, Info{}, cloudError(ctx, op, key, err)
	}
	info := Info{Size: attributes.Size, Modified: attributes.ModTime, Version: attributes.ETag, Length: -1}
	if d, err := digest.Parse(attributes.Metadata[cloudDigest]); err == nil {
		info.Digest = d
	}
	if length, err := strconv.ParseInt(attributes.Metadata[cloudSize], 10, 64); err == nil && length >= 0 {
		info.Length = length
	}
	return b, info, nil
}

// Put implements Store.
func (c *cloud) Put(ctx context.Context, key string, content io.ReadSeeker, label Label) error {
	start, err := content.Seek(0, io.SeekCurrent)
	if err != nil {
		return cloudError(ctx, "put", key, err)
	}
	src, err := newSource(ctx, content, start, label.Size)
	if err != nil {
		return cloudError(ctx, "put", key, err)
	}
	defer src.stop()
	options := &blob.WriterOptions{Metadata: label.cloudMetadata()}
	return c.write(ctx, "put", key, options, func(_ *blob.Bucket, w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

func (l Label) cloudMetadata() map[string]string {
	m := map[string]string{cloudSize: strconv.FormatInt(l.Size, 10)}
	if l.Digest != "" {
		m[cloudDigest] = l.Digest.String()
	}
	return m
}

// Create implements Store. The version is asked for afterwards: it may be a later one.
func (c *cloud) Create(ctx context.Context, key string, content []byte) (version string, err error) {
	err = c.write(ctx, "create", key, &blob.WriterOptions{IfNotExist: true}, func(_ *blob.Bucket, w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if e, ok := errors.AsType[*Error](err); ok && (e.Code == gcerrors.FailedPrecondition.String() || e.Code == gcerrors.AlreadyExists.String()) {
		return "", ErrChanged
	}
	if err != nil {
		return "", err
	}
	info, err := c.Head(ctx, key)
	return info.Version, err
}

// Replace implements Store.
func (c *cloud) Replace(ctx context.Context, key string, _ []byte, _ string) (newVersion string, err error) {
	if err := cmp.Or(CheckKey(key), ctx.Err()); err != nil {
		return "", &Error{Op: "replace", Key: key, Err: err}
	}
	return "", ErrUnsupported
}

// Compose implements Store. The bytes come and go again.
func (c *cloud) Compose(ctx context.Context, key string, parts []string, label Label) error {
	if err := CheckParts(key, parts); err != nil {
		return &Error{Op: "compose", Key: key, Err: err}
	}
	options := &blob.WriterOptions{Metadata: label.cloudMetadata()}
	return c.write(ctx, "compose", key, options, func(b *blob.Bucket, w io.Writer) error {
		for _, part := range parts {
			if err := appendBlob(ctx, b, w, c.prefix+part); err != nil {
				return err
			}
		}
		return nil
	})
}

func appendBlob(ctx context.Context, b *blob.Bucket, w io.Writer, name string) error {
	reader, err := b.NewReader(ctx, name, nil)
	if err != nil {
		return err
	}
	defer reader.Close()
	n, err := io.Copy(w, reader)
	if err == nil && n < reader.Size() {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// write makes an object of what fill writes, or none if that fails.
func (c *cloud) write(ctx context.Context, op, key string, options *blob.WriterOptions, fill func(b *blob.Bucket, w io.Writer) error) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: op, Key: key, Err: err}
	}
	b, err := c.open(ctx)
	if err != nil {
		return cloudError(ctx, op, key, err)
	}
	options.BufferSize, options.MaxConcurrency, options.ContentType = sendBuffer, 1, "application/octet-stream"
	writing, abandon := context.WithCancel(ctx)
	defer abandon()
	w, err := b.NewWriter(writing, c.prefix+key, options)
	if err != nil {
		return cloudError(ctx, op, key, err)
	}
	if err := fill(b, w); err != nil {
		abandon()
		_ = w.Close() // makes nothing of what was written
		return cloudError(ctx, op, key, err)
	}
	return cloudError(ctx, op, key, w.Close())
}

// Delete implements Store.
func (c *cloud) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: "delete", Key: key, Err: err}
	}
	b, err := c.open(ctx)
	if err == nil {
		err = b.Delete(ctx, c.prefix+key)
	}
	if err = cloudError(ctx, "delete", key, err); errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// List implements Store. The items have no versions and no labels.
func (c *cloud) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Item{}, &Error{Op: "list", Key: prefix, Err: err})
			return
		}
		b, err := c.open(ctx)
		if err != nil {
			yield(Item{}, cloudError(ctx, "list", prefix, err))
			return
		}
		for objects := b.List(&blob.ListOptions{Prefix: c.prefix + prefix}); ; {
			object, err := objects.Next(ctx)
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Item{}, cloudError(ctx, "list", prefix, err))
				return
			}
			key := object.Key[len(c.prefix):]
			if CheckKey(key) != nil { // somebody else's
				continue
			}
			if !yield(Item{Key: key, Info: Info{Size: object.Size, Modified: object.ModTime, Length: -1}}, nil) {
				return
			}
		}
	}
}

// SignedURL implements Store.
func (c *cloud) SignedURL(ctx context.Context, key string, valid time.Duration) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", &Error{Op: "sign", Key: key, Err: err}
	}
	b, err := c.open(ctx)
	if err != nil {
		return "", cloudError(ctx, "sign", key, err)
	}
	u, err := b.SignedURL(ctx, c.prefix+key, &blob.SignedURLOptions{Expiry: min(max(valid, time.Second), maxSigned)})
	if err != nil {
		return "", cloudError(ctx, "sign", key, err)
	}
	return u, nil
}
