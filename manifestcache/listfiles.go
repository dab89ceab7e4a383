package manifestcache

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// listHeader is the first line of a list's file; the body follows it. The mtime
// is when upstream last sent this.
type listHeader struct {
	List        string        `json:"list"` // without its query, which may hold what is nobody's business
	ContentType string        `json:"contentType"`
	Filters     string        `json:"filters,omitempty"`
	Next        string        `json:"next,omitempty"`
	Sum         digest.Digest `json:"sum"` // of the key, the header without it, and the body
}

func listKey(repository, name string) string { return repository + " " + name }

// listName is the name of the file with a list.
func listName(repository, name string) string {
	hash := sha256.Sum256([]byte(name))
	return path.Join(listsOf(sha256.Sum256([]byte(repository))), hex.EncodeToString(hash[:]))
}

// listsOf is the directory of a repository's lists.
func listsOf(repository [sha256.Size]byte) string {
	return path.Join(listDir, hex.EncodeToString(repository[:]))
}

// isListName reports whether listName makes such names.
func isListName(name string) bool {
	elements := strings.Split(name, "/")
	if len(elements) != 3 || elements[0] != listDir {
		return false
	}
	for _, e := range elements[1:] {
		if digest.NewDigestFromEncoded(digest.SHA256, e).Validate() != nil {
			return false
		}
	}
	return true
}

// encodeList is the file of a list.
func encodeList(key string, l *List) []byte {
	clean := func(s string) string { return strings.ToValidUTF8(s, "") } // as JSON will have it
	h := listHeader{List: clean(withoutQuery(key)), ContentType: clean(l.ContentType), Filters: clean(l.Filters), Next: clean(l.Next)}
	h.Sum = h.sum(key, l.Body)
	return bytes.Join([][]byte{h.line(), l.Body}, []byte("\n"))
}

// decodeList reads what encodeList has made, of the given size. It checks
// everything: no digest that anybody knows covers a list. There is no Body if it is
// large.
func decodeList(key string, file io.Reader, size int64) (*List, error) {
	r := bufio.NewReader(file)
	line, err := r.ReadBytes('\n')
	var h listHeader
	if err != nil || json.Unmarshal(line, &h) != nil || h.Sum.Validate() != nil {
		return nil, errDamaged
	}
	l := &List{ContentType: h.ContentType, Filters: h.Filters, Next: h.Next, Size: size - int64(len(line))}
	verifier := h.verifier(key)
	var body bytes.Buffer
	kept := io.Writer(verifier)
	if l.Size <= maxBody {
		body.Grow(int(l.Size)) // and no more: clients may be slow to read it
		kept = io.MultiWriter(verifier, &body)
	}
	if n, err := io.Copy(kept, r); err != nil || n != l.Size || !verifier.Verified() {
		return nil, errDamaged
	}
	l.Body = body.Bytes()
	return l, nil
}

func (h listHeader) line() []byte {
	line, err := json.Marshal(h)
	if err != nil {
		panic(err) // strings
	}
	return line
}

// verifier is for the body, when all else is known.
func (h listHeader) verifier(key string) digest.Verifier {
	v := h.Sum.Verifier()
	h.Sum = ""
	_, _ = fmt.Fprintf(v, "%s\n%s\n", key, h.line()) // to memory
	return v
}

func (h listHeader) sum(key string, body []byte) digest.Digest {
	h.Sum = ""
	d := digest.Canonical.Digester()
	_, _ = fmt.Fprintf(d.Hash(), "%s\n%s\n", key, h.line()) // to memory
	_, _ = d.Hash().Write(body)
	return d.Digest()
}

func withoutQuery(name string) string {
	name, _, _ = strings.Cut(name, "?")
	return name
}
