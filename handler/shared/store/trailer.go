package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// trailerSize is that of the line behind the content of a file, in which its version
// and its label are. So a file is found whole or not at all with these, its content
// begins where the file does, and a file without the line, put there by hand, is all
// content.
const trailerSize = 256

const trailerMagic = "\nlarder 1 "

// trailer is the line for a content of size bytes.
func trailer(size int64, version string, label Label) []byte {
	d := label.Digest.String()
	if d == "" {
		d = "-"
	}
	line := fmt.Appendf(nil, "%s%d %s %d %s", trailerMagic, size, version, label.Size, d)
	return append(append(line, bytes.Repeat([]byte(" "), trailerSize-1-len(line))...), '\n')
}

// readInfo says what f, which is fi, holds.
func readInfo(f *os.File, fi fs.FileInfo) (Info, error) {
	info := Info{Size: fi.Size(), Modified: fi.ModTime(), Length: -1}
	info.Version = strconv.FormatInt(fi.ModTime().UnixNano(), 36) + "-" + strconv.FormatInt(fi.Size(), 36)
	size := fi.Size() - trailerSize
	if size < 0 {
		return info, nil
	}
	line := make([]byte, trailerSize)
	if n, err := f.ReadAt(line, size); n < len(line) {
		return Info{}, err
	}
	rest, ok := bytes.CutPrefix(line, []byte(trailerMagic))
	fields := bytes.Fields(rest)
	if !ok || len(fields) != 4 || string(fields[0]) != strconv.FormatInt(size, 10) {
		return info, nil
	}
	length, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil || length < -1 {
		return info, nil
	}
	info.Size, info.Version, info.Length = size, string(fields[1]), length
	if d, err := digest.Parse(string(fields[3])); err == nil {
		info.Digest = d
	}
	return info, nil
}
