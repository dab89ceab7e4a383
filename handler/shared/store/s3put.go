package store

import (
	"context"
	"io"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

const (
	putPart     = 64 << 20 // what is larger is sent in parts
	copies      = 8        // parts that are copied at a time
	abortPeriod = 2 * time.Second
)

// Put implements Store. The content is not signed, which would mean to hash it here
// and there once more: who reads it has its digest.
func (s *s3) Put(ctx context.Context, key string, content io.ReadSeeker, label Label) error {
	if err := CheckKey(key); err != nil {
		return &Error{Op: "put", Key: key, Err: err}
	}
	start, err := content.Seek(0, io.SeekCurrent)
	if err == nil {
		if label.Size > putPart {
			err = s.putParts(ctx, key, content, start, label)
		} else {
			err = s.putWhole(ctx, key, content, start, label)
		}
	}
	return s3Error(ctx, "put", key, err)
}

func (s *s3) putWhole(ctx context.Context, key string, content io.ReadSeeker, start int64, label Label) error {
	return twice(ctx, content, start, label.Size, func(src *source) error {
		options := minio.PutObjectOptions{UserMetadata: label.metadata(), DisableContentSha256: true}
		_, err := s.requests.put(ctx, s.bucket, s.prefix+key, src, label.Size, "", "", options)
		return err
	})
}

// putParts sends one part after the other.
func (s *s3) putParts(ctx context.Context, key string, content io.ReadSeeker, start int64, label Label) error {
	size := int64(putPart)
	for (label.Size+size-1)/size > maxParts {
		size *= 2
	}
	return s.multipart(ctx, key, label, func(ctx context.Context, upload string) ([]minio.CompletePart, error) {
		var parts []minio.CompletePart
		for offset := int64(0); offset < label.Size; offset += size {
			n, length := len(parts)+1, min(size, label.Size-offset)
			err := twice(ctx, content, start+offset, length, func(src *source) error {
				options := minio.PutObjectPartOptions{DisableContentSha256: true}
				part, err := s.requests.putPart(ctx, s.bucket, s.prefix+key, upload, n, src, length, options)
				parts = append(parts[:n-1], minio.CompletePart{PartNumber: n, ETag: part.ETag})
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		return parts, nil
	})
}

// twice sends a part of a content, and once more if the first time there was no
// answer, or not now. The library has made a pause after such a failure.
func twice(ctx context.Context, content io.ReadSeeker, start, size int64, send func(*source) error) error {
	attempt := func() error {
		src, err := newSource(ctx, content, start, size)
		if err != nil {
			return err
		}
		defer src.stop()
		return send(src)
	}
	err := attempt()
	if err == nil || ctx.Err() != nil {
		return err
	}
	if answer := minio.ToErrorResponse(err); answer.StatusCode != 0 && answer.StatusCode < 500 && answer.StatusCode != 429 {
		return err
	}
	return attempt()
}

// multipart makes an object of what parts uploads, or leaves nothing behind.
func (s *s3) multipart(ctx context.Context, key string, label Label, parts func(ctx context.Context, upload string) ([]minio.CompletePart, error)) error {
	upload, err := s.requests.begin(ctx, s.bucket, s.prefix+key, minio.PutObjectOptions{UserMetadata: label.metadata()})
	if err != nil {
		return err
	}
	complete, err := parts(ctx, upload)
	if err == nil {
		_, err = s.requests.complete(ctx, s.bucket, s.prefix+key, upload, complete, minio.PutObjectOptions{})
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortPeriod)
		defer cancel()
		_ = s.requests.abort(ctx, s.bucket, s.prefix+key, upload) // or the bucket's lifecycle does it
	}
	return err
}

// Compose implements Store.
func (s *s3) Compose(ctx context.Context, key string, parts []string, label Label) error {
	if err := CheckParts(key, parts); err != nil {
		return &Error{Op: "compose", Key: key, Err: err}
	}
	if len(parts) == 1 {
		return s3Error(ctx, "compose", key, s.copy(ctx, key, parts[0], label))
	}
	err := s.multipart(ctx, key, label, func(ctx context.Context, upload string) ([]minio.CompletePart, error) {
		complete := make([]minio.CompletePart, len(parts))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(copies)
		for i, part := range parts {
			group.Go(func() (err error) {
				complete[i], err = s.requests.copyPart(ctx, s.bucket, s.prefix+part, s.bucket, s.prefix+key, upload, i+1, 0, -1, nil)
				if err == nil && complete[i].ETag == "" { // an error that came after the status 200
					err = errIncomplete
				}
				return err
			})
		}
		return complete, group.Wait()
	})
	return s3Error(ctx, "compose", key, err)
}

func (s *s3) copy(ctx context.Context, key, from string, label Label) error {
	header := map[string]string{"x-amz-metadata-directive": "REPLACE"}
	for name, value := range label.metadata() {
		header["x-amz-meta-"+name] = value
	}
	copied, err := s.requests.copy(ctx, s.bucket, s.prefix+from, s.bucket, s.prefix+key, header, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	if err == nil && copied.ETag == "" { // an error that came after the status 200
		err = errIncomplete
	}
	return err
}
