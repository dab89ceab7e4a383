package store

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"time"

	"larder/blobcache/durable"
)

// leftover is how old what is being written has to be, unchanged, to be that of a
// writer which is gone; by more than clocks differ.
const leftover = 24 * time.Hour

// List implements Store, in no order. It also removes what writers have left that are
// gone.
func (f *files) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Item{}, &Error{Op: "list", Key: prefix, Err: err})
			return
		}
		clean := func(root *os.Root) (struct{}, error) { return struct{}{}, removeLeftovers(root) }
		if _, err := inDirectory(ctx, f, "list", prefix, clean); err != nil && !errors.Is(err, ErrNotExist) {
			yield(Item{}, err)
			return
		}
		for rest := []string{prefix}; len(rest) > 0; {
			directory := rest[len(rest)-1]
			l, err := inDirectory(ctx, f, "list", directory, func(root *os.Root) (listing, error) { return list(root, directory) })
			if err != nil && !errors.Is(err, ErrNotExist) {
				yield(Item{}, err)
				return
			}
			for _, item := range l.items {
				if !yield(item, nil) {
					return
				}
			}
			rest = append(rest[:len(rest)-1], l.directories...)
		}
	}
}

// listing is what a directory holds.
type listing struct {
	items       []Item
	directories []string // as prefixes of keys
}

func list(root *os.Root, prefix string) (listing, error) {
	entries, err := fs.ReadDir(root.FS(), objectName(prefix))
	if err != nil {
		return listing{}, err
	}
	var l listing
	for _, entry := range entries {
		key := prefix + entry.Name()
		switch {
		case CheckKey(key) != nil: // somebody else's
		case entry.IsDir():
			l.directories = append(l.directories, key+"/")
		case entry.Type().IsRegular():
			file, info, err := find(root, key)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotExist) { // gone meanwhile
				continue
			}
			if err != nil {
				return listing{}, err
			}
			file.Close()
			l.items = append(l.items, Item{Key: key, Info: info})
		}
	}
	return l, nil
}

func removeLeftovers(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), durable.Temp)
	for _, entry := range entries {
		if fi, err := entry.Info(); err == nil && time.Since(fi.ModTime()) > leftover {
			_ = root.RemoveAll(path.Join(durable.Temp, entry.Name())) // or the next time
		}
	}
	return err
}
